//! What a client may do between an exit for a port and the KVM_RUN that completes it.
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Thread, block, unblock},
    vm::{CODE, Exit, RealMode},
};

/// IN AL, 0x10; HLT with the exit for IN pending.
fn pending_in(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| {
        a.in_(al, 0x10)?;
        a.hlt()
    });
    machine.vcpu.edit_regs(|r| (r.rax, r.rbx) = (0x1111, 0x2222));
    assert_eq!(machine.vcpu.run(), Exit::input(0x10, 1));
    machine.vcpu.answer(&[0x5a]);
    machine
}

fn completed(machine: &RealMode) {
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rax, regs.rip), (0x115a, CODE + 2));
}

pub(super) fn get_regs(device: &Device) {
    let machine = pending_in(device);
    // Which of the two instructions RIP names is not promised; that looking changes nothing is.
    let rip = machine.vcpu.regs().rip;
    assert!([CODE, CODE + 2].contains(&rip), "rip {rip:#x}");
    machine.vcpu.sregs();
    machine.vcpu.run_to_hlt();
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rax, regs.rip), (0x115a, CODE + 3));
}

pub(super) fn set_same_regs(device: &Device) {
    let machine = pending_in(device);
    machine.vcpu.edit_regs(|r| r.rbx = 0x3333);
    machine.vcpu.edit_sregs(|_| ());
    machine.vcpu.run_to_hlt();
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rax, regs.rbx, regs.rip), (0x115a, 0x3333, CODE + 3));
}

pub(super) fn set_rip_out(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.out(0x20, al)?;
        a.hlt()
    });
    machine.put_code(0x3000, |a| {
        a.mov(bx, 7)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    assert_eq!(vcpu.run(), Exit::out8(0x20, 0));
    // A client that resets the machine because of the write: the new RIP is where the guest goes on.
    vcpu.edit_regs(|r| r.rip = 0x3000);
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rbx, regs.rip), (7, 0x3004));
}

pub(super) fn set_rip_in(device: &Device) {
    let machine = pending_in(device);
    machine.put_code(0x3000, |a| {
        a.mov(bx, 7)?;
        a.hlt()
    });
    machine.vcpu.edit_regs(|r| (r.rip, r.rax) = (0x3000, 0x4444));
    machine.vcpu.run_to_hlt();
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rax, regs.rbx, regs.rip), (0x4444, 7, 0x3004));
}

pub(super) fn immediate_exit(device: &Device) {
    let machine = pending_in(device);
    machine.vcpu.page.set_immediate_exit(true);
    assert_eq!(machine.vcpu.try_run(), Err(Errno::EINTR));
    completed(&machine);
    machine.vcpu.page.set_immediate_exit(false);
    machine.vcpu.run_to_hlt();
}

pub(super) fn immediate_exit_string(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().insb()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| (r.rcx, r.rdi, r.rdx) = (10, 0x4000, 0x60));
    let Exit::In { count, .. } = vcpu.run() else { panic!("no IN") };
    vcpu.answer(&vec![9; count as usize]);
    vcpu.page.set_immediate_exit(true);
    assert_eq!(vcpu.try_run(), Err(Errno::EINTR));
    let done = count;
    let regs = vcpu.regs();
    assert_eq!((regs.rcx, regs.rdi), (10 - u64::from(done), 0x4000 + u64::from(done)));
    assert_eq!(machine.memory.read(0x4000, done as usize), vec![9; done as usize]);
    // A REP whose count is zero may stand before or behind the instruction.
    assert!(regs.rip == CODE || done == 10 && regs.rip == CODE + 2, "rip {:#x}", regs.rip);
}

pub(super) fn signal(device: &Device) {
    let machine = pending_in(device);
    // Pending when KVM_RUN begins, and unblocked only by KVM_RUN's mask: nothing but KVM_RUN can take notice.
    let mut mask = [0u8; 12];
    mask[0] = 8;
    block(libc::SIGUSR1);
    machine.vcpu.fd.buffer(abi::KVM_SET_SIGNAL_MASK, &mut mask).expect("KVM_SET_SIGNAL_MASK");
    Thread::current().signal(libc::SIGUSR1);
    assert_eq!(machine.vcpu.try_run(), Err(Errno::EINTR));
    completed(&machine);
    unblock(libc::SIGUSR1);
    machine.vcpu.run_to_hlt();
}
