//! HLT (row D06): an exit without a local APIC in the hypervisor, sleep with one.
use abi::KVM_CAP_IRQCHIP;
use iced_x86::code_asm::*;
use std::time::Duration;

use crate::{
    Device, Errno,
    guest::{Live, Machine, Mode, layout::DATA},
    runner::{Case, case},
    vm::{Exit, until, while_running},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("hlt-exits-in-every-mode", "D06", exits),
    case("hlt-sleeps-with-a-local-apic", "D06", sleeps).needs(KVM_CAP_IRQCHIP),
    case("a-line-of-the-pic-wakes-a-halted-processor", "D06 E01", woken).needs(KVM_CAP_IRQCHIP),
    case("a-halted-processor-with-if-clear-sleeps-on", "D06", sleeps_on).needs(KVM_CAP_IRQCHIP),
];

fn exits(device: &Device) {
    for mode in [Mode::Real, Mode::Protected16, Mode::Protected, Mode::LEGACY, Mode::PAE, Mode::LONG] {
        let mut m = Machine::new(mode);
        let at = m.bytes(&[0xf4, 0xf4]);
        let live = m.start(device);
        for n in 1..3 {
            live.vcpu.run_to_hlt();
            assert_eq!(live.vcpu.regs().rip, at + n, "{mode:?}");
        }
    }
}

/// A guest that counts in [`DATA`], halts, and counts again; a handler for vector 0x31 counts behind it.
fn guest(device: &Device, enabled: bool) -> Live {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| {
        let mut again = a.create_label();
        if enabled {
            a.sti()?;
        }
        a.set_label(&mut again)?;
        a.inc(dword_ptr(DATA as u32))?;
        a.hlt()?;
        a.jmp(again)
    });
    m.resume(1);
    let vm = device.vm();
    vm.irqchip();
    m.start_in(device, vm)
}

fn sleeps(device: &Device) {
    for enabled in [true, false] {
        let live = guest(device, enabled);
        let (exit, ()) = while_running(&live.vcpu, |running| {
            until("the guest to halt", || live.vcpu_has_halted());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!running.done(), "HLT left");
            running.stop();
        });
        assert_eq!((exit, live.memory.u32(DATA as usize)), (Err(Errno::EINTR), 1));
        assert_eq!(live.vcpu.mp_state(), abi::KVM_MP_STATE_HALTED);
    }
}

/// Sets the PIC up by port writes of a guest's own: base 0x30, IRQ 1 alone.
fn woken(device: &Device) {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| {
        for (port, byte) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xfd)] {
            a.mov(al, byte)?;
            a.out(port, al)?;
        }
        a.sti()?;
        a.inc(dword_ptr(DATA as u32))?;
        a.hlt()?;
        a.out(0x70, al)
    });
    m.resume(1);
    let vm = device.vm();
    vm.irqchip();
    let live = m.start_in(device, vm);
    let (exit, ()) = while_running(&live.vcpu, |running| {
        until("the guest to halt", || live.vcpu_has_halted());
        std::thread::sleep(Duration::from_millis(10));
        assert!(!running.done());
        live.vm.irq_line(1, true);
        until("the guest to wake", || running.done());
    });
    assert!(matches!(exit, Ok(Exit::Out { port: 0x70, .. })), "{exit:?}");
    assert_eq!(live.vectors(), [0x31]);
}

fn sleeps_on(device: &Device) {
    let live = guest(device, false);
    let (exit, ()) = while_running(&live.vcpu, |running| {
        until("the guest to halt", || live.vcpu_has_halted());
        live.vm.irq_line(1, true);
        live.vm.irq_line(1, false);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!running.done());
        running.stop();
    });
    assert_eq!((exit, live.memory.u32(DATA as usize), live.events()), (Err(Errno::EINTR), 1, vec![]));
}

impl Live {
    /// Whether the program of this file has counted, and so come to its HLT or is about to.
    fn vcpu_has_halted(&self) -> bool {
        self.memory.u32(DATA as usize) != 0
    }
}
