//! KVM_CAP_SPLIT_IRQCHIP: local APICs in the hypervisor, PIC and IOAPIC in the client.
use abi::*;
use iced_x86::code_asm::al;

use super::{
    apic::{in_vm, ready, store, wait},
    calls::set_routes,
};
use crate::{
    device::{Device, Errno},
    vm::{Exit, RealMode, Vm},
};

fn split(device: &Device) -> Vm {
    let vm = device.vm();
    vm.enable(KVM_CAP_SPLIT_IRQCHIP, [24, 0, 0, 0]).expect("KVM_ENABLE_CAP");
    vm
}

pub(super) fn refuses(device: &Device) {
    let vm = split(device);
    assert_eq!(vm.fd.number(KVM_CREATE_IRQCHIP, 0), Err(Errno::EEXIST));
    let mut chip = KvmIrqchip::zeroed();
    assert_eq!(vm.fd.exchange(KVM_GET_IRQCHIP, &mut chip), Err(Errno::ENXIO));
    let vcpu = vm.vcpu(0);
    assert!(vcpu.fd.get::<KvmLapicState>(KVM_GET_LAPIC).is_ok());
    // Too late, and too many pins.
    assert!(vm.enable(KVM_CAP_SPLIT_IRQCHIP, [24, 0, 0, 0]).is_err());
    assert_eq!(device.vm().enable(KVM_CAP_SPLIT_IRQCHIP, [100_000, 0, 0, 0]), Err(Errno::EINVAL));
    let late = device.vm();
    let _vcpu = late.vcpu(0);
    assert_eq!(late.enable(KVM_CAP_SPLIT_IRQCHIP, [24, 0, 0, 0]), Err(Errno::EEXIST));
}

fn machine(device: &Device, routes: &[KvmIrqRoutingEntry]) -> RealMode {
    let vm = split(device);
    set_routes(&vm.fd, routes).expect("KVM_SET_GSI_ROUTING");
    let machine = in_vm(device, vm, wait);
    ready(&machine);
    machine
}

fn send(machine: &RealMode, data: u32) {
    let message = KvmMsi { address_lo: 0xfee0_0000, data, ..KvmMsi::default() };
    assert_eq!(machine.vm.fd.put(KVM_SIGNAL_MSI, &message), Ok(1));
}

pub(super) fn eoi(device: &Device) {
    // Pin 3 of the client's IOAPIC: level triggered, vector 0x41.
    let machine = machine(device, &[KvmIrqRoutingEntry::to_msi(3, 0xfee0_0000, 0xc041)]);
    // QEMU's IOAPIC does not say that the level is high.
    for data in [0xc041, 0x8041] {
        send(&machine, data);
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
        assert_eq!(machine.vcpu.run(), Exit::IoapicEoi(0x41));
    }
    // Edges have no end that the client would have to know.
    send(&machine, 0x51);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x51));
    send(&machine, 0x61);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x61));
}

pub(super) fn external(device: &Device) {
    let machine = machine(device, &[]);
    // What the client's PIC delivers.
    assert_eq!(machine.vcpu.interrupt(0x41), Ok(0));
    assert_eq!(machine.vcpu.interrupt(0x51), Err(Errno::EEXIST));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
}

/// The client wants to inject, and the guest allows interrupts, but its LINT0 is masked: the guest goes on, and the window
/// opens when that is over.
pub(super) fn shut_window(device: &Device) {
    let machine = in_vm(device, split(device), |a| {
        a.sti()?;
        a.nop()?;
        store(a, 0x350, 0x1_0700)?;
        a.out(0x80, al)?;
        a.nop()?;
        a.out(0x80, al)?;
        store(a, 0x350, 0x700)?;
        a.nop()?;
        a.hlt()
    });
    ready(&machine);
    let vcpu = &machine.vcpu;
    vcpu.page.request_interrupt_window(true);
    ready(&machine);
    assert!(vcpu.page.if_flag() && !vcpu.page.ready_for_interrupt());
    assert_eq!(vcpu.run(), Exit::IrqWindow);
    assert!(vcpu.page.ready_for_interrupt());
    vcpu.page.request_interrupt_window(false);
    assert_eq!(vcpu.interrupt(0x41), Ok(0));
    assert_eq!(vcpu.run(), Exit::out8(0x81, 0x41));
}
