//! The core with a processor that walks shadow tables: roots, faults of each kind, and who is flushed when.
use abi::*;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::{sync::Arc, thread, vec::Vec};
use x86::{CpuState, Exception, exception::pf, paging as bits};

use crate::{
    backend::{CrOp, Env, Event, EventKind, Exit, FlushTlb, Translation},
    testing::{CODE, DIRECTORY, Machine, TABLE, cx, entries, host::Host, script::Note},
};

const DATA: u64 = 0x8000;
/// Linear, and a device.
const DEVICE: u64 = 0x9000;

/// 32-bit code on page tables that map RAM to itself, and one page to a device.
fn machine() -> Machine {
    let m = Machine::paged(Translation::Shadow);
    m.poke(TABLE + (DEVICE >> 12) * 4, &(0xfee_0000u32 << 4 | 7).to_le_bytes());
    m
}

/// The entry that maps `gva`, as the processor would find it; 0 if it would fault.
fn entry(env: &Env<'_, Host>, gva: u64) -> u64 {
    assert_eq!(env.root.levels, 3);
    entries(env, gva).last().copied().filter(|entry| entry & bits::P != 0).unwrap_or(0)
}

fn fault(gva: u64, code: u32) -> Exit {
    Exit::PageFault { gva, code, implicit: false }
}

/// Runs a step that writes `gva`, faulting until it is mapped.
fn touch(m: &Machine, gva: u64) {
    m.script.exit(fault(gva, pf::WRITE));
    m.script.entry(move |_, env| {
        assert_ne!(entry(env, gva) & bits::W, 0, "{gva:#x} is not mapped");
        Exit::Interrupted
    });
}

#[test]
fn a_fault_is_served_and_the_guest_goes_on() {
    let m = machine();
    let ram = m.ram.at();
    m.script.entry(|_, env| {
        assert_eq!(entry(env, DATA), 0);
        fault(DATA, 0)
    });
    m.script.entry(move |_, env| {
        assert_eq!(entry(env, DATA) & !(bits::A | bits::NX), (ram + DATA) | bits::P | bits::U);
        fault(DATA, pf::WRITE | pf::PRESENT)
    });
    m.script.entry(|_, env| {
        assert_ne!(entry(env, DATA) & bits::W, 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.peek::<u32>(TABLE + (DATA >> 12) * 4) & 0x60, 0x60, "accessed and dirty are the guest's to see");
    m.in_order();
}

#[test]
fn a_fault_of_the_guests_is_injected() {
    let m = machine();
    m.poke(TABLE + (DATA >> 12) * 4, &[0; 4]);
    m.script.exit(fault(DATA + 5, pf::WRITE));
    m.run().unwrap();
    let event = Event { kind: EventKind::Exception(Exception::page_fault(DATA + 5, pf::WRITE)) };
    assert_eq!(m.script.take_injected(), [event]);
}

#[test]
fn device_memory_is_emulated() {
    let m = machine();
    // MOV EAX, [DEVICE]
    m.poke(CODE, &[0xa1, 0x00, 0x90, 0x00, 0x00]);
    m.script.exit(fault(DEVICE, 0));
    assert_eq!(m.run(), Ok(KVM_EXIT_MMIO));
    m.answer_mmio(0x1234);
    m.script.entry(|state, _| {
        assert_eq!((state.gpr[0], state.rip), (0x1234, CODE + 5));
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.in_order();
}

#[test]
fn a_write_to_a_page_directory_is_emulated_and_followed() {
    let m = machine();
    touch(&m, DATA);
    // MOV dword [DIRECTORY], 0xa007
    m.poke(CODE, &[0xc7, 0x05, 0x00, 0x40, 0x00, 0x00, 0x07, 0xa0, 0x00, 0x00]);
    m.script.exit(fault(DIRECTORY, pf::WRITE));
    m.script.entry(|state, env| {
        assert_eq!(state.rip, CODE + 10);
        assert_eq!(entry(env, DATA), 0, "the entry that was made of the old one is gone");
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.peek::<u32>(DIRECTORY), 0xa007);
    assert!(m.script.take_notes().contains(&Note::Flushed(FlushTlb::Physical)));
    m.in_order();
}

#[test]
fn a_page_directory_that_is_cleared_is_given_up_at_once() {
    let m = machine();
    touch(&m, DATA);
    m.poke(CODE, &[0xf3, 0xab]);
    m.script.exit(fault(DIRECTORY + 0x20, pf::WRITE));
    m.script.entry(|state, env| {
        assert_eq!(state.rip, CODE, "the guest clears it by itself");
        assert_eq!(entry(env, DATA), 0, "and nothing is left of what was made of it");
        state.gpr[1] = 2;
        state.gpr[7] = DIRECTORY + 0x20;
        fault(DIRECTORY + 0x20, pf::WRITE)
    });
    // It needs the table itself, so that the core has to go on.
    m.script.entry(|state, _| {
        assert_eq!((state.rip, state.gpr[1], state.gpr[7]), (CODE + 2, 0, DIRECTORY + 0x28));
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.in_order();
}

#[test]
fn a_page_directory_is_given_up_when_its_write_cannot_be_emulated() {
    let m = machine();
    // FIST dword [DIRECTORY + 0x800]: arithmetic of the FPU is the processor's.
    m.poke(CODE, &[0xdb, 0x15, 0x00, 0x48, 0x00, 0x00]);
    touch(&m, DATA);
    m.script.exit(fault(DIRECTORY + 0x800, pf::WRITE));
    m.script.entry(|state, env| {
        assert_eq!((state.rip, entry(env, DATA)), (CODE, 0));
        fault(DIRECTORY + 0x800, pf::WRITE)
    });
    // The retry needs the table for its own translation, so that it is protected again: no progress is possible.
    assert_eq!(m.run(), Ok(KVM_EXIT_INTERNAL_ERROR));
    assert_eq!(m.payload::<KvmRunInternal>().suberror, KVM_INTERNAL_ERROR_EMULATION);
    let notes = m.script.take_notes();
    let stays: Vec<_> = notes.split(|note| *note == Note::Entered).collect();
    assert!(stays[3].contains(&Note::Flushed(FlushTlb::Physical)), "the table was freed: {stays:?}");
    m.in_order();
}

#[test]
fn a_page_table_is_the_guests_to_write_until_it_flushes() {
    let m = machine();
    touch(&m, DATA);
    m.script.entry(|_, _| Exit::Interrupted);
    m.script.exit(fault(TABLE + 0x20, pf::WRITE));
    let guest = m.ram.at() + TABLE + 0x20;
    let set = move |page: u32| {
        // SAFETY: in the machine's memory, which nobody else uses at this moment.
        unsafe { (guest as *mut u32).write_volatile(page | 7) };
    };
    m.script.entry(move |_, env| {
        assert_ne!(entry(env, TABLE) & bits::W, 0, "it writes by itself");
        set(0xa000);
        assert_ne!(entry(env, DATA), 0);
        Exit::Invlpg { gva: Some(DATA), len: 3 }
    });
    // INVLPG [DATA], where the processor does not tell the address.
    m.poke(CODE + 3, &[0x0f, 0x01, 0x3d, 0x00, 0x80, 0x00, 0x00]);
    // MOV CR3, EAX
    m.poke(CODE + 10, &[0x0f, 0x22, 0xd8]);
    m.script.entry(move |state, env| {
        assert_eq!((state.rip, entry(env, DATA)), (CODE + 3, 0));
        assert_ne!(entry(env, TABLE) & bits::W, 0, "and goes on to");
        fault(DATA, pf::WRITE)
    });
    m.script.entry(move |_, env| {
        assert_ne!(entry(env, DATA), 0);
        set(0xb000);
        Exit::Invlpg { gva: None, len: 0 }
    });
    m.script.entry(move |state, env| {
        assert_eq!((state.rip, entry(env, DATA)), (CODE + 10, 0));
        fault(DATA, pf::WRITE)
    });
    m.script.exit(fault(TABLE + 0x20, pf::WRITE));
    m.script.entry(move |state, env| {
        assert_ne!(entry(env, DATA), 0);
        set(0xc000);
        state.gpr[0] = state.cr3;
        Exit::Cr { op: CrOp::Other, len: 0 }
    });
    m.script.entry(|state, env| {
        assert_eq!((state.rip, entry(env, DATA)), (CODE + 13, 0));
        assert_eq!(entry(env, TABLE) & bits::W, 0, "the next write is seen again");
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.in_order();
}

/// Nobody would find them any more when the host takes their page away, or the table is closed.
#[test]
fn what_a_guest_flushes_goes_from_every_processor() {
    type Flush = fn(&mut CpuState) -> Exit;
    let invlpg: Flush = |_| Exit::Invlpg { gva: Some(DATA), len: 3 };
    let cr3: Flush = |state| {
        state.gpr[0] = state.cr3;
        Exit::Cr { op: CrOp::Other, len: 0 }
    };
    for flush in [invlpg, cr3] {
        let m = machine();
        let (other, _run) = Machine::new_vcpu(&m.vm, 1);
        m.use_supported_cpuid(&other);
        let has_flushed = || {
            let script = m.backend.script(1);
            script.exit(Exit::Shutdown);
            other.ioctl(KVM_RUN, 0, &cx()).unwrap();
            script.take_notes().contains(&Note::Flushed(FlushTlb::Physical))
        };
        // MOV CR3, EAX
        m.poke(CODE, &[0x0f, 0x22, 0xd8]);
        touch(&m, DATA);
        m.script.entry(|_, _| Exit::Interrupted);
        m.script.exit(fault(TABLE + 0x20, pf::WRITE));
        m.script.exit(Exit::Shutdown);
        m.run().unwrap();
        has_flushed();
        assert!(!has_flushed(), "without a reason");
        let guest = m.ram.at() + TABLE + 0x20;
        m.script.entry(move |state, env| {
            assert_ne!(entry(env, TABLE) & bits::W, 0);
            // SAFETY: in the machine's memory, which nobody else uses at this moment.
            unsafe { (guest as *mut u32).write_volatile(0xa007) };
            flush(state)
        });
        m.script.exit(Exit::Shutdown);
        m.run().unwrap();
        assert!(has_flushed());
        m.in_order();
    }
}

#[test]
fn control_registers_bring_another_root() {
    let m = machine();
    // MOV CR3, EAX
    m.poke(CODE, &[0x0f, 0x22, 0xd8]);
    m.poke(0x6000, &(TABLE as u32 | 7).to_le_bytes());
    touch(&m, DATA);
    m.script.entry(|state, _| {
        state.gpr[0] = 0x6000;
        Exit::Cr { op: CrOp::Other, len: 0 }
    });
    m.script.entry(|state, env| {
        assert_eq!((state.cr3, entry(env, DATA)), (0x6000, 0), "the root page starts empty");
        fault(DATA, pf::WRITE)
    });
    m.script.entry(|_, env| {
        assert_ne!(entry(env, DATA), 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    let notes = m.script.take_notes();
    let flushes = notes.iter().filter(|n| **n == Note::Flushed(FlushTlb::All)).count();
    assert!(flushes >= 2, "one for each root: {notes:?}");
    m.in_order();
}

#[test]
fn a_fault_while_an_event_is_delivered_loses_no_event() {
    let interrupt = Event { kind: EventKind::Interrupt(0x31) };
    for guests_own in [false, true] {
        let m = machine();
        m.state(|s| s.flags.set_control(x86::flags::IF, x86::flags::IF));
        if guests_own {
            m.poke(TABLE + (DATA >> 12) * 4, &[0; 4]);
        }
        let mut irq = KvmInterrupt { irq: 0x31 };
        m.ioctl(KVM_INTERRUPT, &mut irq).unwrap();
        *m.script.cut_short.lock().unwrap() = true;
        m.script.exit(fault(DATA, pf::WRITE));
        // The handler of the page fault runs with interrupts off, and then returns.
        m.script.entry(move |state, _| {
            if guests_own {
                state.flags.set_control(x86::flags::IF, 0);
            }
            Exit::Interrupted
        });
        m.script.entry(|state, _| {
            state.flags.set_control(x86::flags::IF, x86::flags::IF);
            Exit::Interrupted
        });
        m.script.exit(Exit::Interrupted);
        m.run().unwrap();
        let injected = m.script.take_injected();
        if guests_own {
            let fault = Event { kind: EventKind::Exception(Exception::page_fault(DATA, pf::WRITE)) };
            assert_eq!(injected, [interrupt, fault, interrupt]);
        } else {
            assert_eq!(injected, [interrupt, interrupt]);
        }
    }
}

#[test]
fn an_event_pushed_to_a_page_table_unprotects_it() {
    let m = machine();
    m.state(|s| s.flags.set_control(x86::flags::IF, x86::flags::IF));
    touch(&m, DATA);
    // A processor that writes through another address space: the directory of one is plain memory for the other.
    m.script.entry(|_, _| Exit::Interrupted);
    m.run().unwrap();
    m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq: 0x31 }).unwrap();
    *m.script.cut_short.lock().unwrap() = true;
    m.script.exit(fault(TABLE + 0x800, pf::WRITE));
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    let interrupt = Event { kind: EventKind::Interrupt(0x31) };
    assert_eq!(m.script.take_injected(), [interrupt, interrupt], "it is delivered again");
    m.in_order();
}

/// Row B08.
#[test]
fn a_change_waits_until_every_vcpu_has_left() {
    let m = machine();
    let (other, _run) = Machine::new_vcpu(&m.vm, 1);
    m.use_supported_cpuid(&other);
    let registers: CpuState = m.state(|s| s.clone());
    other.with_inner(|inner| {
        use crate::backend::{BackendVcpu, Groups};
        *inner.cpu.registers_mut(Groups::ALL) = registers;
    });
    let second = m.backend.script(1);
    let (inside, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (a, b) = (inside.clone(), left.clone());
    second.entry(move |_, env| {
        a.store(true, SeqCst);
        while env.requests.load(SeqCst) == 0 {
            thread::yield_now();
        }
        // It is slow to leave.
        thread::sleep(std::time::Duration::from_millis(30));
        b.store(true, SeqCst);
        Exit::Interrupted
    });
    second.exit(Exit::Shutdown);
    touch(&m, DATA);
    m.poke(CODE, &[0xc7, 0x05, 0x00, 0x40, 0x00, 0x00, 0x07, 0xa0, 0x00, 0x00]);
    let started = inside.clone();
    m.script.entry(move |_, _| {
        while !started.load(SeqCst) {
            thread::yield_now();
        }
        fault(DIRECTORY, pf::WRITE)
    });
    let seen = left.clone();
    m.script.entry(move |_, _| {
        assert!(seen.load(SeqCst), "the other vCPU may still use what the guest has taken away");
        Exit::Shutdown
    });
    thread::scope(|s| {
        let thread = s.spawn(|| other.ioctl(KVM_RUN, 0, &cx()).map(drop));
        assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
        thread.join().unwrap().unwrap();
    });
    assert!(second.take_notes().contains(&Note::Flushed(FlushTlb::Physical)));
    m.in_order();
}

#[test]
fn a_slot_that_goes_takes_the_root_along() {
    let m = machine();
    touch(&m, DATA);
    m.run().unwrap();
    m.set_slot(1, 0x10_0000, 0x1000, m.ram.at()).unwrap();
    m.set_slot(1, 0, 0, 0).unwrap();
    m.in_order();
    m.script.entry(|_, env| {
        assert_eq!(entry(env, DATA), 0);
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
}

#[test]
fn the_dirty_log_takes_write_access_away() {
    let m = machine();
    touch(&m, DATA);
    m.run().unwrap();
    let region = |flags| KvmUserspaceMemoryRegion {
        slot: 0,
        flags,
        guest_phys_addr: 0,
        memory_size: crate::testing::RAM,
        userspace_addr: m.ram.at(),
    };
    m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region(KVM_MEM_LOG_DIRTY_PAGES)).unwrap();
    let bitmap = crate::testing::host::Mapping::new(4096);
    for _ in 0..2 {
        m.script.entry(|_, env| {
            assert_eq!(entry(env, DATA) & (bits::P | bits::W), bits::P);
            fault(DATA, pf::WRITE | pf::PRESENT)
        });
        m.script.entry(|_, env| {
            assert_ne!(entry(env, DATA) & bits::W, 0);
            Exit::Shutdown
        });
        assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
        let mut log = KvmDirtyLog { slot: 0, padding1: 0, dirty_bitmap: bitmap.at() };
        m.vm_ioctl(KVM_GET_DIRTY_LOG, &mut log).unwrap();
        let bits = <crate::testing::host::Client as platform::Memory>::load::<u64>(platform::Hva(bitmap.at())).unwrap();
        assert_ne!(bits & 1 << (DATA >> 12), 0);
        m.in_order();
    }
}

/// Row B11.
#[test]
fn the_bound_can_be_set_and_read_and_is_counted() {
    let m = machine();
    touch(&m, DATA);
    m.run().unwrap();
    let get = || match m.vm.ioctl(KVM_GET_NR_MMU_PAGES, 0, &cx()).unwrap() {
        crate::Outcome::Value(value) => value,
        other => panic!("{other:?}"),
    };
    assert_eq!(get(), 64);
    m.vm.ioctl(KVM_SET_NR_MMU_PAGES, 1000, &cx()).unwrap();
    assert_eq!(get(), 1000);
    let crate::Outcome::NewStats(file) = m.vm.ioctl(KVM_GET_STATS_FD, 0, &cx()).unwrap() else { panic!("no file") };
    let mut content = Vec::from([0u8; 1 << 14]);
    let len = file.read_at(0, &mut content);
    let has = |name: &str| content[..len].windows(name.len()).any(|window| window == name.as_bytes());
    assert!(has("mmu_pages") && has("mmu_flooded") && has("pf_fixed"));
}

#[test]
fn the_hosts_pages_may_go_at_any_time() {
    let m = machine();
    touch(&m, DATA);
    m.run().unwrap();
    let page = platform::Hva(m.ram.at() + DATA)..platform::Hva(m.ram.at() + DATA + 0x1000);
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
    assert!(m.script.take_notes().contains(&Note::Flushed(FlushTlb::Physical)));
    assert_eq!(m.vm.shrink_shadow(100), 2);
    m.in_order();
    // A VM without shadow tables has nothing to give.
    let plain = Machine::new();
    plain.vm.invalidate_begin(page.clone());
    plain.vm.invalidate_end();
    assert!(!plain.vm.pages_are_young(page, false));
    assert!(plain.vm.audit_shadow(&cx()).is_none());
}

#[test]
fn an_event_through_a_task_gate_is_delivered_by_the_core() {
    let m = machine();
    // No IDT: its delivery is a triple fault in the end, but the event's, not an instruction's.
    m.state(|s| {
        s.idtr.limit = 0;
        s.flags.set_control(x86::flags::IF, x86::flags::IF);
    });
    m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq: 0x31 }).unwrap();
    *m.script.cut_short.lock().unwrap() = true;
    m.script.exit(Exit::TaskSwitch);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
}

#[test]
fn an_event_that_the_core_delivers_changes_what_translations_may_be_used_for() {
    let m = machine();
    let (gdt, idt, stack) = (0xa000, 0xb000, 0xd000);
    m.poke(gdt + 8, &0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    m.poke(idt + 8 * 0x31, &(CODE & 0xffff | 8 << 16 | 0x8e00 << 32).to_le_bytes());
    m.state(|s| {
        s.gdtr = x86::Table { base: gdt, limit: 0xf };
        s.idtr = x86::Table { base: idt, limit: 0x7ff };
        s.gpr[4] = stack;
        s.flags.set_control(x86::flags::IF, x86::flags::IF);
    });
    m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq: 0x31 }).unwrap();
    *m.script.cut_short.lock().unwrap() = true;
    m.script.exit(Exit::TaskSwitch);
    m.script.entry(|state, _| {
        assert_eq!((state.rip, state.gpr[4]), (CODE, 0xd000 - 12));
        Exit::Shutdown
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    let notes = m.script.take_notes();
    let behind = notes.iter().skip_while(|note| **note != Note::Entered);
    assert!(behind.into_iter().any(|note| *note == Note::Flushed(FlushTlb::All)), "{notes:?}");
}
