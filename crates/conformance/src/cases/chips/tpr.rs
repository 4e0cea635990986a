//! The task priority of guests that change it all the time: accesses that the client is told of, so that it can patch
//! them, and the word in memory that patched ones use.
use abi::*;
use iced_x86::code_asm::*;

use super::apic::{machine, ready, store};
use crate::{
    device::{Device, Errno},
    vm::{Exit, Vcpu},
};

/// Where the word is.
const WORD: i32 = 0x800;

fn report(vcpu: &Vcpu, enabled: u32, flags: u32) -> Result<i32, Errno> {
    vcpu.fd.exchange(KVM_TPR_ACCESS_REPORTING, &mut KvmTprAccessCtl { enabled, flags, ..KvmTprAccessCtl::default() })
}

fn set_word(vcpu: &Vcpu, vapic_addr: u64) -> Result<i32, Errno> {
    vcpu.fd.put(KVM_SET_VAPIC_ADDR, &KvmVapicAddr { vapic_addr })
}

pub(super) fn accesses(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(ebx, 0xfee0_0080u32)?;
        a.out(0x80, al)?;
        a.mov(dword_ptr(ebx), 0x30)?;
        a.mov(ecx, dword_ptr(ebx))?;
        // Another register.
        a.mov(edx, dword_ptr(ebx - 0x50))?;
        a.out(0x80, al)?;
        a.mov(dword_ptr(ebx), 0x40)?;
        a.out(0x80, al)
    });
    ready(&machine);
    let vcpu = &machine.vcpu;
    report(vcpu, 1, 0).expect("KVM_TPR_ACCESS_REPORTING");
    // OUT ends, and nothing more.
    vcpu.page.set_immediate_exit(true);
    assert_eq!(vcpu.try_run(), Err(Errno::EINTR));
    vcpu.page.set_immediate_exit(false);
    let write = vcpu.regs().rip;
    assert_eq!(vcpu.run(), Exit::TprAccess { rip: write, write: true });
    let read = vcpu.regs().rip;
    assert!(read > write, "the access is done");
    assert_eq!((vcpu.sregs().cr8, vcpu.page.cr8()), (3, 3));
    assert_eq!(vcpu.run(), Exit::TprAccess { rip: read, write: false });
    assert_eq!(vcpu.regs().rcx, 0x30);
    ready(&machine);
    report(vcpu, 0, 0).expect("KVM_TPR_ACCESS_REPORTING");
    ready(&machine);
    assert_eq!(vcpu.sregs().cr8, 4);
}

pub(super) fn word(device: &Device) {
    let machine = machine(device, |a| {
        a.out(0x80, al)?;
        a.mov(al, byte_ptr(WORD))?;
        a.out(0x82, al)?;
        a.mov(byte_ptr(WORD), 0x20)?;
        a.out(0x80, al)?;
        store(a, 0x300, 0x4_0041)?;
        a.sti()?;
        a.nop()?;
        a.hlt()
    });
    ready(&machine);
    let (vcpu, memory) = (&machine.vcpu, machine.memory);
    let word = || memory.u32(WORD as usize);
    set_word(vcpu, WORD as u64).expect("KVM_SET_VAPIC_ADDR");
    let mut state: KvmLapicState = vcpu.fd.get(KVM_GET_LAPIC).expect("KVM_GET_LAPIC");
    state.regs[0x80] = 0x50;
    vcpu.fd.put(KVM_SET_LAPIC, &state).expect("KVM_SET_LAPIC");
    // The guest reads the task priority there, and changes it.
    assert_eq!(vcpu.run(), Exit::out8(0x82, 0x50));
    assert_eq!(word(), 0x50);
    ready(&machine);
    let state: KvmLapicState = vcpu.fd.get(KVM_GET_LAPIC).expect("KVM_GET_LAPIC");
    assert_eq!((state.regs[0x80], vcpu.sregs().cr8, vcpu.page.cr8()), (0x20, 2, 2));
    // An interrupt is in service: its class is in the second byte.
    assert_eq!(vcpu.run(), Exit::out8(0x81, 0x41));
    assert_eq!(word(), 0x4020);
}

pub(super) fn errors(device: &Device) {
    let machine = machine(device, |a| a.hlt());
    let vcpu = &machine.vcpu;
    assert_eq!(report(vcpu, 1, 1), Err(Errno::EINVAL), "flags");
    assert_eq!(set_word(vcpu, 1 << 30), Err(Errno::EINVAL), "no memory is there");
    assert_eq!(set_word(vcpu, 0), Ok(0), "no word");
    let without = device.vm().vcpu(0);
    assert_eq!(set_word(&without, 0), Err(Errno::EINVAL), "no local APIC is in the hypervisor");
}
