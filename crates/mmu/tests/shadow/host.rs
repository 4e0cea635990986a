//! Pages that the host takes away, at any moment (row B12), and slots that change.
use abi::KVM_MEM_READONLY;
use mmu::testing::{Access, End};

use crate::common::*;

#[test]
fn a_page_that_is_taken_away_is_found_where_it_is_then() {
    let mut m = paged(2);
    map(&mut m, 0x5000, 0x100, PWU);
    for cpu in [0, 1] {
        write(&mut m, cpu, 0x5000, 5, 0x10_0000);
    }
    let flushes = m.flushes();
    m.invalidate(CLIENT + 0x10_0000, 1);
    assert_eq!(m.flushes(), flushes + 1);
    m.check();
    for cpu in [0, 1] {
        read(&mut m, cpu, 0x5000, 0x10_0000);
    }
    // Nobody maps these.
    let flushes = m.flushes();
    m.invalidate(CLIENT + 0x20_0000, 16);
    assert_eq!(m.flushes(), flushes, "nothing to forget");
    // All of it, tables too.
    m.invalidate(CLIENT, FRAMES);
    m.check();
    read(&mut m, 0, 0x5000, 0x10_0000);
}

#[test]
fn an_invalidation_in_the_middle_of_a_fault_starts_it_over() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    let again = m.counter("pf_again");
    m.invalidate_in_fault(CLIENT + 0x10_0000, 1);
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert!(m.counter("pf_again") > again);
}

#[test]
fn nothing_is_installed_while_an_invalidation_runs() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    read(&mut m, 0, 0x6000 - 0x1000, 0x10_0000);
    m.in_fault(|memory, shadow, fulfil| {
        let range = platform::Hva(CLIENT)..platform::Hva(CLIENT + (FRAMES << 12));
        let (result, due) = shadow.invalidate_begin(range, memory);
        assert_eq!(result, Ok(()));
        fulfil(due);
    });
    map(&mut m, 0x7000, 0x101, PWU);
    // The fault cannot come to an end, and gives up for now: the guest would fault again.
    let stuck = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| m.access(0, Access::read(0x7000))));
    assert!(stuck.is_err());
    m.shadow().invalidate_end();
    read(&mut m, 0, 0x7000, 0x10_1000);
}

#[test]
fn a_table_that_changes_in_the_middle_of_a_fault_is_walked_again() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    let at = entry_at(0x5000, 1);
    m.in_fault(move |memory, shadow, fulfil| {
        use mmu::PhysMem;
        let view = memory.locked(&platform::MaySleep::at_entry());
        view.store(at, 0x101u64 << 12 | PWU).unwrap();
        assert!(shadow.is_plain(ROOT + 3), "not shadowed yet: nobody would be told");
        drop(view);
        let _ = fulfil;
    });
    read(&mut m, 0, 0x5000, 0x10_1000);
}

#[test]
fn use_is_told_once() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    assert!(!m.take_young(CLIENT + 0x10_0000, 1));
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert!(!m.take_young(CLIENT + 0x10_1000, 16));
    assert!(m.take_young(CLIENT + 0x10_0000, 1));
    assert!(!m.take_young(CLIENT + 0x10_0000, 1));
    m.guest_flush();
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert!(m.take_young(CLIENT, FRAMES));
}

#[test]
fn a_slot_that_goes_takes_its_translations_along() {
    let mut m = paged(1);
    assert!(m.set_slot(1, 0, 0x1000 << 12, 16, CLIENT + (0x1000 << 12)));
    map(&mut m, 0x5000, 0x1003, PWU);
    write(&mut m, 0, 0x5000, 7, 0x100_3000);
    assert!(m.set_slot(1, 0, 0, 0, 0));
    m.check();
    assert_eq!(m.access(0, Access::read(0x5000)), End::Device(0x100_3000));
    m.check();
    // Elsewhere, and moved.
    assert!(m.set_slot(1, 0, 0x1003 << 12, 16, CLIENT + (0x1000 << 12)));
    read(&mut m, 0, 0x5000, 0x100_3000);
    assert!(m.set_slot(1, 0, 0x1001 << 12, 16, CLIENT + (0x1000 << 12)));
    m.check();
    read(&mut m, 0, 0x5000, 0x100_3000);
}

#[test]
fn a_slot_that_comes_is_seen_where_a_device_was() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x1003, PWU);
    assert_eq!(m.access(0, Access::write(0x5000, 1)), End::Device(0x100_3000));
    assert!(m.set_slot(1, 0, 0x1000 << 12, 16, CLIENT + (0x1000 << 12)));
    write(&mut m, 0, 0x5000, 7, 0x100_3000);
}

#[test]
fn read_only_slots_are_read() {
    let mut m = paged(1);
    assert!(m.set_slot(1, KVM_MEM_READONLY, 0x1000 << 12, 16, CLIENT + (0x1000 << 12)));
    map(&mut m, 0x5000, 0x1003, PWU);
    assert_eq!(m.access(0, Access::write(0x5000, 1)), End::Device(0x100_3000));
    read(&mut m, 0, 0x5000, 0x100_3000);
    assert_eq!(m.access(0, Access::write(0x5000, 1)), End::Device(0x100_3000));
    m.check();
}

/// Firmware keeps page tables there.
#[test]
fn tables_in_read_only_slots_are_walked() {
    let mut m = machine(1);
    let rom = 0x1000;
    assert!(m.set_slot(1, 0, rom << 12, 16, CLIENT + (rom << 12)));
    for level in 0..3 {
        m.put((rom + level) << 12, (rom + level + 1) << 12 | PWU);
    }
    m.put((rom + 3) << 12 | 5 << 3, 0x100 << 12 | PWU);
    assert!(m.set_slot(1, 0, 0, 0, 0));
    assert!(m.set_slot(1, KVM_MEM_READONLY, rom << 12, 16, CLIENT + (rom << 12)));
    long(&mut m, 0);
    m.set_registers(0, |state| state.cr3 = rom << 12);
    read(&mut m, 0, 0x5000, 0x10_0000);
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
    assert_eq!(m.peek((rom + 3) << 12 | 5 << 3, 8), 0x100 << 12 | PWU);
}
