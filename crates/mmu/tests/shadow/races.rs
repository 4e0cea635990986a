//! What another processor, or another thread of the client, does at the worst moment: after a change of the shadow tables
//! and before its flush, or between a walk and what is installed for it. There are no threads here: the machine runs the
//! other one's part at that very place.
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use abi::KVM_MEM_LOG_DIRTY_PAGES;
use mmu::testing::{Access, End, Machine};
use x86::paging::{P, PS, U, W};

use crate::common::*;

/// Frame that becomes a page directory, and the page of the guest that maps it as ordinary memory.
const TABLE: u64 = 0x100;
const ALIAS: u64 = 0x5000;
/// What it leads to, and where.
const FROM: u64 = 0x4000_0000;
const TO: u64 = 0x20_0000;

/// Once frame [`TABLE`] has become a table, and before any flush, processor 1, which knows it as ordinary memory, makes
/// its first entry lead to address 0. The result tells whether that came about.
fn write_as_it_becomes_a_table(m: &Machine) -> Rc<Cell<bool>> {
    let written = Rc::new(Cell::new(false));
    let done = written.clone();
    m.at_unlock(move |m| {
        if !m.shadow().is_protected(TABLE) {
            return false;
        }
        let end = m.access_inside(1, Access::write(ALIAS, PS | PWU));
        assert_eq!(end, Some(End::Done(TABLE << 12)), "it remembers the page as writable");
        done.set(true);
        true
    });
    written
}

/// Two processors, of which 1 remembers frame [`TABLE`] as writable; from 1 GiB on it is to be a page directory.
fn about_to_become_a_table() -> Machine {
    let mut m = paged(2);
    map(&mut m, ALIAS, TABLE, PWU);
    write(&mut m, 1, ALIAS, TO | PS | PWU, TABLE << 12);
    m.put(entry_at(FROM, 3), TABLE << 12 | PWU);
    m
}

#[test]
fn a_new_table_is_not_read_while_a_processor_can_still_write_it() {
    let mut m = about_to_become_a_table();
    let written = write_as_it_becomes_a_table(&m);
    read(&mut m, 0, FROM, 0);
    assert!(written.get());
}

#[test]
fn a_new_table_is_not_read_before_the_flush_of_another_that_took_write_access_away() {
    let mut m = about_to_become_a_table();
    // Another thread begins a dirty log while the fault is looked into, and is slow: its flush has still to come.
    let late = Rc::new(RefCell::new(None));
    let begun = late.clone();
    m.in_fault(move |_, shadow, _| {
        let (result, due) = shadow.log_writes(TABLE..TABLE + 1);
        assert_eq!(result, Ok(()));
        begun.replace(Some(due));
    });
    let written = write_as_it_becomes_a_table(&m);
    read(&mut m, 0, FROM, 0);
    assert!(written.get());
    m.shadow().fulfil(late.take().expect("begun"), || panic!("it has been done"));
}

#[test]
fn a_log_that_begins_in_the_middle_of_a_fault_misses_nothing() {
    let mut m = paged(1);
    map(&mut m, 0x5000, 0x100, PWU);
    let again = m.counter("pf_again");
    let mut client = m.clone();
    m.in_fault(move |_, _, _| assert!(client.set_slot(0, KVM_MEM_LOG_DIRTY_PAGES, 0, FRAMES, CLIENT)));
    // What was found out before that knows of no log.
    write(&mut m, 0, 0x5000, 1, 0x10_0000);
    assert!(m.counter("pf_again") > again);
    assert!(m.get_dirty_log(0), "and the page is in it");
}

#[test]
fn pages_of_a_slot_that_is_just_going_can_be_taken_away() {
    let mut m = paged(2);
    let (base, client) = (0x1000 << 12, CLIENT + (0x1000 << 12));
    assert!(m.set_slot(1, 0, base, 16, client));
    map(&mut m, 0x5000, 0x1003, PWU);
    write(&mut m, 1, 0x5000, 7, 0x100_3000);
    let taken = Rc::new(Cell::new(false));
    let done = taken.clone();
    m.at_unlock(move |m| {
        if m.peek(0x100_3000, 8) == 7 {
            return false;
        }
        // No published slot says that this is the guest's memory, but it is still mapped.
        m.invalidate(client, 16);
        assert_eq!(m.access_inside(1, Access::read(0x5000)), None, "nothing may lead to the host's page any more");
        done.set(true);
        true
    });
    assert!(m.set_slot(1, 0, 0, 0, 0));
    assert!(taken.get());
    m.check();
    assert_eq!(m.access(1, Access::read(0x5000)), End::Device(0x100_3000));
}

/// Until the next flush, a write by processor 1 to the page of `gva` leaves the guest, whatever it finds there. How often it tried.
fn unwritable_until_flushed(m: &Machine, gva: u64) -> Rc<Cell<u32>> {
    let tries = Rc::new(Cell::new(0));
    let (count, flushes) = (tries.clone(), m.flushes());
    m.at_unlock(move |m| {
        if m.flushes() != flushes {
            return true;
        }
        assert_eq!(m.access_inside(1, Access::write(gva, 1)), None, "what comes next is there before the flush");
        count.set(count.get() + 1);
        false
    });
    tries
}

/// Processors may report a machine check when one page has two translations, for instance of different sizes.
#[test]
fn no_table_is_replaced_before_every_processor_has_forgotten_it() {
    let mut m = paged(2);
    map(&mut m, 0x5000, 0x100, PWU);
    // Shadowed in two roles: as a table that cannot be written through, and as another.
    m.put(entry_at(0, 2), (ROOT + 3) << 12 | P | U);
    m.put(entry_at(0x20_0000, 2), (ROOT + 3) << 12 | PWU);
    read(&mut m, 1, 0x5000, 0x10_0000);
    write(&mut m, 0, 0x20_5000, 1, 0x10_0000);
    // Now it is the same in both places.
    m.put(entry_at(0, 2), m.peek(entry_at(0, 2), 8) | W);
    let tries = unwritable_until_flushed(&m, 0x5000);
    write(&mut m, 0, 0x5000, 2, 0x10_0000);
    assert!(tries.get() > 0);
    write(&mut m, 1, 0x5000, 3, 0x10_0000);
}

#[test]
fn no_page_is_replaced_before_every_processor_has_forgotten_it() {
    let mut m = paged(2);
    map(&mut m, 0x5000, 0x100, P | U);
    read(&mut m, 1, 0x5000, 0x10_0000);
    // The client's device changes the table, unseen.
    m.dma(entry_at(0x5000, 1), &(0x101 << 12 | PWU).to_le_bytes());
    let tries = unwritable_until_flushed(&m, 0x5000);
    write(&mut m, 0, 0x5000, 2, 0x10_1000);
    assert!(tries.get() > 0);
    write(&mut m, 1, 0x5000, 3, 0x10_1000);
}

#[test]
fn a_root_that_goes_while_processors_walk_it_is_kept_until_the_last_has_left_it() {
    let mut m = paged(2);
    map(&mut m, 0x5000, 0x100, PWU);
    for cpu in [0, 1] {
        read(&mut m, cpu, 0x5000, 0x10_0000);
    }
    assert!(m.unprotect(ROOT << 12));
    m.check();
    // Both are still in the guest: they walk a page without entries.
    assert_eq!([0, 1].map(|cpu| m.access_inside(cpu, Access::read(0x5000))), [None, None]);
    read(&mut m, 0, 0x5000, 0x10_0000);
    assert_eq!(m.access_inside(1, Access::read(0x5000)), None);
    let flushes = m.flushes();
    read(&mut m, 1, 0x5000, 0x10_0000);
    assert_eq!(m.flushes(), flushes + 1, "nothing is freed without a flush after the last one has let it go");
}
