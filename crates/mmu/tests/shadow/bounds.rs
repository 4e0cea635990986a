//! The bound on shadow pages (row B11).
use mmu::{shadow::LEAST_PAGES, testing::Machine};

use crate::common::*;

/// A page table for each 2 MiB of the first `count`, all in use: three shadow pages and one for each.
fn many(m: &mut Machine, count: u64) {
    for n in 0..count {
        m.put(entry_at(n << 21, 2), (0x80 + n) << 12 | PWU);
        m.put((0x80 + n) << 12, (0x200 + n) << 12 | PWU);
        read(m, 0, n << 21, (0x200 + n) << 12);
    }
}

#[test]
fn a_guest_cannot_have_more_than_the_bound() {
    let mut m = paged(1);
    many(&mut m, 300);
    let (limit, pages) = m.usage();
    assert!(limit == LEAST_PAGES && pages <= limit, "{pages} of {limit}");
    assert!(m.counter("mmu_recycled") >= 300 - LEAST_PAGES as u64);
    m.set_limit(1000);
    many(&mut m, 300);
    assert_eq!(m.usage(), (1000, 303));
    m.set_limit(100);
    m.check();
    assert!(m.usage().1 <= 100);
    m.set_limit(1);
    assert_eq!(m.usage().0, LEAST_PAGES);
}

#[test]
fn the_path_of_each_processor_is_allowed_beyond_the_bound() {
    const CPUS: u64 = 20;
    let mut m = machine(CPUS as usize);
    for n in 0..CPUS {
        let top = 0x40 + 4 * n;
        for level in 0..4 {
            m.put((top + level) << 12, if level < 3 { top + level + 1 } else { 0x100 + n } << 12 | PWU);
        }
        long(&mut m, n as usize);
        m.set_registers(n as usize, |state| state.cr3 = top << 12);
    }
    // Four tables each: 80 in all, and none has to go for another.
    for _ in 0..2 {
        for n in 0..CPUS {
            read(&mut m, n as usize, 0, (0x100 + n) << 12);
        }
        assert_eq!(m.usage(), (LEAST_PAGES, 4 * CPUS as usize));
    }
    assert_eq!(m.counter("mmu_recycled"), 0);
}

#[test]
fn the_bound_follows_the_guests_memory_until_it_is_set() {
    let mut m = machine(1);
    assert!(m.set_slot(1, 0, 1 << 32, 10_000, CLIENT + (1 << 32)));
    assert_eq!(m.usage().0, (10_000 + FRAMES as usize) / 50);
    m.set_limit(77);
    assert!(m.set_slot(1, 0, 0, 0, 0));
    assert_eq!(m.usage().0, 77);
}

#[test]
fn pages_in_use_stay_longest() {
    let mut m = paged(1);
    m.set_limit(1000);
    many(&mut m, 40);
    // The first ten are used again; the processor shows that in the entries that lead there.
    m.shrink(0);
    m.guest_flush();
    let before = m.counter("mmu_recycled");
    // A look at all: none is old yet, so that their accessed bits are taken.
    assert_eq!(m.shrink(1), 1);
    for n in 0..10u64 {
        read(&mut m, 0, n << 21, (0x200 + n) << 12);
    }
    m.guest_flush();
    let fixed = m.counter("pf_fixed");
    for n in 0..10u64 {
        read(&mut m, 0, n << 21, (0x200 + n) << 12);
    }
    assert_eq!(m.counter("pf_fixed"), fixed);
    assert_eq!(m.shrink(20), 20);
    for n in 0..10u64 {
        read(&mut m, 0, n << 21, (0x200 + n) << 12);
    }
    assert!(m.counter("pf_fixed") <= fixed + 1, "what is in use was spared");
    assert_eq!(m.counter("mmu_recycled"), before + 21);
}

#[test]
fn the_host_gets_pages_back_but_not_those_that_are_roots() {
    let mut m = paged(2);
    many(&mut m, 10);
    assert_eq!(m.usage().1, 13);
    read(&mut m, 1, 0, 0x20_0000);
    assert_eq!(m.shrink(1000), 12);
    m.check();
    assert_eq!(m.usage().1, 1);
    many(&mut m, 10);
}
