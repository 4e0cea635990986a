//! KVM_EXIT_IRQ_WINDOW_OPEN.
use abi::KvmRegs;
use iced_x86::code_asm::*;

use super::with_handler;
use crate::{
    device::Device,
    vm::{CODE, Exit, RealMode, in_shadow},
};

/// Runs until the window opens; the instruction pointer there.
fn opens(machine: &RealMode) -> u64 {
    let vcpu = &machine.vcpu;
    vcpu.page.request_interrupt_window(true);
    assert_eq!(vcpu.run(), Exit::IrqWindow);
    assert!(vcpu.page.ready_for_interrupt() && vcpu.page.if_flag());
    vcpu.regs().rip
}

/// Runs until the window opens, where the instruction pointer must be `ip`; then an interrupt is taken there.
fn opens_at(machine: &RealMode, ip: u64) {
    let vcpu = &machine.vcpu;
    assert_eq!(opens(machine), ip);
    vcpu.page.request_interrupt_window(false);
    vcpu.interrupt(0x40).expect("KVM_INTERRUPT");
    vcpu.run_to_hlt();
    assert_eq!((machine.memory.u16(0x600), u64::from(machine.memory.u16(0x7ffa))), (1, ip));
}

pub(super) fn exits(device: &Device) {
    let start = || {
        let machine = with_handler(device, |a| {
            a.out(0x10, al)?;
            a.sti()?;
            a.nop()?;
            a.nop()?;
            a.hlt()
        });
        machine.vcpu.page.request_interrupt_window(true);
        // Closed so far.
        assert_eq!(machine.vcpu.run(), Exit::out8(0x10, 0));
        assert!(!machine.vcpu.page.ready_for_interrupt());
        opens(&machine);
        machine
    };
    let machine = in_shadow(device, start, |machine| machine.vcpu.regs().rip == CODE + 4);
    opens_at(&machine, CODE + 4);
}

pub(super) fn sti(device: &Device) {
    let start = || {
        let machine = with_handler(device, |a| {
            a.sti()?;
            a.inc(bx)?;
            a.inc(bx)?;
            a.hlt()
        });
        opens(&machine);
        machine
    };
    let machine = in_shadow(device, start, |machine| machine.vcpu.regs().rip == CODE + 2);
    opens_at(&machine, CODE + 2);
    assert_eq!(machine.vcpu.regs().rbx, 2);
}

/// In the shadow of STI, MOV SS makes one of its own or not (SDM vol. 3, 6.8.3): the window opens behind it, or behind the
/// instruction after it, and not before.
pub(super) fn mov_ss(device: &Device) {
    let start = || {
        let machine = with_handler(device, |a| {
            a.mov(ax, ss)?;
            a.sti()?;
            a.mov(ss, ax)?;
            a.inc(bx)?;
            a.inc(bx)?;
            a.hlt()
        });
        opens(&machine);
        machine
    };
    let right = |regs: &KvmRegs| [(0, CODE + 5), (1, CODE + 6)].contains(&(regs.rbx, regs.rip));
    let machine = in_shadow(device, start, |machine| right(&machine.vcpu.regs()));
    let regs = machine.vcpu.regs();
    assert!(right(&regs), "it opened at {:#x}", regs.rip);
    opens_at(&machine, regs.rip);
    assert_eq!(machine.vcpu.regs().rbx, 2);
}

pub(super) fn popf(device: &Device) {
    let machine = with_handler(device, |a| {
        a.push(0x202)?;
        a.popf()?;
        a.inc(bx)?;
        a.hlt()
    });
    opens_at(&machine, CODE + 4);
    assert_eq!(machine.vcpu.regs().rbx, 1);
}

pub(super) fn open_at_once(device: &Device) {
    let machine = with_handler(device, |a| {
        a.inc(bx)?;
        a.hlt()
    });
    machine.vcpu.edit_regs(|r| r.rflags = 0x202);
    machine.vcpu.page.request_interrupt_window(true);
    for _ in 0..3 {
        assert_eq!(machine.vcpu.run(), Exit::IrqWindow);
    }
    assert_eq!(machine.vcpu.regs().rip, CODE);
    opens_at(&machine, CODE);
}
