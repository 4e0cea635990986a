//! Exits that are done with on the spot: the guest goes on at once, but for what has come meanwhile.
use abi::*;
use core::sync::atomic::Ordering::SeqCst;
use std::vec::Vec;
use x86::{debug, flags};

use crate::{
    backend::{EventKind, Exit, PioExit},
    testing::{CODE, Machine, script::Note},
    vcpu::request,
};

const MASK_PORT: u16 = 0x21;

fn port(write: bool) -> Exit {
    Exit::Pio(PioExit { port: MASK_PORT, size: 1, write, string: false, len: 2 })
}

/// How often the vCPU has looked around, and how often it was entered.
fn turns(m: &Machine) -> (usize, usize) {
    let notes = m.script.take_notes();
    let count = |wanted: fn(&Note) -> bool| notes.iter().filter(|note| wanted(note)).count();
    (count(|n| matches!(n, Note::Window { .. })), count(|n| *n == Note::Entered))
}

#[test]
fn the_guest_goes_on_without_a_look_around() {
    let m = Machine::with_irqchip();
    m.script.exit(port(true));
    m.script.exit(port(false));
    m.script.exit(Exit::Cpuid { len: 2 });
    m.script.exit(Exit::Shutdown);
    m.state(|s| s.gpr[0] = 0xabcd);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(turns(&m), (1, 4));
    assert_eq!(m.state(|s| s.rip), CODE + 6);
}

#[test]
fn a_request_that_came_is_served_first() {
    let m = Machine::with_irqchip();
    let shared = m.vm.clone();
    m.script.entry(move |_, _| {
        shared.shared().vcpu(0).requests.fetch_or(request::SIGNAL, SeqCst);
        port(false)
    });
    // As every back end does.
    m.script.entry(|_, env| {
        assert_ne!(env.requests.load(SeqCst), 0);
        Exit::Interrupted
    });
    assert_eq!(m.run(), Err(crate::Errno::EINTR));
    assert_eq!(m.state(|s| s.rip), CODE + 2);
}

#[test]
fn an_interrupt_that_a_port_lets_through_is_delivered() {
    let m = Machine::with_irqchip();
    m.state(|s| s.flags.set(2 | flags::IF));
    let mut level = KvmIrqLevel { irq: 3, level: 1 };
    // Vectors from 0x20 on, one 8259A, everything masked.
    for (at, value) in [(0x20, 0x13u64), (0x21, 0x20), (0x21, 1), (0x21, 0xff)] {
        m.script.entry(move |s, _| {
            s.gpr[0] = value;
            Exit::Pio(PioExit { port: at, size: 1, write: true, string: false, len: 1 })
        });
    }
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    m.vm_ioctl(KVM_IRQ_LINE, &mut level).unwrap();
    m.script.entry(|s, _| {
        s.gpr[0] = 0;
        port(true)
    });
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    let injected: Vec<_> = m.script.take_injected().iter().map(|event| event.kind).collect();
    assert_eq!(injected, [EventKind::Interrupt(0x23)]);
}

#[test]
fn steps_are_told() {
    let m = Machine::with_irqchip();
    let mut debug =
        KvmGuestDebug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, ..KvmGuestDebug::default() };
    m.ioctl(KVM_SET_GUEST_DEBUG, &mut debug).unwrap();
    m.script.exit(port(false));
    assert_eq!(m.run(), Ok(KVM_EXIT_DEBUG));
    let arch: KvmDebugExitArch = m.payload();
    assert_eq!((arch.pc, arch.dr6), (CODE + 2, debug::DR6_BS));
    // The guest's own trap flag.
    let m = Machine::with_irqchip();
    m.state(|s| s.flags.set(2 | flags::TF));
    m.script.exit(port(false));
    m.script.exit(Exit::Shutdown);
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.script.take_injected().len(), 1);
}

#[test]
fn an_instruction_at_the_end_of_4_gib_ends_at_its_beginning() {
    for (long, rip) in [(false, 1), (true, 0x1_0000_0001)] {
        let m = Machine::with_irqchip();
        m.state(|s| {
            s.rip = 0xffff_ffff;
            if long {
                s.mode = x86::Mode::Long64;
            }
        });
        m.script.exit(Exit::Cpuid { len: 2 });
        m.script.exit(Exit::Shutdown);
        assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
        assert_eq!(m.state(|s| s.rip), rip, "{long}");
    }
}
