//! The dirty log: the first write to each clean page is seen. (The machine itself holds each log against what was written.)
use abi::KVM_MEM_LOG_DIRTY_PAGES as LOG;

use crate::common::*;

#[test]
fn writes_are_logged_from_the_moment_the_log_begins() {
    let mut m = paged(2);
    map(&mut m, 0x5000, 0x100, PWU);
    map(&mut m, 0x6000, 0x101, PWU);
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
    let flushes = m.flushes();
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    assert!(m.flushes() > flushes, "write access is taken away everywhere");
    m.check();
    write(&mut m, 0, 0x5000, 2, 0x10_0000);
    assert!(m.get_dirty_log(0));
    m.check();
    // After each reading again, by every processor.
    for cpu in [0, 1, 0] {
        write(&mut m, cpu, 0x5000, 3, 0x10_0000);
        write(&mut m, cpu, 0x6000, 3, 0x10_1000);
        assert!(m.get_dirty_log(0));
        m.check();
    }
    assert!(m.set_slot(0, 0, 0, FRAMES, CLIENT));
    write(&mut m, 0, 0x5000, 4, 0x10_0000);
    assert!(!m.get_dirty_log(0));
}

#[test]
fn a_page_that_was_only_read_is_not_writable_unlogged() {
    let mut m = paged(1);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    map(&mut m, 0x5000, 0x100, PWU | x86::paging::A | x86::paging::D);
    assert!(m.get_dirty_log(0));
    read(&mut m, 0, 0x5000, 0x10_0000);
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
    assert!(m.get_dirty_log(0));
}

#[test]
fn a_log_that_is_read_in_the_middle_of_a_fault_misses_nothing() {
    let mut m = paged(1);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    map(&mut m, 0x5000, 0x100, PWU);
    assert!(m.get_dirty_log(0));
    m.in_fault(|_, shadow, fulfil| {
        // As its reader does after it has taken the bits.
        let (result, due) = shadow.pages_cleaned(0x100, 1);
        assert_eq!(result, Ok(()));
        fulfil(due);
    });
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
    assert!(m.get_dirty_log(0));
}
