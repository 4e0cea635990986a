//! Nested tables: accesses at guest-physical addresses on small and large pages, while the host, the client and the dirty
//! log take them away. Each access is held against the slots, and the auditor looks after it.
use std::{cell::Cell, rc::Rc};

use abi::{KVM_MEM_LOG_DIRTY_PAGES as LOG, KVM_MEM_READONLY};
use mmu::{
    shadow::{EntryFormat, LEAST_PAGES, Resolved},
    testing::{Access, End, Machine},
};

/// Where the client keeps the first slot: a multiple of 2 MiB.
const CLIENT: u64 = 0x5000_0000_0000;
/// Large pages of the first slot.
const LARGE: u64 = 3;
const FRAMES: u64 = LARGE * 512;
const UNIT: u64 = 2 << 20;

/// Processors on a slot of zeros, behind which the host has small pages.
fn machine(cpus: usize) -> Machine {
    let mut machine = Machine::nested(cpus, EntryFormat::X86);
    assert!(machine.set_slot(0, 0, 0, FRAMES, CLIENT));
    machine
}

/// The same with large pages.
fn large(cpus: usize) -> Machine {
    let machine = machine(cpus);
    (0..LARGE).for_each(|n| machine.make_large(CLIENT + n * UNIT));
    machine
}

#[track_caller]
fn read(machine: &mut Machine, cpu: usize, gpa: u64) {
    assert_eq!(machine.access(cpu, Access::read(gpa)), End::Done(gpa));
    machine.check();
}

#[track_caller]
fn write(machine: &mut Machine, cpu: usize, gpa: u64, value: u64) {
    assert_eq!(machine.access(cpu, Access::write(gpa, value)), End::Done(gpa));
    machine.check();
}

#[test]
fn small_pages_are_mapped_one_by_one_for_all_processors() {
    let mut m = machine(2);
    let fetch = Access { fetch: true, ..Access::read(0x3000) };
    assert_eq!(m.access(0, fetch), End::Done(0x3000));
    write(&mut m, 0, 0x5008, 7);
    read(&mut m, 0, 0x20_0000);
    assert_eq!(m.leaves(), (3, 0));
    let faults = m.counter("pf_fixed");
    // The other processor walks the same tables.
    write(&mut m, 1, 0x5008, 8);
    read(&mut m, 1, 0x3000);
    assert_eq!((m.counter("pf_fixed"), m.flushes()), (faults, 0), "rights that are gained need no flush");
}

#[test]
fn large_pages_are_mapped_at_once() {
    let mut m = large(1);
    read(&mut m, 0, UNIT + 0x1000);
    assert_eq!((m.leaves(), m.counter("pf_large")), ((1, 1), 1));
    for gpa in (UNIT..2 * UNIT).step_by(0x1f000) {
        write(&mut m, 0, gpa, gpa);
    }
    assert_eq!((m.leaves(), m.counter("pf_fixed")), ((1, 1), 1));
    read(&mut m, 0, 0);
    write(&mut m, 0, 2 * UNIT, 1);
    assert_eq!(m.leaves(), (3, 3));
}

#[test]
fn what_is_not_aligned_alike_is_mapped_in_small_pages() {
    // (base in the guest, frames, where in the client)
    let cases = [
        // Not at the same place within 2 MiB.
        (0, 512, CLIENT + 0x1000),
        (1, 1023, CLIENT),
        // Too short: to the left, to the right.
        (0, 511, CLIENT),
        (1, 511, CLIENT + 0x1000),
    ];
    for (base, frames, client) in cases {
        let mut m = Machine::nested(1, EntryFormat::X86);
        assert!(m.set_slot(0, 0, base << 12, frames, client));
        m.make_large(client);
        m.make_large(client + UNIT);
        read(&mut m, 0, (base + 5) << 12);
        read(&mut m, 0, (base + frames - 1) << 12);
        assert_eq!(m.leaves(), (2, 0), "{base:#x} {frames:#x} {client:#x}");
    }
    // From the second page of a large one, aligned alike: only the whole ones.
    let mut m = Machine::nested(1, EntryFormat::X86);
    assert!(m.set_slot(0, 0, 0x1000, 1023, CLIENT + 0x1000));
    m.make_large(CLIENT);
    m.make_large(CLIENT + UNIT);
    read(&mut m, 0, 0x1000);
    assert_eq!(m.leaves(), (1, 0));
    read(&mut m, 0, UNIT);
    assert_eq!(m.leaves(), (2, 1));
}

#[test]
fn aliases_are_mapped_beside_their_target() {
    let mut m = large(1);
    assert!(m.set_alias(0, 0x1f_e000, 2, 0x40_0000));
    // An alias among the frames: not at once.
    assert_eq!(m.access(0, Access::write(0x1f_f008, 3)), End::Done(0x40_1008));
    m.check();
    read(&mut m, 0, 0x1f_d000);
    assert_eq!(m.leaves(), (2, 0));
    // The target is a large page still, and both go with the host's page.
    write(&mut m, 0, 0x40_1008, 4);
    assert_eq!(m.leaves(), (3, 1));
    assert_eq!(m.access(0, Access::read(0x1f_f008)), End::Done(0x40_1008));
    m.invalidate(CLIENT + 0x40_1000, 1);
    assert_eq!(m.leaves(), (1, 0));
    m.check();
    assert_eq!(m.access(0, Access::read(0x1f_f008)), End::Done(0x40_1008));
    read(&mut m, 0, 0x40_1008);
    // An alias that goes takes its translation along.
    assert!(m.set_alias(0, 0, 0, 0));
    m.check();
    read(&mut m, 0, 0x1f_f008);
    // A window that begins where the large page ends.
    assert!(m.set_alias(0, UNIT, 1, 0));
    m.make_large(CLIENT);
    read(&mut m, 0, 0x1f_f008);
    assert_eq!(m.leaves(), (1, 1));
}

#[test]
fn writes_to_a_logged_page_divide_the_large_one() {
    let mut m = large(2);
    for cpu in [0, 1] {
        write(&mut m, cpu, 0x5000, 1);
    }
    let flushes = m.flushes();
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    assert!(m.flushes() > flushes, "write access is taken away everywhere");
    m.check();
    // Reading goes on as before.
    let faults = m.counter("pf_fixed");
    read(&mut m, 1, 0x1_0000);
    assert_eq!((m.leaves(), m.counter("pf_fixed")), ((1, 1), faults));
    write(&mut m, 0, 0x5000, 2);
    assert_eq!((m.leaves(), m.counter("mmu_large_split")), ((512, 0), 1));
    // All other pages are there, to be read.
    let faults = m.counter("pf_fixed");
    for gpa in (0..UNIT).step_by(0x1000) {
        read(&mut m, 1, gpa);
    }
    assert_eq!(m.counter("pf_fixed"), faults);
    assert!(m.get_dirty_log(0));
    m.check();
    for cpu in [0, 1, 0] {
        write(&mut m, cpu, 0x5000, 3);
        write(&mut m, cpu, 0x6000, 3);
        assert!(m.get_dirty_log(0));
        m.check();
    }
    // What is met for the first time: read, then written.
    read(&mut m, 0, UNIT);
    assert_eq!(m.leaves(), (513, 1));
    write(&mut m, 0, UNIT, 1);
    assert_eq!(m.leaves(), (1024, 0));
    // Written at once.
    write(&mut m, 0, 2 * UNIT, 1);
    assert_eq!(m.leaves(), (1025, 0));
    read(&mut m, 0, 2 * UNIT + 0x1000);
    assert_eq!(m.leaves(), (1026, 0), "beside pages that are logged for themselves");
    assert!(m.get_dirty_log(0));
}

#[test]
fn large_pages_are_back_when_the_log_has_ended() {
    let mut m = large(2);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    for gpa in [0x5000, UNIT, 2 * UNIT] {
        write(&mut m, 0, gpa, 1);
        write(&mut m, 1, gpa, 1);
    }
    assert_eq!(m.leaves(), (3, 0));
    assert!(m.set_slot(0, 0, 0, FRAMES, CLIENT));
    m.check();
    assert_eq!(m.leaves(), (0, 0));
    write(&mut m, 0, 0x5000, 2);
    read(&mut m, 1, UNIT);
    assert_eq!(m.leaves(), (2, 2));
    assert!(!m.get_dirty_log(0));
}

/// Only the slot's own.
#[test]
fn the_end_of_a_log_leaves_other_slots_alone() {
    let mut m = machine(1);
    assert!(m.set_slot(1, LOG, 0x1000_0000, 512, CLIENT + 0x1000_0000));
    write(&mut m, 0, 0x5000, 1);
    write(&mut m, 0, 0x1000_0000, 1);
    assert_eq!(m.leaves(), (2, 0));
    assert!(m.set_slot(1, 0, 0x1000_0000, 512, CLIENT + 0x1000_0000));
    assert_eq!(m.leaves(), (1, 0));
}

#[test]
fn a_part_that_the_host_takes_away_takes_all_of_a_large_page() {
    for (first, count) in [(0, 1), (511, 1), (5, 3), (0, 512), (511, 2)] {
        let mut m = large(2);
        for cpu in [0, 1] {
            write(&mut m, cpu, 0x7000, 1);
            read(&mut m, cpu, 2 * UNIT);
        }
        let flushes = m.flushes();
        m.invalidate(CLIENT + (first << 12), count);
        assert_eq!(m.flushes(), flushes + 1);
        assert_eq!(m.leaves(), (1, 1));
        m.check();
        // What is left of it is in small pages.
        for cpu in [0, 1] {
            read(&mut m, cpu, 0x7000);
            read(&mut m, cpu, first << 12);
        }
        assert_eq!(m.leaves(), (if first == 7 { 2 } else { 3 }, 1));
        // Until the host puts a large one there again.
        m.make_large(CLIENT);
        write(&mut m, 1, 0x9000, 1);
        assert_eq!(m.leaves(), (2, 2));
        read(&mut m, 0, 0x7000);
    }
    // Beside it.
    let mut m = large(1);
    read(&mut m, 0, UNIT);
    let flushes = m.flushes();
    m.invalidate(CLIENT, 512);
    m.invalidate(CLIENT + 2 * UNIT, 512);
    assert_eq!((m.leaves(), m.flushes()), ((1, 1), flushes));
}

/// Many frames, few leaves.
#[test]
fn a_range_that_covers_everything_is_looked_at_by_leaves() {
    let mut m = large(1);
    assert!(m.set_slot(1, LOG, 0x1000_0000, 512, CLIENT + 0x1000_0000));
    write(&mut m, 0, 0x1000_0000, 1);
    read(&mut m, 0, 0);
    read(&mut m, 0, 2 * UNIT);
    assert_eq!(m.leaves(), (3, 2));
    assert!(m.take_young(CLIENT + 0x1000, 1));
    assert!(!m.take_young(CLIENT, 512));
    m.invalidate(CLIENT + UNIT, 512);
    assert_eq!(m.leaves(), (3, 2));
    m.invalidate(CLIENT + 0x1f_f000, 512);
    assert_eq!(m.leaves(), (2, 1));
    m.invalidate(CLIENT, FRAMES);
    assert_eq!(m.leaves(), (1, 0));
    m.check();
}

/// A client may lay any number of slots over the same memory: by frames, if they are few, and by leaves.
#[test]
fn memory_that_goes_goes_from_all_its_slots() {
    let mut m = machine(1);
    assert!(m.set_slot(1, 0, 0x1000_0000, 512, CLIENT + UNIT));
    for (first, count) in [(1, 1), (0, 512)] {
        for gpa in [0x5000, UNIT + 0x1000, 0x1000_1000] {
            // Of two addresses of the same memory the machine tells one.
            assert!(matches!(m.access(0, Access::read(gpa)), End::Done(_)));
        }
        assert_eq!(m.leaves(), (3, 0));
        m.invalidate(CLIENT + UNIT + (first << 12), count);
        assert_eq!(m.leaves(), (1, 0));
        m.check();
    }
}

#[test]
fn an_invalidation_in_the_middle_of_a_fault_starts_it_over() {
    for pages in [1, 512] {
        let mut m = large(1);
        m.invalidate_in_fault(CLIENT + 0x10_0000, pages);
        read(&mut m, 0, 0x10_0000);
        assert!(m.counter("pf_again") > 0);
        assert_eq!(m.leaves(), (1, 0));
    }
}

#[test]
fn a_log_that_begins_in_the_middle_of_a_fault_misses_nothing() {
    let mut m = large(1);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    read(&mut m, 0, 0);
    assert!(m.get_dirty_log(0));
    m.in_fault(|_, shadow, fulfil| {
        // As its reader does after it has taken the bits.
        let (result, due) = shadow.pages_cleaned(0, !0);
        assert_eq!(result, Ok(()));
        fulfil(due);
    });
    write(&mut m, 0, 0x5000, 1);
    assert!(m.get_dirty_log(0));
    m.check();
    write(&mut m, 0, 0x5000, 1);
    assert!(m.get_dirty_log(0));
}

/// The slots change between the look and the lock.
#[test]
fn a_slot_that_goes_in_the_middle_of_a_fault_is_not_mapped() {
    let mut m = large(1);
    m.in_fault(|memory, shadow, _| {
        let cx = platform::MaySleep::at_entry();
        let gone = abi::KvmUserspaceMemoryRegion { slot: 0, ..Default::default() };
        shadow.slots_change();
        let change = memory.set_user_region(&mmu::Region::user(&gone).unwrap(), &cx).unwrap();
        assert!(change.flush);
        assert_eq!(shadow.slots_changed(true, 0, &cx, || {}), Ok(()));
    });
    assert_eq!(m.access(0, Access::read(0x7000)), End::Device(0x7000));
    m.check();
    assert_eq!(m.leaves(), (0, 0));
}

#[test]
fn slots_that_go_take_their_translations_along() {
    let mut m = large(2);
    assert!(m.set_slot(1, 0, 0x1000_0000, 512, CLIENT + 0x1000_0000));
    m.make_large(CLIENT + 0x1000_0000);
    for cpu in [0, 1] {
        write(&mut m, cpu, 0x1000_3000, 7);
        read(&mut m, cpu, 0x3000);
    }
    assert!(m.set_slot(1, 0, 0, 0, 0));
    m.check();
    for cpu in [0, 1] {
        assert_eq!(m.access(cpu, Access::read(0x1000_3000)), End::Device(0x1000_3000));
        assert_eq!(m.access(cpu, Access::write(0x1000_3000, 1)), End::Device(0x1000_3000));
        read(&mut m, cpu, 0x3000);
    }
    // A slot that comes is seen where a device was; one that moves, where it is then.
    assert!(m.set_slot(1, 0, 0x1000_0000, 512, CLIENT + 0x1000_0000));
    read(&mut m, 0, 0x1000_3000);
    assert!(m.set_slot(1, 0, 0x1000_1000, 512, CLIENT + 0x1000_0000));
    m.check();
    read(&mut m, 0, 0x1000_3000);
    assert_eq!(m.access(0, Access::read(0x1000_0000)), End::Device(0x1000_0000));
}

#[test]
fn read_only_slots_are_read() {
    let mut m = Machine::nested(1, EntryFormat::X86);
    assert!(m.set_slot(0, KVM_MEM_READONLY, 0, 512, CLIENT));
    m.make_large(CLIENT);
    assert_eq!(m.access(0, Access::write(0x3000, 1)), End::Device(0x3000));
    read(&mut m, 0, 0x3000);
    assert_eq!(m.leaves(), (1, 1));
    assert_eq!(m.access(0, Access::write(0x3000, 1)), End::Device(0x3000));
    m.check();
}

#[test]
fn memory_that_the_client_took_away_is_told() {
    let mut m = machine(1);
    read(&mut m, 0, 0x3000);
    m.invalidate(CLIENT + 0x3000, 1);
    platform::testing::unmap(CLIENT + 0x3000, 1);
    assert_eq!(m.access(0, Access::read(0x3000)), End::BadAddress(0x3000));
    assert_eq!(m.access(0, Access::write(0x3000, 1)), End::BadAddress(0x3000));
    read(&mut m, 0, 0x4000);
}

/// Four levels translate 48 bits.
#[test]
fn addresses_beyond_the_tables_are_devices() {
    let mut m = machine(1);
    let high = 1 << 48;
    assert!(m.set_slot(1, 0, high - 0x1000, 2, CLIENT + 0x1000_0000));
    assert_eq!(m.map_far(0, high), Resolved::Device { gpa: high });
    read(&mut m, 0, 0);
    assert_eq!(m.map_far(0, high - 1), Resolved::Retry);
    assert_eq!(m.leaves(), (2, 0));
    m.check();
}

#[test]
fn tables_are_bounded_and_given_back() {
    let mut m = Machine::nested(2, EntryFormat::X86);
    for n in 0..300 {
        assert!(m.set_slot(n, 0, u64::from(n) << 30, 1, CLIENT + (u64::from(n) << 12)));
    }
    m.set_limit(0);
    for round in 0..2 {
        for n in 0..300u64 {
            if n < 4 {
                // Those beyond are out of reach of the model's guest.
                write(&mut m, (n % 2) as usize, n << 30, round);
            } else {
                assert_eq!(m.map_far(0, n << 30), Resolved::Retry);
            }
            let (limit, pages) = m.usage();
            assert!(limit == LEAST_PAGES && pages <= limit, "{pages} pages");
        }
    }
    m.check();
    assert!(m.counter("mmu_recycled") > 300);
    let pages = m.usage().1;
    assert_eq!(m.shrink(10), 10);
    assert_eq!(m.usage().1, pages - 10);
    m.check();
    // All but the root.
    m.shrink(1000);
    assert_eq!((m.usage().1, m.leaves()), (1, (0, 0)));
    m.check();
    write(&mut m, 0, 0x8, 5);
}

/// A page of small leaves that nothing leads to any more is used again; also where a large leaf stood meanwhile.
#[test]
fn tables_below_one_that_was_given_back_are_found_again() {
    let mut m = machine(1);
    for n in 0..LARGE {
        write(&mut m, 0, n * UNIT, 1);
    }
    let made = m.counter("mmu_cache_miss");
    // The oldest are those at the top; the root stays.
    assert_eq!(m.shrink(2), 2);
    m.check();
    for n in 0..LARGE {
        write(&mut m, 0, n * UNIT, 2);
    }
    assert_eq!(m.counter("mmu_cache_miss"), made + 2);
    // A page of small leaves, out of reach; a large leaf in its place; and then the log divides that.
    assert_eq!(m.shrink(2), 2);
    m.make_large(CLIENT);
    read(&mut m, 0, 0x1000);
    assert_eq!(m.leaves().1, 1);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    write(&mut m, 0, 0x3000, 1);
    assert!(m.get_dirty_log(0));
    m.check();
}

/// Until the next flush, processor 1 finds nothing at `gpa`. How often it looked.
fn unreachable_until_flushed(m: &Machine, gpa: u64) -> Rc<Cell<u32>> {
    let tries = Rc::new(Cell::new(0));
    let (count, flushes) = (tries.clone(), m.flushes());
    m.at_unlock(move |m| {
        if m.flushes() != flushes {
            return true;
        }
        assert_eq!(m.access_inside(1, Access::read(gpa)), None, "what comes next is there before the flush");
        count.set(count.get() + 1);
        false
    });
    tries
}

/// Processors may report a machine check when one page has two translations of different sizes.
#[test]
fn a_large_page_does_not_take_the_place_of_small_ones_before_every_processor_has_forgotten_them() {
    let mut m = large(2);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    write(&mut m, 0, 0x5000, 1);
    write(&mut m, 1, 0x5000, 1);
    // The log ends; a fault comes before the tables hear of it.
    m.in_fault(|memory, _, _| {
        let (guest_phys_addr, memory_size, userspace_addr) = (0, FRAMES << 12, CLIENT);
        let flags = 0;
        let arg = abi::KvmUserspaceMemoryRegion { slot: 0, flags, guest_phys_addr, memory_size, userspace_addr };
        let change = memory.set_user_region(&mmu::Region::user(&arg).unwrap(), &platform::MaySleep::at_entry());
        assert_eq!(change.unwrap().kind, mmu::ChangeKind::LogEnds);
    });
    read(&mut m, 0, UNIT);
    let tries = unreachable_until_flushed(&m, 0x9000);
    read(&mut m, 0, 0x7000);
    assert!(tries.get() > 0);
    assert_eq!(m.leaves(), (2, 2));
    write(&mut m, 1, 0x5000, 2);
}

#[test]
fn small_pages_do_not_take_the_place_of_a_large_one_before_every_processor_has_forgotten_it() {
    let mut m = large(2);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    read(&mut m, 0, 0x5000);
    let tries = unreachable_until_flushed(&m, 0x9000);
    write(&mut m, 0, 0x7000, 1);
    assert!(tries.get() > 0);
    assert_eq!(m.leaves(), (512, 0));
    // What has been prepared is found, whoever comes first.
    let mut m = large(2);
    assert!(m.set_slot(0, LOG, 0, FRAMES, CLIENT));
    read(&mut m, 0, 0x5000);
    let first = m.flushes();
    m.at_unlock(move |m| {
        m.flushes() != first && {
            assert_eq!(m.access(1, Access::read(0x9000)), End::Done(0x9000));
            true
        }
    });
    write(&mut m, 0, 0x7000, 1);
    assert_eq!((m.leaves(), m.counter("mmu_large_split")), ((512, 0), 1));
}
