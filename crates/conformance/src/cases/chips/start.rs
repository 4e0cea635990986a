//! How processors start.
use abi::*;
use iced_x86::code_asm::*;

use super::apic::machine;
use crate::{
    device::{Device, Errno},
    vm::{CODE, Exit, RealMode, while_running},
};

pub(super) fn init_sipi(device: &Device) {
    let machine = machine(device, |a| {
        // INIT, then SIPI with vector 9, to processor 1.
        for command in [0x4500, 0x4609] {
            a.mov(ebx, 0xfee0_0310u32)?;
            a.mov(dword_ptr(ebx), 0x0100_0000)?;
            a.mov(ebx, 0xfee0_0300u32)?;
            a.mov(dword_ptr(ebx), command)?;
        }
        a.out(0x80, al)
    });
    let second = machine.vm.vcpu(1);
    assert_eq!(second.mp_state(), KVM_MP_STATE_UNINITIALIZED);
    machine.put_code(0x9000, |a| {
        a.mov(ax, cs)?;
        a.out(0x90, ax)
    });
    // It sleeps until it is started, then starts at 0x9000 in real mode.
    let (exit, ()) = while_running(&second, |running| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(!running.done());
        assert!(matches!(machine.vcpu.run(), Exit::Out { port: 0x80, .. }));
    });
    let exit = if exit == Err(Errno::EAGAIN) { second.try_run() } else { exit };
    assert_eq!(exit, Ok(Exit::Out { port: 0x90, size: 2, data: vec![0, 9] }));
    assert_eq!((second.mp_state(), second.sregs().cs.base), (KVM_MP_STATE_RUNNABLE, 0x9000));
}

pub(super) fn boot_cpu(device: &Device) {
    let vm = device.vm();
    assert_eq!(vm.fd.number(KVM_SET_BOOT_CPU_ID, 1), Ok(0));
    vm.irqchip();
    let (first, second) = (vm.vcpu(0), vm.vcpu(1));
    assert_eq!((first.mp_state(), second.mp_state()), (KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_RUNNABLE));
    assert_eq!((first.sregs().apic_base >> 8 & 1, second.sregs().apic_base >> 8 & 1), (0, 1));
    assert_eq!(vm.fd.number(KVM_SET_BOOT_CPU_ID, 0), Err(Errno::EBUSY));
    let memory = vm.memory(0, 0, 0x10000);
    memory.set_u8(CODE as usize, 0xf4);
    RealMode::start(&second, CODE);
    let (exit, ()) = while_running(&second, |running| running.stop());
    assert_eq!(exit, Err(Errno::EINTR));
}
