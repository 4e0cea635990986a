//! Errors that Linux's shadow paging has had. Each case makes the situation, which needs a guest table that changed unseen
//! (a device wrote it), and must be harmless.
use mmu::testing::{Access, End};
use x86::paging::PS;

use crate::common::*;

/// CVE-2026-53359: a shadow page was kept as a child although its role was no longer the one that the walk wanted. Here a
/// directory entry for a large page becomes one for a page table in the same frame: the direct page that maps the
/// large page must not serve as the shadow of the table.
#[test]
fn a_child_of_another_role_is_not_used_again() {
    let mut m = paged(2);
    let directory = entry_at(0, 2);
    m.put(directory, 0x200 << 12 | PWU | PS);
    read(&mut m, 0, 0x5000, 0x20_5000);
    // Unseen: the same frame, as a table whose entry 6 leads elsewhere.
    m.dma(0x200 << 12 | 6 << 3, &(0x123u64 << 12 | PWU).to_le_bytes());
    m.dma(directory, &(0x200u64 << 12 | PWU).to_le_bytes());
    m.guest_flush();
    let flushes = m.flushes();
    read(&mut m, 0, 0x6000, 0x12_3000);
    assert!(m.flushes() > flushes, "every processor forgets the old child before the new one is there");
    read(&mut m, 1, 0x6000, 0x12_3000);
    // And back again: the table must not serve as the large page.
    m.dma(directory, &(0x200u64 << 12 | PWU | PS).to_le_bytes());
    m.guest_flush();
    read(&mut m, 0, 0x7000, 0x20_7000);
}

/// The same with rights: the direct page of a large page that was clean, and is dirty now, is another one.
#[test]
fn a_child_with_other_rights_is_not_used_again() {
    let mut m = paged(1);
    m.put(entry_at(0, 2), 0x200 << 12 | PWU | PS);
    read(&mut m, 0, 0x5000, 0x20_5000);
    write(&mut m, 0, 0x5000, 1, 0x20_5000);
    // The page is read-only at the next look, by an unseen change.
    m.dma(entry_at(0, 2), &((0x200 << 12 | PWU | PS) & !x86::paging::W).to_le_bytes());
    m.guest_flush();
    assert_eq!(m.access(0, Access::write(0x6000, 1)), End::Fault(3));
    read(&mut m, 0, 0x6000, 0x20_6000);
    assert_eq!(m.access(0, Access::write(0x5000, 1)), End::Fault(3));
    m.check();
}

/// CVE-2026-46113: an element of the reverse map was removed under a frame number that was computed anew, and the
/// element under the old number stayed behind. Here the guest's entry has changed unseen when its shadow goes.
#[test]
fn an_element_of_the_reverse_map_goes_by_the_frame_that_it_was_made_for() {
    for zapped_by_size in [false, true] {
        let mut m = paged(1);
        map(&mut m, 0x5000, 0x100, PWU);
        write(&mut m, 0, 0x5000, 7, 0x10_0000);
        m.dma(entry_at(0x5000, 1), &(0x101u64 << 12 | PWU).to_le_bytes());
        if zapped_by_size {
            m.shrink(1000);
        } else {
            m.unprotect(ROOT + 3 << 12);
        }
        m.check();
        // Whoever looks for the old frame's mappings must not meet what is gone, or what came in its place.
        m.invalidate(CLIENT + 0x10_0000, 1);
        m.check();
        m.guest_flush();
        read(&mut m, 0, 0x5000, 0x10_1000);
        m.invalidate(CLIENT + 0x10_1000, 1);
        m.check();
    }
}

/// CVE-2026-64561: a root was zapped under a vCPU that was in the middle of a fault, which then made entries in it, or
/// used it on. Here the host zaps it in that very moment.
#[test]
fn a_zapped_root_gets_no_entries_and_is_not_walked_again() {
    for cpus in [1, 3] {
        let mut m = paged(cpus);
        map(&mut m, 0x5000, 0x100, PWU);
        map(&mut m, 0x6000, 0x101, PWU);
        for cpu in 0..cpus {
            read(&mut m, cpu, 0x5000, 0x10_0000);
        }
        m.in_fault(|memory, shadow, fulfil| {
            let view = memory.locked(&platform::MaySleep::at_entry());
            let (result, due) = shadow.unprotect(&view, ROOT << 12);
            drop(view);
            fulfil(due);
            assert_eq!(result, Ok(true));
        });
        let zapped = m.counter("mmu_shadow_zapped");
        read(&mut m, 0, 0x6000, 0x10_1000);
        assert!(m.counter("mmu_shadow_zapped") > zapped);
        for cpu in 0..cpus {
            read(&mut m, cpu, 0x5000, 0x10_0000);
        }
        // Nothing keeps the old root any more.
        assert_eq!(m.usage().1, 4);
    }
}
