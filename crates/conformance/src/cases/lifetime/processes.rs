//! Processes with a guest: killed, stopped, forked.
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use abi::*;

use super::{counter, outs};
use crate::{
    device::{Device, Errno, Event, Fd, in_child, set_own_group},
    vm::{Exit, RealMode, Vm, until, while_running},
};

pub(super) fn killed(device: &Device) {
    let child = in_child(|| {
        let machine = counter(device);
        machine.vcpu.try_run().map_or(1, |_| 2)
    });
    thread::sleep(Duration::from_millis(50));
    child.signal(libc::SIGKILL);
    assert_eq!(child.wait(), 128 + libc::SIGKILL);
}

pub(super) fn stopped(device: &Device) {
    let child = in_child(|| {
        let machine = counter(device);
        // Stop and continue do not end KVM_RUN with anything but EINTR, after which it can go on.
        let (exit, ()) = while_running(&machine.vcpu, |running| {
            until("the guest to count", || machine.memory.u32(0x500) != 0);
            running.stop();
        });
        i32::from(exit != Err(Errno::EINTR))
    });
    child.signal(libc::SIGSTOP);
    thread::sleep(Duration::from_millis(20));
    child.signal(libc::SIGCONT);
    assert_eq!(child.wait(), 0);
}

pub(super) fn another_process(device: &Device) {
    let machine = RealMode::with_code(device.vm(), &outs());
    let child = in_child(|| {
        let answers = [
            machine.vm.fd.number(KVM_CREATE_VCPU, 1).err(),
            machine.vcpu.fd.number(KVM_RUN, 0).err(),
            machine.vcpu.fd.get::<KvmRegs>(KVM_GET_REGS).err(),
        ];
        i32::from(answers != [Some(Errno::EIO); 3])
    });
    assert_eq!(child.wait(), 0, "the child could use its parent's VM");
    // The parent goes on.
    assert_eq!(machine.vcpu.run(), Exit::out8(0x10, 0));
}

/// A VM with timers and an eventfd, for which a device may have threads of its own in this process.
fn busy_vm(kvm: &Fd, device: &Device) -> (Vm, Event) {
    let vm = Vm::new(kvm.make(KVM_CREATE_VM, 0).expect("a VM"), device.run_bytes());
    vm.irqchip();
    vm.pit();
    let event = Event::new();
    let irqfd = KvmIrqfd { fd: event.raw() as u32, gsi: 5, ..KvmIrqfd::default() };
    vm.fd.put(KVM_IRQFD, &irqfd).expect("KVM_IRQFD");
    (vm, event)
}

pub(super) fn group(device: &Device) {
    let child = in_child(|| {
        let kvm = device.again();
        let _vm = busy_vm(&kvm, device);
        i32::from(set_own_group().is_err())
    });
    assert_eq!(child.wait(), 0, "the group could not be set");
}

/// Closes what a child of fork has of its parent's, and has a guest of its own.
fn begin_anew(device: &Device, inherited: &[&Fd]) -> i32 {
    inherited.iter().for_each(|fd| fd.close().expect("close"));
    let kvm = device.again();
    let (vm, _event) = busy_vm(&kvm, device);
    let machine = RealMode::with_code(vm, &outs());
    i32::from(machine.vcpu.run() != Exit::out8(0x10, 0))
}

/// How many children a case has.
const CHILDREN: usize = 12;

pub(super) fn children(device: &Device) {
    let machine = counter(device);
    let (vm, vcpu) = (&machine.vm.fd, &machine.vcpu.fd);
    let (exit, ()) = while_running(&machine.vcpu, |running| {
        for n in 0..CHILDREN {
            let before = machine.memory.u32(0x500);
            until("the guest to count", || machine.memory.u32(0x500) != before);
            let inherited = [vec![vm, vcpu], vec![vcpu, vm], vec![vcpu], vec![]];
            assert_eq!(in_child(|| begin_anew(device, &inherited[n % 4])).wait(), 0, "child {n}");
        }
        let before = machine.memory.u32(0x500);
        until("the parent's guest to go on", || machine.memory.u32(0x500) != before);
        running.stop();
    });
    assert_eq!(exit, Err(Errno::EINTR));
    machine.vcpu.regs();
}

pub(super) fn children_meanwhile(device: &Device) {
    let end = AtomicBool::new(false);
    // The assembler's tables are made before there is a thread whose copy a child would wait for.
    outs();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !end.load(Ordering::SeqCst) {
                    let machine = RealMode::with_code(device.vm(), &outs());
                    assert_eq!(machine.vcpu.run(), Exit::out8(0x10, 0));
                }
            });
        }
        for n in 0..CHILDREN {
            assert_eq!(in_child(|| begin_anew(device, &[])).wait(), 0, "child {n}");
        }
        end.store(true, Ordering::SeqCst);
    });
}
