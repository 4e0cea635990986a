//! What is mapped before its first use.
use mmu::testing::Machine;
use x86::paging::{A, D, PS};

use crate::common::*;

/// A machine whose gva 0x5000 to 0xc000 are frames 0x200 to 0x207, each of which has been used.
fn used() -> Machine {
    let mut m = paged(1);
    for n in 0..8 {
        map(&mut m, 0x5000 + (n << 12), 0x200 + n, PWU);
        write(&mut m, 0, 0x5000 + (n << 12), n, 0x20_0000 + (n << 12));
    }
    m
}

/// Faults that `gva` and the next seven pages take.
fn faults(m: &mut Machine, gva: u64) -> u64 {
    let before = m.counter("pf_fixed");
    for n in 0..8 {
        read(m, 0, gva + (n << 12), 0x20_0000 + (n << 12));
    }
    m.counter("pf_fixed") - before
}

#[test]
fn the_rest_of_a_large_page_comes_along() {
    let mut m = used();
    m.put(entry_at(0x20_0000, 2), 0x200 << 12 | PWU | PS);
    assert_eq!(faults(&mut m, 0x20_0000), 1);
    assert_eq!(m.counter("pf_ahead"), 7);
    // Until the guest's entry is dirty, writes fault, and say so there.
    write(&mut m, 0, 0x20_3000, 3, 0x20_3000);
    assert_eq!(m.peek(entry_at(0x20_0000, 2), 8) & (A | D), A | D);
}

#[test]
fn nothing_behind_the_slot_or_below_an_alias_comes_along() {
    let mut m = used();
    assert!(m.set_alias(0, 0x20_4000, 1, 0x10_0000));
    m.put(entry_at(0x20_0000, 2), 0x200 << 12 | PWU | PS);
    read(&mut m, 0, 0x20_0000, 0x20_0000);
    assert_eq!(m.counter("pf_ahead"), 0);
    read(&mut m, 0, 0x20_5000, 0x20_5000);
    assert_eq!(m.counter("pf_ahead"), 2, "the last two that the host has");
}

#[test]
fn the_hosts_pages_are_not_brought_in() {
    let mut m = paged(1);
    m.put(entry_at(0x20_0000, 2), 0x200 << 12 | PWU | PS);
    assert_eq!((faults(&mut m, 0x20_0000), m.counter("pf_ahead")), (8, 0));
}
