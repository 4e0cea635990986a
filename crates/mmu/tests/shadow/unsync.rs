//! Tables of the last level that the guest writes as it likes, and what it sees when it flushes.
use abi::KVM_MEM_LOG_DIRTY_PAGES;
use mmu::testing::{Access, End, Machine};
use x86::paging::{A, D, P, PS, W};

use crate::common::*;

/// The page table of a [`paged`] machine, and where the guest maps it.
const TABLE: u64 = ROOT + 3;
const MAPPED: u64 = 0x5000;

/// Page 0x6000 leads to frame 0x100 and has been used by every processor, the page table is mapped at [`MAPPED`], and in step.
fn mapped(cpus: usize) -> Machine {
    let mut m = paged(cpus);
    map(&mut m, MAPPED, TABLE, PWU);
    map(&mut m, 0x6000, 0x100, PWU);
    (0..cpus).for_each(|cpu| write(&mut m, cpu, 0x6000, 1, 0x10_0000));
    m.guest_flush();
    m.check();
    assert!(m.shadow().is_protected(TABLE));
    m
}

/// The guest of processor `cpu` writes the entry for `gva`, by its own mapping of the table.
#[track_caller]
fn set(m: &mut Machine, cpu: usize, gva: u64, entry: u64) {
    let offset = entry_at(gva, 1) & 0xfff;
    write(m, cpu, MAPPED | offset, entry, TABLE << 12 | offset);
}

#[test]
fn the_first_write_opens_a_table_and_the_next_ones_are_the_guests_own() {
    let mut m = mapped(1);
    let (emulated, opened) = (m.counter("pf_emulate"), m.counter("mmu_opened"));
    set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
    let taken = m.counter("pf_fixed") + m.counter("pf_spurious");
    for n in 0..100 {
        set(&mut m, 0, 0x10_0000 + (n << 12), (0x100 + n) << 12 | PWU);
    }
    assert_eq!(m.counter("pf_fixed") + m.counter("pf_spurious"), taken, "no exit");
    assert_eq!((m.counter("pf_emulate"), m.counter("mmu_opened")), (emulated, opened + 1));
    m.guest_flush();
    assert!(m.shadow().is_protected(TABLE) && m.counter("mmu_settled") > 0);
    read(&mut m, 0, 0x6000, 0x10_1000);
    for n in 0..100 {
        read(&mut m, 0, 0x10_0000 + (n << 12), (0x100 + n) << 12);
    }
}

#[test]
fn a_flush_of_one_page_shows_its_entry_and_leaves_the_table_open() {
    let mut m = mapped(1);
    map(&mut m, 0x7000, 0x110, PWU);
    read(&mut m, 0, 0x7000, 0x11_0000);
    set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
    set(&mut m, 0, 0x7000, 0x111 << 12 | PWU);
    // Until then it may go where it went.
    assert_eq!(m.access_inside(0, Access::read(0x6000)), Some(End::Done(0x10_0000)));
    m.guest_flush_page(0, 0x6fff);
    assert!(!m.shadow().is_protected(TABLE));
    read(&mut m, 0, 0x6000, 0x10_1000);
    assert_eq!(m.access(0, Access::read(0x7000)), End::Done(0x11_0000), "nobody has flushed that one");
    m.guest_flush_page(0, 0x7000);
    read(&mut m, 0, 0x7000, 0x11_1000);
}

#[test]
fn rights_that_the_guest_took_are_gone_after_a_flush() {
    for (lost, access, code) in [(P, Access::read(0x6000), 0), (W, Access::write(0x6000, 0), 3)] {
        for page in [false, true] {
            let mut m = mapped(1);
            let entry = m.peek(entry_at(0x6000, 1), 8);
            set(&mut m, 0, 0x6000, entry & !lost);
            if page {
                m.guest_flush_page(0, 0x6000)
            } else {
                m.guest_flush()
            }
            assert_eq!(m.access(0, access), End::Fault(code));
            m.check();
        }
    }
}

#[test]
fn a_page_that_only_loses_rights_takes_no_fault() {
    let mut m = mapped(1);
    let entry = m.peek(entry_at(0x6000, 1), 8);
    set(&mut m, 0, 0x6000, entry & !W);
    m.guest_flush();
    let fixed = m.counter("pf_fixed");
    read(&mut m, 0, 0x6000, 0x10_0000);
    assert_eq!(m.counter("pf_fixed"), fixed);
}

#[test]
fn accessed_and_dirty_bits_that_the_guest_takes_are_set_again_after_a_flush() {
    for page in [false, true] {
        let mut m = mapped(1);
        let at = entry_at(0x6000, 1);
        let entry = m.peek(at, 8);
        assert_eq!(entry & (A | D), A | D);
        set(&mut m, 0, 0x6000, entry & !(A | D));
        if page {
            m.guest_flush_page(0, 0x6000)
        } else {
            m.guest_flush()
        }
        read(&mut m, 0, 0x6000, 0x10_0000);
        assert_eq!(m.peek(at, 8) & (A | D), A);
        write(&mut m, 0, 0x6000, 1, 0x10_0000);
        assert_eq!(m.peek(at, 8) & (A | D), A | D);
    }
}

#[test]
fn every_processor_sees_it_when_it_flushes() {
    let mut m = mapped(2);
    set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
    m.guest_flush_of(1);
    assert_eq!(m.access(1, Access::read(0x6000)), End::Done(0x10_1000));
    m.guest_flush_of(0);
    read(&mut m, 0, 0x6000, 0x10_1000);
    // And by the page, as after a message from another.
    set(&mut m, 1, 0x6000, 0x102 << 12 | PWU);
    for cpu in [1, 0] {
        m.guest_flush_page(cpu, 0x6000);
        read(&mut m, cpu, 0x6000, 0x10_2000);
    }
}

/// The same with page 0x7000 of frame 0x110; the table is open, and processor 1 may write it.
fn open() -> Machine {
    let mut m = mapped(2);
    map(&mut m, 0x7000, 0x110, PWU);
    (0..2).for_each(|cpu| read(&mut m, cpu, 0x7000, 0x11_0000));
    m.guest_flush();
    set(&mut m, 1, 0x6000, 0x101 << 12 | PWU);
    m
}

/// Processor 1, in the guest, makes page 0x7000 lead to frame 0x111.
fn write_inside(m: &mut Machine) {
    let at = MAPPED | entry_at(0x7000, 1) & 0xfff;
    let end = m.access_inside(1, Access::write(at, 0x111 << 12 | PWU));
    assert_eq!(end, Some(End::Done(TABLE << 12 | at & 0xfff)));
}

/// Page 0x7000 leads to frame 0x111 for every processor that has flushed.
fn is_seen(mut m: Machine) {
    m.guest_flush();
    m.check();
    (0..2).for_each(|cpu| read(&mut m, cpu, 0x7000, 0x11_1000));
}

#[test]
fn a_write_between_closing_and_its_flush_is_seen() {
    let mut m = open();
    m.at_unlock(move |m| {
        if !m.shadow().is_protected(TABLE) {
            return false;
        }
        write_inside(m);
        true
    });
    m.guest_flush_of(0);
    is_seen(m);
}

#[test]
fn a_table_that_is_opened_again_while_it_is_closed_is_seen_as_it_is() {
    let mut m = mapped(2);
    set(&mut m, 1, 0x6000, 0x101 << 12 | PWU);
    let flushes = m.flushes();
    m.at_unlock(move |m| {
        // Behind the flush, and before the entries are looked at.
        if m.flushes() == flushes {
            return false;
        }
        set(m, 1, 0x6000, 0x102 << 12 | PWU);
        true
    });
    m.guest_flush_of(0);
    assert_eq!(m.access(0, Access::read(0x6000)), End::Done(0x10_2000));
    m.guest_flush();
    m.check();
}

#[test]
fn what_nobody_could_reach_before_is_never_old() {
    // A page table, and a directory above one, that an entry newly leads to.
    for level in [2, 3] {
        let mut m = mapped(1);
        set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
        let new = 1 << (12 + 9 * (level - 1));
        m.put(entry_at(new, level), (ROOT + 5 - level) << 12 | PWU);
        // By way of another page.
        assert_eq!(m.access(0, Access::read(new | MAPPED)), End::Done(TABLE << 12), "level {level}");
        assert_eq!(m.access_inside(0, Access::read(new | 0x6000)), None, "level {level}");
        assert_eq!(m.access(0, Access::read(new | 0x6000)), End::Done(0x10_1000), "level {level}");
    }
}

#[test]
fn a_table_that_is_also_a_directory_is_not_opened() {
    let mut m = mapped(1);
    // The page table is a directory at 1 GiB, whose entry 16 maps 2 MiB.
    let gva = 0x4000_0000 | 16 << 21;
    m.put(entry_at(0x4000_0000, 3), TABLE << 12 | PWU);
    let at = MAPPED | 16 << 3;
    write(&mut m, 0, at, 0x20_0000 | PS | PWU, TABLE << 12 | 16 << 3);
    m.guest_flush();
    read(&mut m, 0, gva, 0x20_0000);
    read(&mut m, 0, 0x6000, 0x10_0000);
    // Each write is seen at once.
    let opened = m.counter("mmu_opened");
    write(&mut m, 0, at, PS | PWU, TABLE << 12 | 16 << 3);
    read(&mut m, 0, gva, 0);
    set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
    read(&mut m, 0, 0x6000, 0x10_1000);
    assert_eq!(m.counter("mmu_opened"), opened);
}

#[test]
fn a_table_that_becomes_a_directory_is_closed_first() {
    let mut m = mapped(1);
    set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
    assert!(!m.shadow().is_protected(TABLE));
    m.put(entry_at(0x4000_0000, 3), TABLE << 12 | PWU);
    set(&mut m, 0, 16 << 12, 0x20_0000 | PS | PWU);
    assert_eq!(m.access(0, Access::read(0x4000_0000 | 16 << 21)), End::Done(0x20_0000));
    assert!(m.shadow().is_protected(TABLE));
    m.guest_flush();
    read(&mut m, 0, 0x6000, 0x10_1000);
}

#[test]
fn writes_to_an_open_table_are_in_the_dirty_log() {
    let mut m = mapped(1);
    assert!(m.set_slot(0, KVM_MEM_LOG_DIRTY_PAGES, 0, FRAMES, CLIENT));
    for n in 0..4 {
        set(&mut m, 0, 0x6000, (0x101 + n) << 12 | PWU);
        set(&mut m, 0, 0x7000, (0x101 + n) << 12 | PWU);
        // The machine looks that what was written is there.
        assert!(m.get_dirty_log(0));
        m.check();
    }
    m.guest_flush();
    read(&mut m, 0, 0x6000, 0x10_4000);
}

#[test]
fn the_host_takes_pages_that_an_open_table_no_longer_names() {
    let mut m = mapped(1);
    set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
    // Its entry still leads to frame 0x100.
    m.invalidate(CLIENT + (0x100 << 12), 1);
    m.check();
    assert_eq!(m.access(0, Access::read(0x6000)), End::Done(0x10_1000));
    // And the frame of the table itself.
    m.invalidate(CLIENT + (TABLE << 12), 1);
    m.check();
    set(&mut m, 0, 0x6000, 0x102 << 12 | PWU);
    m.guest_flush();
    read(&mut m, 0, 0x6000, 0x10_2000);
}

#[test]
fn there_are_only_so_many_and_the_oldest_is_closed_for_another() {
    let mut m = paged(1);
    // 200 page tables from frame 0x200 on, of which the first page is used; all are mapped by one table at 1 GiB.
    let tables = 200u64;
    m.put(entry_at(0x4000_0000, 3), 0x18 << 12 | PWU);
    m.put(0x18 << 12, 0x19 << 12 | PWU);
    for n in 0..tables {
        m.put(entry_at(n << 21, 2) + if n == 0 { 8 * 300 } else { 0 }, (0x200 + n) << 12 | PWU);
        m.put(0x19 << 12 | n << 3, (0x200 + n) << 12 | PWU);
        m.put((0x200 + n) << 12, (0x100 + n % 64) << 12 | PWU);
    }
    let gva = |n: u64| if n == 0 { 300 << 21 } else { n << 21 };
    m.guest_flush();
    (0..tables).for_each(|n| read(&mut m, 0, gva(n), (0x100 + n % 64) << 12));
    for round in 0..3 {
        for n in 0..tables {
            let value = (0x100 + (n + round) % 64) << 12 | PWU;
            write(&mut m, 0, 0x4000_0000 | n << 12, value, (0x200 + n) << 12);
        }
        m.guest_flush();
        m.check();
        (0..tables).for_each(|n| read(&mut m, 0, gva(n), (0x100 + (n + round) % 64) << 12));
    }
}

#[test]
fn a_table_that_nothing_leads_to_is_not_looked_at_and_ends_when_its_place_is_wanted() {
    let mut m = mapped(1);
    set(&mut m, 0, 0x6000, 0x101 << 12 | PWU);
    // The directory leads to another table; the old one is ordinary memory from now on.
    m.put(entry_at(0x1f_f000, 2), 0x40 << 12 | PWU);
    m.put(0x40 << 12 | 5 << 3, TABLE << 12 | PWU);
    m.guest_flush();
    let taken = m.counter("pf_fixed");
    for n in 0..8 {
        write(&mut m, 0, MAPPED | n << 3, n, TABLE << 12 | n << 3);
        m.guest_flush();
    }
    assert!(m.counter("pf_fixed") <= taken + 2, "it is not protected at each flush");
}
