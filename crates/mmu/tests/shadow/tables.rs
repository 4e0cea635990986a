//! What is shared, what is protected, and what a large page may contain.
use mmu::testing::{Access, End};
use x86::paging::{NX, P, PS, U, W};

use crate::common::*;

#[test]
fn pages_are_found_again_after_a_switch_of_address_spaces() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    // Another top table with the same directory below.
    m.put(0x20 << 12, (ROOT + 1) << 12 | PWU);
    read(&mut m, 0, 0x5000, 0x10_0000);
    let made = m.counter("mmu_cache_miss");
    m.set_registers(0, |state| state.cr3 = 0x20 << 12);
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert_eq!(m.counter("mmu_cache_miss"), made + 1, "the new top only");
    let fixed = m.counter("pf_fixed");
    m.set_registers(0, |state| state.cr3 = ROOT << 12);
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert_eq!((m.counter("mmu_cache_miss"), m.counter("pf_fixed")), (made + 1, fixed), "everything is still there");
}

#[test]
fn tables_in_their_own_address_space_are_protected_and_followed() {
    let mut m = paged(2);
    // Before the table is shadowed it is ordinary memory.
    map(&mut m, 0x5000, ROOT + 3, PWU);
    map(&mut m, 0x6000, 0x100, PWU);
    write(&mut m, 0, 0x5ff8, 0, (ROOT + 3) << 12 | 0xff8);
    read(&mut m, 1, 0x6000, 0x10_0000);
    // By its own mapping: entry 6 leads elsewhere.
    write(&mut m, 0, 0x5030, 0x101 << 12 | PWU, (ROOT + 3) << 12 | 0x30);
    m.guest_flush();
    read(&mut m, 1, 0x6000, 0x10_1000);
}

#[test]
fn a_frame_that_becomes_a_table_is_flushed_before_it_is_read() {
    let mut m = paged(2);
    map(&mut m, 0x5000, 0x100, PWU);
    // Processor 1 remembers frame 0x100 as writable.
    write(&mut m, 1, 0x5000, 0x20_0000 | PS | PWU, 0x10_0000);
    // Processor 0 begins to use it as a page directory, at 1 GiB.
    m.put(entry_at(0x4000_0000, 3), 0x100 << 12 | PWU);
    let flushes = m.flushes();
    read(&mut m, 0, 0x4000_0000, 0x20_0000);
    assert!(m.flushes() > flushes);
    // Processor 1 must not be able to change it unseen.
    write(&mut m, 1, 0x5000, PS | PWU, 0x10_0000);
    read(&mut m, 0, 0x4000_0000, 0);
}

#[test]
fn a_table_may_be_at_every_level_at_once() {
    let mut m = machine(1);
    // One frame that is top, directories and page table, by an entry that leads to itself.
    m.put(ROOT << 12 | 0xff8, ROOT << 12 | PWU);
    m.put(ROOT << 12, 0x100 << 12 | PWU);
    long(&mut m, 0);
    let own = 0xffff_ffff_ffff_f000;
    read(&mut m, 0, own, ROOT << 12);
    write(&mut m, 0, own | 8, 0x101 << 12 | PWU, ROOT << 12 | 8);
    m.guest_flush();
    read(&mut m, 0, 0xffff_ffff_ffe0_1000, 0x10_1000);
    // All four levels are one frame.
    assert_eq!(m.usage().1, 4);
}

#[test]
fn a_large_page_may_contain_tables() {
    let mut m = paged(1);
    m.put(entry_at(0x20_0000, 2), PWU | PS);
    map(&mut m, 0x5000, 0x100, PWU);
    // Written through the large page before and after the table is in use.
    let entry = 0x20_0000 | entry_at(0x5000, 1);
    write(&mut m, 0, entry, 0x101 << 12 | PWU, entry & 0x1f_ffff);
    m.guest_flush();
    read(&mut m, 0, 0x5000, 0x10_1000);
    m.guest_flush();
    let opened = m.counter("mmu_opened");
    write(&mut m, 0, entry, 0x102 << 12 | PWU, entry & 0x1f_ffff);
    assert!(m.counter("mmu_opened") > opened, "the piece that holds the table was protected");
    m.guest_flush();
    read(&mut m, 0, 0x5000, 0x10_2000);
    // Its neighbours are not.
    write(&mut m, 0, 0x21_0000, 9, 0x1_0000);
}

#[test]
fn gigabyte_pages_are_mapped_in_pieces() {
    let mut m = paged(1);
    m.put(entry_at(0x4000_0000, 3), PWU | PS);
    write(&mut m, 0, 0x4010_0008, 5, 0x10_0008);
    read(&mut m, 0, 0x4020_0000, 0x20_0000);
    // Where no memory is, a device.
    assert_eq!(m.access(0, Access::read(0x5000_0000)), End::Device(0x1000_0000));
    m.check();
}

#[test]
fn rights_come_from_all_levels() {
    for (level, bit, access, code) in [
        (4, W, Access::write(0x5000, 0), 3),
        (2, W, Access::write(0x5000, 0), 3),
        (1, W, Access::write(0x5000, 0), 3),
        (3, U, Access { user: true, ..Access::read(0x5000) }, 5),
        (1, U, Access { user: true, ..Access::read(0x5000) }, 5),
        (2, P, Access::read(0x5000), 0),
    ] {
        let mut m = paged(1);
        map(&mut m, 0x5000, 0x100, PWU);
        write(&mut m, 0, 0x5000, 0, 0x10_0000);
        let at = entry_at(0x5000, level);
        m.put(at, m.peek(at, 8) & !bit);
        m.guest_flush();
        assert_eq!(m.access(0, access), End::Fault(code), "level {level}");
        m.check();
        m.put(at, m.peek(at, 8) | bit);
        m.guest_flush();
        assert_eq!(m.access(0, access), End::Done(0x10_0000), "level {level}");
        m.check();
    }
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU | NX);
    let fetch = Access { fetch: true, ..Access::read(0x5000) };
    assert_eq!(m.access(0, fetch), End::Fault(0x11));
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert_eq!(m.access(0, fetch), End::Fault(0x11));
    // Without NXE the bit is reserved.
    m.set_registers(0, |state| state.efer &= !x86::Efer::NXE.bits());
    assert_eq!(m.access(0, Access::read(0x5000)), End::Fault(9));
    m.check();
}

#[test]
fn accessed_and_dirty_bits_are_the_guests() {
    use x86::paging::{A, D};
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    let at = entry_at(0x5000, 1);
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert_eq!(m.peek(at, 8) & (A | D), A);
    assert_eq!(m.peek(entry_at(0x5000, 4), 8) & (A | D), A);
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
    assert_eq!(m.peek(at, 8) & (A | D), A | D);
    // The guest clears them, flushes, and finds them set by the next use.
    m.put(at, 0x100 << 12 | PWU);
    m.guest_flush();
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert_eq!(m.peek(at, 8) & (A | D), A);
    m.put(at, 0x100 << 12 | PWU | A);
    m.guest_flush();
    write(&mut m, 0, 0x5000, 2, 0x10_0000);
    assert_eq!(m.peek(at, 8) & (A | D), A | D);
    // Also of large pages.
    let at = entry_at(0x20_0000, 2);
    m.put(at, 0x200 << 12 | PWU | PS);
    read(&mut m, 0, 0x20_0000, 0x20_0000);
    assert_eq!(m.peek(at, 8) & (A | D), A);
    write(&mut m, 0, 0x20_0000, 2, 0x20_0000);
    assert_eq!(m.peek(at, 8) & (A | D), A | D);
}
