//! Requests between threads: kicks, slot changes, interrupts that wake, signals.
use abi::*;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::{sync::Arc, thread};
use x86::flags;

use crate::{
    Errno,
    backend::{Event, EventKind, Exit, FlushTlb},
    testing::{
        Machine, RAM,
        host::{self, Mapping},
        script::{Note, spin},
    },
    vcpu::request,
};

#[test]
fn a_slot_change_returns_only_when_the_guest_has_let_go() {
    let m = Machine::new();
    let extra = Mapping::new(4096);
    m.set_slot(1, 0x10_0000, 4096, extra.at()).unwrap();
    let (inside, stale) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let deleted = Arc::new(AtomicBool::new(false));
    let (a, b, c) = (inside.clone(), stale.clone(), deleted.clone());
    m.script.entry(move |_, env| {
        // A translation that is used until a request comes.
        let frame = env.memory.resolve(0, 0x100).unwrap();
        a.store(true, SeqCst);
        spin(env, |_| {
            if c.load(SeqCst) {
                b.store(true, SeqCst);
            }
            let _ = <host::Client as platform::Memory>::load::<u8>(frame.hva);
        })
    });
    m.script.entry(|_, env| {
        assert!(env.memory.resolve(0, 0x100).is_none());
        Exit::Shutdown
    });
    thread::scope(|s| {
        let vcpu = s.spawn(|| m.run());
        while !inside.load(SeqCst) {
            thread::yield_now();
        }
        m.set_slot(1, 0, 0, 0).unwrap();
        deleted.store(true, SeqCst);
        assert_eq!(vcpu.join().unwrap(), Ok(KVM_EXIT_SHUTDOWN));
    });
    assert!(!stale.load(SeqCst), "the guest ran on a slot that was gone");
    assert!(m.script.take_notes().contains(&Note::Flushed(FlushTlb::Physical)));
}

#[test]
fn slot_changes_and_runs_race_without_a_stale_entry() {
    let m = Machine::new();
    let extra = Mapping::new(4096);
    let present = Arc::new(AtomicU64::new(0));
    // Even: absent since that change. Each entry remembers, and must not see a change complete under it.
    for _ in 0..300 {
        let present = present.clone();
        m.script.entry(move |_, env| {
            let before = present.load(SeqCst);
            if env.memory.resolve(0, 0x100).is_some() {
                for _ in 0..20 {
                    if env.requests.load(SeqCst) != 0 {
                        return Exit::Interrupted;
                    }
                    assert!(present.load(SeqCst) <= before + 1, "two changes completed during one stay");
                    thread::yield_now();
                }
            }
            Exit::Interrupted
        });
    }
    thread::scope(|s| {
        let vcpu = s.spawn(|| m.run());
        while !vcpu.is_finished() {
            m.set_slot(1, 0x10_0000, 4096, extra.at()).unwrap();
            m.set_slot(1, 0, 0, 0).unwrap();
            present.fetch_add(1, SeqCst);
        }
        assert_eq!(vcpu.join().unwrap(), Ok(KVM_EXIT_UNKNOWN));
    });
}

#[test]
fn a_dirty_log_read_takes_write_translations_away() {
    let m = Machine::new();
    let mut region = KvmUserspaceMemoryRegion {
        slot: 0,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: 0,
        memory_size: RAM,
        userspace_addr: m.ram.at(),
    };
    m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region).unwrap();
    m.script.entry(|_, env| {
        env.memory.mark_dirty(0, 5);
        Exit::Shutdown
    });
    m.run().unwrap();
    m.script.take_notes();
    let bitmap = Mapping::new(4096);
    let mut log = KvmDirtyLog { slot: 0, padding1: 0, dirty_bitmap: bitmap.at() };
    m.vm_ioctl(KVM_GET_DIRTY_LOG, &mut log).unwrap();
    assert_eq!(<host::Client as platform::Memory>::load::<u64>(platform::Hva(bitmap.at())), Ok(1 << 5));
    m.script.exit(Exit::Shutdown);
    m.run().unwrap();
    assert_eq!(m.script.take_notes()[0], Note::Flushed(FlushTlb::Physical));
}

/// Enables the local APIC of vCPU 0 and its interrupts.
fn enable_apic(m: &Machine) {
    let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
    lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    m.state(|s| s.flags.set(flags::IF));
}

fn msi(m: &Machine, vector: u32) {
    let mut msi = KvmMsi { address_lo: 0xfee0_0000, data: vector, ..KvmMsi::default() };
    m.vm_ioctl(KVM_SIGNAL_MSI, &mut msi).unwrap();
}

#[test]
fn an_interrupt_wakes_a_halted_vcpu() {
    let m = Machine::with_irqchip();
    enable_apic(&m);
    m.script.exit(Exit::Hlt { len: 1 });
    thread::scope(|s| {
        let vcpu = s.spawn(|| m.run());
        thread::sleep(std::time::Duration::from_millis(20));
        assert!(!vcpu.is_finished(), "HLT did not sleep");
        msi(&m, 0x41);
        assert_eq!(vcpu.join().unwrap(), Ok(KVM_EXIT_UNKNOWN));
    });
    assert_eq!(m.script.take_injected(), [Event { kind: EventKind::Interrupt(0x41) }]);
}

#[test]
fn an_interrupt_makes_a_running_vcpu_leave() {
    let m = Machine::with_irqchip();
    enable_apic(&m);
    let inside = Arc::new(AtomicBool::new(false));
    let flag = inside.clone();
    m.script.entry(move |_, env| {
        flag.store(true, SeqCst);
        spin(env, |_| {})
    });
    thread::scope(|s| {
        let vcpu = s.spawn(|| m.run());
        while !inside.load(SeqCst) {
            thread::yield_now();
        }
        msi(&m, 0x41);
        vcpu.join().unwrap().unwrap();
    });
    assert_eq!(m.script.take_injected(), [Event { kind: EventKind::Interrupt(0x41) }]);
}

#[test]
fn signals_end_run_at_once_and_while_halted() {
    let m = Machine::with_irqchip();
    host::set_signal(true);
    assert_eq!(m.run(), Err(Errno::EINTR));
    host::set_signal(false);
    assert_eq!(m.script.take_notes(), []);
    let inside = Arc::new(AtomicBool::new(false));
    let flag = inside.clone();
    m.script.entry(move |_, _| {
        flag.store(true, SeqCst);
        Exit::Hlt { len: 1 }
    });
    thread::scope(|s| {
        let vcpu = s.spawn(|| m.run());
        // A signal counts from the moment at which the thread is inside KVM_RUN.
        while !inside.load(SeqCst) {
            thread::yield_now();
        }
        m.vcpu.requests().fetch_or(request::SIGNAL, SeqCst);
        platform::wait::Waiter::wake(m.vcpu.waiter(), m.vcpu.requests());
        assert_eq!(vcpu.join().unwrap(), Err(Errno::EINTR));
    });
    assert_eq!(m.get::<KvmMpState>(KVM_GET_MP_STATE).mp_state, KVM_MP_STATE_HALTED);
}

#[test]
fn the_second_processor_starts_by_init_and_sipi() {
    let m = Machine::with_irqchip();
    let (ap, _run) = Machine::new_vcpu(&m.vm, 1);
    m.use_supported_cpuid(&ap);
    enable_apic(&m);
    let script = m.backend.script(1);
    script.entry(|s, _| {
        assert_eq!((s.rip, s.seg[1].base, s.seg[1].selector), (0, 0x9000, 0x900));
        Exit::Shutdown
    });
    // ICR high (destination 1), ICR low (INIT, then start-up at page 9), written by the boot processor.
    let write = |offset: u64, value: u32| {
        m.vcpu.with_inner(|inner| {
            let apic = inner.apic.as_mut().unwrap();
            apic.mmio_write(offset, &value.to_le_bytes(), m.vm.shared(), &inner.tsc);
        });
    };
    thread::scope(|s| {
        let started = s.spawn(|| ap.ioctl(KVM_RUN, 0, &crate::testing::cx()).map(drop));
        thread::sleep(std::time::Duration::from_millis(20));
        assert!(!started.is_finished());
        write(0x310, 1 << 24);
        write(0x300, 0x4500);
        write(0x300, 0x4609);
        assert_eq!(started.join().unwrap(), Err(Errno::EAGAIN));
        ap.ioctl(KVM_RUN, 0, &crate::testing::cx()).unwrap();
    });
}

#[test]
fn the_apic_timer_fires_on_the_platforms_clock() {
    let m = Machine::with_irqchip();
    enable_apic(&m);
    let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
    lapic.regs[0x320..0x324].copy_from_slice(&0x52u32.to_le_bytes());
    lapic.regs[0x3e0..0x3e4].copy_from_slice(&0xbu32.to_le_bytes());
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    m.vcpu.with_inner(|inner| {
        let apic = inner.apic.as_mut().unwrap();
        apic.mmio_write(0x380, &50_000u32.to_le_bytes(), m.vm.shared(), &inner.tsc);
    });
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), []);
    host::advance(50_000);
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [Event { kind: EventKind::Interrupt(0x52) }]);
}

#[test]
fn the_pit_ticks_through_the_8259a() {
    let m = Machine::with_irqchip();
    m.vm_ioctl(KVM_CREATE_PIT2, &mut KvmPitConfig::default()).unwrap();
    m.state(|s| s.flags.set(flags::IF));
    let shared = m.vm.shared();
    let chips = &shared.chips;
    // Master at 0x30, IRQ 0 open; counter 0 in mode 2, 1000 counts.
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        chips.pic_write(&shared.vcpus, port, value);
    }
    for (port, value) in [(0x43, 0x34), (0x40, 0xe8), (0x40, 3)] {
        chips.with_pit(|pit, now| pit.write(port, value, now));
    }
    host::advance(900_000);
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [Event { kind: EventKind::Interrupt(0x30) }]);
}

#[test]
fn a_dirty_log_that_fails_half_way_takes_write_translations_away_too() {
    let m = Machine::new();
    // More pages than are copied at once; nobody touches them.
    let pages = 2200;
    let mut region = KvmUserspaceMemoryRegion {
        slot: 1,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: 0x100_0000,
        memory_size: pages * 4096,
        userspace_addr: 0x7000_0000_0000,
    };
    m.vm_ioctl(KVM_SET_USER_MEMORY_REGION, &mut region).unwrap();
    let flushed_by = |what: &dyn Fn() -> Errno| {
        m.script.entry(|_, env| {
            env.memory.mark_dirty(1, 5);
            Exit::Shutdown
        });
        m.run().unwrap();
        m.script.take_notes();
        assert_eq!(what(), Errno::EFAULT);
        m.script.exit(Exit::Shutdown);
        m.run().unwrap();
        assert_eq!(m.script.take_notes()[0], Note::Flushed(FlushTlb::Physical));
    };
    // The bitmap ends behind the words of the first step.
    flushed_by(&|| {
        let bitmap = Mapping::new(256);
        let mut log = KvmDirtyLog { slot: 1, padding1: 0, dirty_bitmap: bitmap.at() };
        m.vm_ioctl(KVM_GET_DIRTY_LOG, &mut log).err().unwrap()
    });
    flushed_by(&|| {
        let bitmap = Mapping::new(8);
        <host::Client as platform::Memory>::store(platform::Hva(bitmap.at()), u64::MAX).unwrap();
        let mut log = KvmClearDirtyLog { slot: 1, num_pages: 128, first_page: 0, dirty_bitmap: bitmap.at() };
        m.vm_ioctl(KVM_CLEAR_DIRTY_LOG, &mut log).err().unwrap()
    });
}

#[test]
fn a_signal_from_before_the_run_ends_the_wait_for_sipi() {
    let m = Machine::with_irqchip();
    let (ap, _run) = Machine::new_vcpu(&m.vm, 1);
    host::set_signal(true);
    assert_eq!(ap.ioctl(KVM_RUN, 0, &crate::testing::cx()).err(), Some(Errno::EINTR));
    host::set_signal(false);
}
