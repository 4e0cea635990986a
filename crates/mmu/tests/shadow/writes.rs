//! Writes to guest tables by the hypervisor: in whole, in part, across entries, of nothing new; and the end of a table.
use mmu::testing::{Access, End};

use crate::common::*;

/// Two neighbouring pages are mapped and in use.
fn two() -> mmu::testing::Machine {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    map(&mut m, 0x6000, 0x101, PWU);
    write(&mut m, 0, 0x5000, 0, 0x10_0000);
    write(&mut m, 0, 0x6000, 0, 0x10_1000);
    m
}

#[test]
fn a_write_that_changes_nothing_takes_nothing_away() {
    let mut m = two();
    let at = entry_at(0x5000, 1);
    let (updated, flushes, zapped) = (m.counter("mmu_pte_updated"), m.flushes(), m.counter("mmu_shadow_zapped"));
    for _ in 0..10 {
        m.put(at, m.peek(at, 8));
        m.check();
    }
    let fixed = m.counter("pf_fixed");
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
    assert_eq!((m.counter("mmu_pte_updated"), m.flushes(), m.counter("pf_fixed")), (updated, flushes, fixed));
    assert_eq!(m.counter("mmu_shadow_zapped"), zapped, "and is no flood");
}

#[test]
fn a_write_that_adds_rights_takes_nothing_away() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU & !x86::paging::W);
    read(&mut m, 0, 0x5000, 0x10_0000);
    let updated = m.counter("mmu_pte_updated");
    let at = entry_at(0x5000, 1);
    m.put(at, m.peek(at, 8) | x86::paging::W | x86::paging::D | 1 << 9);
    assert_eq!(m.counter("mmu_pte_updated"), updated);
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
}

#[test]
fn writes_of_every_size_hit_the_entries_that_they_touch() {
    for (offset, len) in
        [(0, 8), (0, 1), (1, 1), (1, 2), (0, 4), (4, 4), (6, 2), (6, 4), (4, 8), (7, 1), (7, 2), (1, 16), (0, 16)]
    {
        let mut m = two();
        let at = entry_at(0x5000, 1) + offset;
        // Everything that is touched becomes zero.
        m.write(at, &vec![0; len]);
        m.guest_flush();
        m.check();
        for (gva, entry) in [(0x5000, entry_at(0x5000, 1)), (0x6000, entry_at(0x6000, 1))] {
            let present = m.peek(entry, 8) & 1 != 0;
            match m.access(0, Access::read(gva)) {
                End::Fault(0) => assert!(!present, "{gva:#x} after {len} bytes at {offset}"),
                End::Done(gpa) => assert_eq!((present, gpa), (true, m.peek(entry, 8) & !0xfff & !(1 << 63))),
                End::Device(gpa) => assert_eq!((present, gpa), (true, m.peek(entry, 8) & !0xfff)),
                end => panic!("{end:?}"),
            }
            m.check();
        }
    }
}

#[test]
fn a_write_at_the_end_of_a_table_touches_the_last_entry() {
    let mut m = paged(1);
    map(&mut m, 0x1f_f000, 0x100, PWU);
    read(&mut m, 0, 0x1f_f000, 0x10_0000);
    m.write(entry_at(0x1f_f000, 1) + 7, &[0x80]);
    m.guest_flush();
    m.check();
    assert_eq!(m.access(0, Access { fetch: true, ..Access::read(0x1f_f000) }), End::Fault(0x11));
}

#[test]
fn what_a_device_wrote_meanwhile_does_not_hide_a_change() {
    let mut m = two();
    let at = entry_at(0x5000, 1);
    // The page is no table for a while: a device writes zeros, and the guest clears it before it is one again.
    m.dma(at, &[0; 8]);
    m.put(at, 0);
    m.guest_flush();
    assert_eq!(m.access(0, Access::read(0x5000)), End::Fault(0));
    m.check();
}

#[test]
fn a_flood_of_writes_ends_a_table() {
    let mut m = two();
    // A directory is written through a large page, to entries that nobody uses.
    m.put(entry_at(0x20_0000, 2), PWU | x86::paging::PS);
    m.put(entry_at(0x4000_0000, 3), 0x30 << 12 | PWU);
    m.put(0x30 << 12, PWU | x86::paging::PS);
    read(&mut m, 0, 0x4000_0000, 0);
    let unused = 0x30 << 12 | 0x400;
    let emulated = m.counter("pf_emulate");
    for n in 0..64 {
        write(&mut m, 0, 0x20_0000 | unused + 8 * n, n << 12 | 2, unused + 8 * n);
    }
    assert!(m.counter("mmu_flooded") > 0);
    assert!(m.counter("pf_emulate") - emulated < 64, "not each write is emulated");
    read(&mut m, 0, 0x5000, 0x10_0000);
}

#[test]
fn one_write_that_is_no_entrys_ends_a_table() {
    let cases = [
        (0, 8, false),
        (4, 4, false),
        // Flags set by a byte operation.
        (0, 1, false),
        (1, 1, true),
        (4, 1, true),
        (0, 2, true),
        (2, 4, true),
        (4, 6, true),
    ];
    for (n, (offset, len, ends)) in cases.into_iter().enumerate() {
        let mut m = two();
        let flooded = m.counter("mmu_flooded");
        m.write(entry_at(0x1000_0000, 2) + offset, &[2 * n as u8 + 2; 8][..len]);
        assert_eq!(m.counter("mmu_flooded") > flooded, ends, "{len} bytes at {offset}");
        m.check();
    }
}

#[test]
fn use_between_writes_is_no_flood() {
    let mut m = two();
    for n in 0..20 {
        let flooded = m.counter("mmu_flooded");
        map(&mut m, 0x8000, 0x100 + n, PWU);
        read(&mut m, 0, 0x8000, (0x100 + n) << 12);
        assert_eq!(m.counter("mmu_flooded"), flooded);
    }
}

#[test]
fn a_root_that_leads_nowhere_is_remembered_all_the_same() {
    let mut m = paged(1);
    // A fault of the guest's in the upper half, of which nothing is there: the root stays empty.
    assert!(matches!(m.access(0, Access::read(1 << 40)), End::Fault(_)));
    let before = m.flushes();
    assert!(m.unprotect(ROOT << 12));
    assert_eq!(m.flushes(), before + 1, "the processor walks it until it is told");
    m.check();
}

#[test]
fn a_frame_is_unprotected_when_its_write_cannot_be_emulated() {
    let mut m = two();
    assert!(m.unprotect((ROOT + 3) << 12 | 0x123));
    m.check();
    assert!(!m.unprotect((ROOT + 3) << 12), "once");
    assert!(!m.unprotect(0x100 << 12), "no table");
    read(&mut m, 0, 0x5000, 0x10_0000);
    read(&mut m, 0, 0x6000, 0x10_1000);
}

#[test]
fn narrow_tables_are_followed_in_all_their_parts() {
    let mut m = machine(1);
    m.set_registers(0, |state| {
        state.cr0 = (x86::Cr0::PE | x86::Cr0::PG | x86::Cr0::WP).bits();
        state.cr3 = ROOT << 12;
        state.refresh();
    });
    // 1024 entries of 4 bytes: a page table for each quarter of the address space, and both halves of each.
    for quarter in 0..4u64 {
        let directory = ROOT << 12 | (quarter * 256 + 3) * 4;
        m.write(directory, &((0x20 + quarter) as u32 * 0x1000 | 7).to_le_bytes());
        for half in 0..2u64 {
            let index = half * 512 + 5;
            let (entry, page) = ((0x20 + quarter) << 12 | index * 4, 0x100 + quarter * 2 + half);
            m.write(entry, &(page as u32 * 0x1000 | 7).to_le_bytes());
            let gva = (quarter * 256 + 3) << 22 | index << 12;
            write(&mut m, 0, gva, 1, page << 12);
            // By one byte, by two entries at once.
            m.write(entry + 1, &[0x10]);
            m.guest_flush();
            let moved = u64::from(m.peek(entry, 4) as u32) & !0xfff;
            read(&mut m, 0, gva, moved);
            m.write(entry - 4, &[0; 8]);
            m.guest_flush();
            assert_eq!(m.access(0, Access::read(gva)), End::Fault(0));
            m.check();
        }
    }
}

/// Aliases are not chained: what one leads to is not looked for in another.
#[test]
fn a_table_behind_an_alias_is_not_looked_for_behind_another() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    assert!(m.set_alias(0, 0x300 << 12, 1, (ROOT + 3) << 12));
    assert!(m.set_alias(1, (ROOT + 3) << 12, 1, 0x200 << 12));
    m.put(entry_at(0, 2), 0x300 << 12 | PWU);
    m.guest_flush();
    read(&mut m, 0, 0x5000, 0x10_0000);
}
