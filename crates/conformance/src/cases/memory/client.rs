//! The client's own mapping under the guest: shared, protected, discarded, gone.
use iced_x86::code_asm::*;

use super::slots::reader;
use crate::{
    device::{Device, Errno},
    vm::{RealMode, at, until, while_running},
};

const NONE: i32 = libc::PROT_NONE;
const READ: i32 = libc::PROT_READ;
const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub(super) fn shared(device: &Device) {
    // Waits for a word, answers with its double, until zero comes.
    let machine = RealMode::spinning(device, |a| {
        let (mut wait, mut end) = (a.create_label(), a.create_label());
        a.set_label(&mut wait)?;
        a.mov(ax, word_ptr(0x500))?;
        a.cmp(ax, 0)?;
        a.je(wait)?;
        a.cmp(ax, -1)?;
        a.je(end)?;
        a.mov(word_ptr(0x500), 0)?;
        a.add(ax, ax)?;
        a.mov(word_ptr(0x502), ax)?;
        a.jmp(wait)?;
        a.set_label(&mut end)?;
        a.hlt()
    });
    let memory = machine.memory;
    let (exit, ()) = while_running(&machine.vcpu, |_| {
        for n in 1..50u16 {
            memory.set_u16(0x500, n);
            until("the guest's answer", || memory.u16(0x502) == 2 * n);
        }
        memory.set_u16(0x500, u16::MAX);
    });
    assert_eq!(exit, Ok(crate::vm::Exit::Hlt));
}

pub(super) fn taken_away(device: &Device) {
    let machine = reader(device);
    let (vcpu, memory) = (&machine.vcpu, machine.vm.memory(1, 0x20000, 0x1000));
    memory.set_u16(0, 0x1111);
    vcpu.run_to_hlt();
    memory.protect(0, 0x1000, NONE);
    for _ in 0..2 {
        assert_eq!(vcpu.try_run(), Err(Errno::EFAULT));
    }
    // It comes back, and the guest never knew.
    memory.protect(0, 0x1000, BOTH);
    memory.set_u16(0, 0x2222);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax & 0xffff, 0x2222);
}

pub(super) fn write_protected(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(ax, word_ptr(0))?;
        a.mov(word_ptr(0), 0x5555u32)?;
        a.hlt()
    });
    let (vcpu, memory) = (&machine.vcpu, machine.vm.memory(1, 0x20000, 0x1000));
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    memory.set_u16(0, 0x1111);
    memory.protect(0, 0x1000, READ);
    assert_eq!(vcpu.try_run(), Err(Errno::EFAULT));
    assert_eq!(vcpu.regs().rax & 0xffff, 0x1111);
    memory.protect(0, 0x1000, BOTH);
    vcpu.run_to_hlt();
    assert_eq!(memory.u16(0), 0x5555);
}

pub(super) fn discarded(device: &Device) {
    let machine = reader(device);
    let (vcpu, memory) = (&machine.vcpu, machine.vm.memory(1, 0x20000, 0x1000));
    for n in 1..10 {
        memory.set_u16(0, n);
        vcpu.run_to_hlt();
        assert_eq!(vcpu.regs().rax & 0xffff, n.into());
        memory.discard(0, 0x1000);
        vcpu.run_to_hlt();
        assert_eq!(vcpu.regs().rax & 0xffff, 0, "the page that was given back");
    }
}

pub(super) fn taken_away_live(device: &Device) {
    let machine = RealMode::spinning(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.inc(word_ptr(0))?;
        a.jmp(start)
    });
    let memory = machine.vm.memory(1, 0x20000, 0x1000);
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    for _ in 0..10 {
        let before = memory.u16(0);
        let (exit, ()) = while_running(&machine.vcpu, |_| {
            until("the guest to count", || memory.u16(0) != before);
            memory.protect(0, 0x1000, NONE);
        });
        assert_eq!(exit, Err(Errno::EFAULT));
        memory.protect(0, 0x1000, BOTH);
    }
}
