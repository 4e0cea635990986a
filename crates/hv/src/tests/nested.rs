//! The core with a processor that walks nested tables: the root, faults of each kind, and who is flushed when.
use abi::*;
use platform::Hva;
use std::vec::Vec;
use x86::paging as bits;

use crate::{
    Errno,
    backend::{Access, Env, Event, EventKind, Exit, FlushTlb, Translation},
    testing::{CODE, Machine, RAM, cx, entries, host::Host, script::Note},
};

const DATA: u64 = 0x8000;
const DEVICE: u64 = 0x9_0000;

fn machine() -> Machine {
    Machine::on(Translation::Nested(mmu::shadow::EntryFormat::X86))
}

fn fault(gpa: u64, access: Access) -> Exit {
    Exit::NestedPageFault { gpa, access, table_walk: false }
}

/// The entry that maps `gpa`, as the processor would find it; 0 if it would fault.
fn entry(env: &Env<'_, Host>, gpa: u64) -> u64 {
    assert_eq!(env.root.levels, 4);
    let entries = entries(env, gpa);
    let (last, upper) = entries.split_last().unwrap();
    assert!(upper.iter().all(|entry| entry & bits::U != 0), "nested tables are walked as user mode");
    if last & bits::P == 0 {
        return 0;
    }
    assert_ne!(last & bits::U, 0, "nested tables are walked as user mode");
    *last
}

/// Runs a step that writes `gpa`, faulting until it is mapped.
fn touch(m: &Machine, gpa: u64) {
    m.script.exit(fault(gpa, Access::Write));
    m.script.entry(move |_, env| {
        assert_ne!(entry(env, gpa) & bits::W, 0, "{gpa:#x} is not mapped");
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
}

/// How often the vCPU was told to forget what nested tables said.
fn flushes(m: &Machine) -> usize {
    m.script.take_notes().iter().filter(|note| **note == Note::Flushed(FlushTlb::Physical)).count()
}

fn region(m: &Machine, flags: u32) -> KvmUserspaceMemoryRegion {
    KvmUserspaceMemoryRegion { slot: 0, flags, guest_phys_addr: 0, memory_size: RAM, userspace_addr: m.ram.at() }
}

#[test]
fn a_fault_is_served_and_the_guest_goes_on() {
    let m = machine();
    let ram = m.ram.at();
    for access in [Access::Read, Access::Fetch, Access::Write] {
        m.script.exit(fault(DATA, access));
        m.script.entry(move |state, env| {
            assert_eq!(entry(env, DATA), (ram + DATA) | bits::P | bits::U | bits::W | bits::A);
            assert_eq!((entry(env, DATA + 0x1000), state.rip), (0, CODE));
            Exit::Interrupted
        });
    }
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.in_order();
}

#[test]
fn the_root_stays_whatever_the_registers_say() {
    let m = machine();
    touch(&m, DATA);
    assert_eq!(flushes(&m), 1, "for the first root");
    m.state(|s| {
        s.cr3 = 0x5000;
        s.cr4 |= x86::Cr4::PAE.bits();
    });
    m.script.entry(|_, env| {
        assert_ne!(entry(env, DATA), 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    let notes = m.script.take_notes();
    assert!(!notes.iter().any(|note| matches!(note, Note::Flushed(_))), "{notes:?}");
}

#[test]
fn device_memory_is_emulated() {
    let m = machine();
    // MOV [BX], AX in a segment that begins at the device.
    m.poke(CODE, &[0x89, 0x07]);
    m.state(|s| {
        s.seg[3] = x86::Segment::real((DEVICE >> 4) as u16, 3);
        (s.gpr[0], s.gpr[3]) = (0x1234, 8);
    });
    m.script.exit(fault(DEVICE + 8, Access::Write));
    assert_eq!(m.run(), Ok(KVM_EXIT_MMIO));
    let mmio: KvmRunMmio = m.payload();
    assert_eq!((mmio.phys_addr, mmio.len, &mmio.data[..2]), (DEVICE + 8, 2, &[0x34, 0x12][..]));
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.state(|s| s.rip), CODE + 2);
    m.in_order();
}

/// Read as memory, written as a device; also by the processor's walk of tables that lie there, which counts as writes: the
/// instruction that needs it is emulated.
#[test]
fn read_only_slots() {
    let m = machine();
    m.vm_ioctl(
        KVM_SET_USER_MEMORY_REGION,
        &mut KvmUserspaceMemoryRegion {
            slot: 1,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: DEVICE,
            memory_size: 0x1000,
            userspace_addr: m.ram.at() + DATA,
        },
    )
    .unwrap();
    m.script.exit(fault(DEVICE, Access::Read));
    m.script.entry(|_, env| {
        assert_eq!(entry(env, DEVICE) & (bits::P | bits::W), bits::P);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.poke(CODE, &[0x89, 0x07, 0x40]);
    m.state(|s| s.seg[3] = x86::Segment::real((DEVICE >> 4) as u16, 3));
    m.script.exit(fault(DEVICE, Access::Write));
    assert_eq!(m.run(), Ok(KVM_EXIT_MMIO));
    // INC AX
    m.script.exit(Exit::NestedPageFault { gpa: DEVICE, access: Access::Write, table_walk: true });
    m.script.entry(|state, _| {
        assert_eq!(state.rip, CODE + 3);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.in_order();
}

#[test]
fn memory_that_the_client_took_away_is_efault() {
    let m = machine();
    m.set_slot(1, DEVICE, 0x1000, 0x1000).unwrap();
    m.script.exit(fault(DEVICE, Access::Read));
    assert_eq!(m.run(), Err(Errno::EFAULT));
    m.in_order();
}

#[test]
fn a_fault_while_an_event_is_delivered_loses_no_event() {
    let interrupt = Event { kind: EventKind::Interrupt(0x31) };
    for (gpa, reason) in [(DATA, KVM_EXIT_SHUTDOWN), (DEVICE, KVM_EXIT_INTERNAL_ERROR)] {
        let m = machine();
        m.state(|s| s.flags.set_control(x86::flags::IF, x86::flags::IF));
        m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq: 0x31 }).unwrap();
        *m.script.cut_short.lock().unwrap() = true;
        m.script.exit(fault(gpa, Access::Write));
        m.script.exit(Exit::Shutdown);
        assert_eq!(m.run(), Ok(reason));
        let expected: &[_] = if gpa == DATA { &[interrupt, interrupt] } else { &[interrupt] };
        assert_eq!(m.script.take_injected(), expected);
    }
}

#[test]
fn a_slot_that_goes_takes_the_root_along() {
    let m = machine();
    touch(&m, DATA);
    m.set_slot(1, 0x10_0000, 0x1000, m.ram.at()).unwrap();
    flushes(&m);
    m.script.entry(|_, env| {
        assert_ne!(entry(env, DATA), 0, "one that comes takes nothing away");
        Exit::Shutdown
    });
    m.run().unwrap();
    assert_eq!(flushes(&m), 0);
    m.set_slot(1, 0, 0, 0).unwrap();
    m.in_order();
    m.script.entry(|_, env| {
        assert_eq!(entry(env, DATA), 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert!(flushes(&m) >= 1);
    touch(&m, DATA);
    m.in_order();
}

#[test]
fn an_alias_is_mapped_and_goes() {
    let m = machine();
    let mut alias = KvmMemoryAlias {
        guest_phys_addr: DEVICE,
        memory_size: 0x1000,
        target_phys_addr: DATA,
        ..KvmMemoryAlias::default()
    };
    m.vm_ioctl(KVM_SET_MEMORY_ALIAS, &mut alias).unwrap();
    touch(&m, DEVICE);
    m.in_order();
    alias.memory_size = 0;
    m.vm_ioctl(KVM_SET_MEMORY_ALIAS, &mut alias).unwrap();
    m.script.entry(|_, env| {
        assert_eq!(entry(env, DEVICE), 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
}

#[test]
fn the_dirty_log_takes_write_access_away() {
    let m = machine();
    touch(&m, DATA);
    flushes(&m);
    m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region(&m, KVM_MEM_LOG_DIRTY_PAGES)).unwrap();
    let bitmap = crate::testing::host::Mapping::new(4096);
    for _ in 0..2 {
        m.script.entry(|_, env| {
            assert_eq!(entry(env, DATA) & (bits::P | bits::W), bits::P);
            fault(DATA, Access::Write)
        });
        m.script.entry(|_, env| {
            assert_ne!(entry(env, DATA) & bits::W, 0);
            Exit::Shutdown
        });
        assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
        assert_eq!(flushes(&m), 1, "the right was taken away once");
        let mut log = KvmDirtyLog { slot: 0, padding1: 0, dirty_bitmap: bitmap.at() };
        m.vm_ioctl(KVM_GET_DIRTY_LOG, &mut log).unwrap();
        let bits = <crate::testing::host::Client as platform::Memory>::load::<u64>(Hva(bitmap.at())).unwrap();
        assert_eq!(bits, 1 << (DATA >> 12));
        m.in_order();
    }
    // Its end makes room for large pages.
    m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region(&m, 0)).unwrap();
    m.script.entry(|_, env| {
        assert_eq!(entry(env, DATA), 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(flushes(&m), 1);
    m.in_order();
}

/// What the core writes for a guest needs no table.
#[test]
fn writes_of_the_core_are_logged() {
    let m = machine();
    m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region(&m, KVM_MEM_LOG_DIRTY_PAGES)).unwrap();
    // INSB to ES:DI.
    m.poke(CODE, &[0x6c]);
    m.state(|s| s.gpr[7] = DATA);
    m.script.exit(Exit::Emulate);
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    m.script.exit(Exit::Shutdown);
    m.run().unwrap();
    let bitmap = crate::testing::host::Mapping::new(4096);
    let mut log = KvmDirtyLog { slot: 0, padding1: 0, dirty_bitmap: bitmap.at() };
    m.vm_ioctl(KVM_GET_DIRTY_LOG, &mut log).unwrap();
    let bits = <crate::testing::host::Client as platform::Memory>::load::<u64>(Hva(bitmap.at())).unwrap();
    assert_eq!(bits, 1 << (DATA >> 12));
}

#[test]
fn the_hosts_pages_may_go_at_any_time() {
    let m = machine();
    touch(&m, DATA);
    flushes(&m);
    let page = Hva(m.ram.at() + DATA)..Hva(m.ram.at() + DATA + 0x1000);
    assert!(m.vm.pages_are_young(page.clone(), true));
    assert!(!m.vm.pages_are_young(page.clone(), true));
    m.vm.invalidate_begin(page.clone());
    m.vm.invalidate_end();
    m.in_order();
    m.script.entry(|_, env| {
        assert_eq!(entry(env, DATA), 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(flushes(&m), 1);
    assert_eq!(m.vm.shrink_shadow(100), 3, "all but the root");
    m.in_order();
    touch(&m, DATA);
}

#[test]
fn counters_tell_of_it() {
    let m = machine();
    touch(&m, DATA);
    let crate::Outcome::NewStats(file) = m.vm.ioctl(KVM_GET_STATS_FD, 0, &cx()).unwrap() else { panic!("no file") };
    let mut content = Vec::from([0u8; 1 << 14]);
    let len = file.read_at(0, &mut content);
    let has = |name: &str| content[..len].windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has("pf_large") && has("mmu_large_split"));
}

/// A processor that has nested tables leaves no page fault to the core.
#[test]
fn a_page_fault_is_not_understood() {
    let m = machine();
    m.script.exit(Exit::PageFault { gva: DATA, code: 0, implicit: false });
    assert_eq!(m.run(), Ok(KVM_EXIT_INTERNAL_ERROR));
}
