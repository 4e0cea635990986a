//! The two 8259As, programmed by the guest, with lines driven by the client.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno},
    vm::{CODE, Exit, RealMode, Vcpu, assemble, until, while_running},
};
use std::time::Duration;

/// A guest that programs the first PIC for vectors 0x40 and up with this mask, tells port 0x80, allows interrupts and halts for
/// ever. The handlers of vectors 0x41 and 0x44 tell port 0x81 their number, and end the interrupt.
pub(super) fn machine(device: &Device, mask: i32) -> RealMode {
    let vm = device.vm();
    vm.irqchip();
    let code = assemble(16, CODE, |a| {
        for (port, value) in [(0x20, 0x11), (0x21, 0x40), (0x21, 4), (0x21, 1), (0x21, mask)] {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        a.out(0x80, al)?;
        let mut wait = a.create_label();
        a.sti()?;
        a.set_label(&mut wait)?;
        a.hlt()?;
        a.jmp(wait)
    });
    let machine = RealMode::with_code(vm, &code);
    for vector in [0x40u8, 0x41, 0x44] {
        let ip = 0x3000 + u16::from(vector) * 16;
        machine.set_vector(vector, ip);
        machine.put_code(ip, |a| {
            a.mov(al, i32::from(vector))?;
            a.out(0x81, al)?;
            a.mov(al, 0x20)?;
            a.out(0x20, al)?;
            a.iret()
        });
    }
    assert_eq!(machine.vcpu.run(), Exit::out8(0x80, mask as u8));
    machine
}

fn pulse(machine: &RealMode, gsi: u32) {
    machine.vm.irq_line(gsi, true);
    machine.vm.irq_line(gsi, false);
}

pub(super) fn delivers(device: &Device) {
    let machine = machine(device, 0);
    for _ in 0..3 {
        pulse(&machine, 4);
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x44));
    }
    // A line that stays high is one edge.
    machine.vm.irq_line(4, true);
    machine.vm.irq_line(1, true);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x44));
    machine.vm.irq_line(1, false);
    pulse(&machine, 1);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
}

pub(super) fn masks(device: &Device) {
    let machine = machine(device, 0x10);
    pulse(&machine, 4);
    pulse(&machine, 1);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
    let state: KvmPicState = super::calls::get_chip(&machine.vm.fd, KVM_IRQCHIP_PIC_MASTER);
    assert_eq!((state.imr, state.irq_base, state.isr), (0x10, 0x40, 2));
    // What came while it was masked comes when it no longer is.
    super::calls::set_chip(&machine.vm.fd, KVM_IRQCHIP_PIC_MASTER, &KvmPicState { imr: 0, ..state });
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x44));
}

pub(super) fn priorities(device: &Device) {
    let machine = machine(device, 0);
    for gsi in [4, 1, 0] {
        machine.vm.irq_line(gsi, true);
    }
    // In the order of the pins; GSI 0 is pin 0 of the PIC.
    for vector in [0x40, 0x41, 0x44] {
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, vector));
    }
}

pub(super) fn status(device: &Device) {
    let machine = machine(device, 0);
    let set = |level| {
        let mut line = KvmIrqLevel { irq: 4, level };
        machine.vm.fd.exchange(KVM_IRQ_LINE_STATUS, &mut line).expect("KVM_IRQ_LINE_STATUS");
        line.irq as i32
    };
    assert!(set(1) > 0, "not delivered");
    set(0);
    assert_eq!(set(1), 0, "a second edge before the first was taken coalesces");
    set(0);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x44));
}

pub(super) fn hlt_wakes(device: &Device) {
    let machine = machine(device, 0);
    for _ in 0..5 {
        let (exit, ()) = while_running(&machine.vcpu, |running| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert!(!running.done(), "HLT came out");
            pulse(&machine, 4);
        });
        assert_eq!(exit, Ok(Exit::out8(0x81, 0x44)));
    }
}

/// The guest goes to sleep without telling anything, and goes on sleeping until a signal comes.
pub(super) fn sleeps(vcpu: &Vcpu) {
    let run = |pause| {
        let (exit, ()) = while_running(vcpu, |running| {
            std::thread::sleep(pause);
            running.stop();
        });
        assert_eq!(exit, Err(Errno::EINTR));
        vcpu.mp_state() == KVM_MP_STATE_HALTED
    };
    let mut pause = Duration::from_millis(5);
    until("the guest to sleep", || {
        pause *= 2;
        run(pause)
    });
    assert!(run(pause));
}

pub(super) fn hlt_signal(device: &Device) {
    let machine = machine(device, 0xff);
    sleeps(&machine.vcpu);
    sleeps(&machine.vcpu);
}
