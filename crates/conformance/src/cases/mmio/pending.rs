//! What a client may do between an exit for a device access and the KVM_RUN that completes it.
use abi::{KVM_INTERNAL_ERROR_EMULATION, KVM_RUN_UNION_OFFSET, KVM_SET_SIGNAL_MASK};
use iced_x86::code_asm::*;

use super::string::at_devices;
use crate::{
    device::{Device, Errno, Thread, block, unblock},
    vm::{CODE, Exit, RealMode, Vcpu},
};

/// MOV CX, [0x10]; INC DX; HLT, with the exit for the read pending and answered.
fn pending_read(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| {
        a.mov(cx, word_ptr(0x10))?;
        a.inc(dx)?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rcx, r.rdx) = (0, 0));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20010, len: 2 });
    vcpu.answer(&[0x34, 0x12]);
    machine
}

/// KVM_RUN that completes what is pending and executes nothing else.
fn only_complete(vcpu: &Vcpu) {
    vcpu.page.set_immediate_exit(true);
    assert_eq!(vcpu.try_run(), Err(Errno::EINTR));
    vcpu.page.set_immediate_exit(false);
}

fn ends_well(vcpu: &Vcpu) {
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rcx, regs.rdx & 0xffff, regs.rip), (0x1234, 1, CODE + 6));
}

pub(super) fn immediate_exit_read(device: &Device) {
    let machine = pending_read(device);
    only_complete(&machine.vcpu);
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rcx, regs.rdx, regs.rip), (0x1234, 0, CODE + 4));
    ends_well(&machine.vcpu);
}

pub(super) fn immediate_exit_write(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(word_ptr(0x10), cx)?;
        a.inc(dx)?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rcx, r.rdx) = (0x4321, 0));
    assert_eq!(vcpu.run(), Exit::write(0x20010, &[0x21, 0x43]));
    only_complete(vcpu);
    let regs = vcpu.regs();
    assert_eq!((regs.rdx, regs.rip), (0, CODE + 4));
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rdx & 0xffff, 1);
}

pub(super) fn immediate_exit_two_reads(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.cmpsb()?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rsi, r.rdi) = (0, 0));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000, len: 1 });
    vcpu.answer(&[7]);
    // The instruction is not done with one read: the second is asked for all the same.
    vcpu.page.set_immediate_exit(true);
    assert_eq!(vcpu.try_run(), Ok(Exit::Read { gpa: 0x30000, len: 1 }));
    vcpu.answer(&[7]);
    assert_eq!(vcpu.try_run(), Err(Errno::EINTR));
    let regs = vcpu.regs();
    assert_eq!((regs.rsi, regs.rdi, regs.rip, regs.rflags >> 6 & 1), (1, 1, CODE + 1, 1));
    vcpu.page.set_immediate_exit(false);
    vcpu.run_to_hlt();
}

/// A string instruction goes on to its next element before anybody looks whether KVM_RUN has to end.
pub(super) fn immediate_exit_string(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().lodsb()?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rcx, r.rsi) = (3, 0));
    for i in 0..3u8 {
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000 + u64::from(i), len: 1 });
        vcpu.answer(&[i + 5]);
        vcpu.page.set_immediate_exit(true);
    }
    only_complete(vcpu);
    let regs = vcpu.regs();
    assert_eq!((regs.rcx, regs.rsi, regs.rax & 0xff), (0, 3, 7));
    vcpu.run_to_hlt();
}

pub(super) fn signal(device: &Device) {
    let machine = pending_read(device);
    block(libc::SIGUSR1);
    let mut mask = [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    machine.vcpu.fd.buffer(KVM_SET_SIGNAL_MASK, &mut mask).expect("KVM_SET_SIGNAL_MASK");
    Thread::current().signal(libc::SIGUSR1);
    assert_eq!(machine.vcpu.try_run(), Err(Errno::EINTR));
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rcx, regs.rdx, regs.rip), (0x1234, 0, CODE + 4));
    unblock(libc::SIGUSR1);
    ends_well(&machine.vcpu);
}

pub(super) fn get_regs(device: &Device) {
    let machine = pending_read(device);
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rcx, regs.rdx), (0, 0));
    machine.vcpu.sregs();
    machine.vcpu.events();
    ends_well(&machine.vcpu);
}

/// The instruction is done all the same. Whether it gets what was read is not asked: the state before completion is
/// documented as not consistent, and Linux loses the answer.
pub(super) fn set_same_regs(device: &Device) {
    let machine = pending_read(device);
    machine.vcpu.edit_regs(|_| ());
    machine.vcpu.edit_sregs(|_| ());
    machine.vcpu.run_to_hlt();
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rdx & 0xffff, regs.rip), (1, CODE + 6));
}

pub(super) fn set_other_register(device: &Device) {
    let machine = pending_read(device);
    machine.vcpu.edit_regs(|r| (r.rbp, r.rdx) = (0x5555, 8));
    machine.vcpu.run_to_hlt();
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rdx, regs.rbp, regs.rip), (9, 0x5555, CODE + 6));
}

pub(super) fn code_in_device(device: &Device) {
    let machine = RealMode::new(device, |a| {
        // JMP 0x2000:0x0010
        a.db(&[0xea, 0x10, 0x00, 0x00, 0x20])
    });
    assert_eq!(machine.vcpu.run(), Exit::InternalError(KVM_INTERNAL_ERROR_EMULATION));
    let (regs, sregs) = (machine.vcpu.regs(), machine.vcpu.sregs());
    assert_eq!((regs.rip, sregs.cs.base), (0x10, 0x20000));
    // The client can put the vCPU elsewhere and go on.
    machine.put_code(0x3000, |a| a.hlt());
    RealMode::start(&machine.vcpu, 0x3000);
    machine.vcpu.run_to_hlt();
}

pub(super) fn long_answer(device: &Device) {
    let machine = pending_read(device);
    // A client that fills in all eight bytes and changes the other fields.
    let data = KVM_RUN_UNION_OFFSET + 8;
    machine.vcpu.page.0.write(data, &[0x34, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 8, 0, 0, 0, 1]);
    machine.vcpu.page.0.set_u64(KVM_RUN_UNION_OFFSET, 0x8000);
    ends_well(&machine.vcpu);
}
