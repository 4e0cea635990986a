//! The calls, without a guest.
use abi::*;

use crate::{
    device::{Device, Errno, Fd},
    vm::list_with,
};

fn chip(vm: &Fd, chip_id: u32) -> Result<KvmIrqchip, Errno> {
    let mut chip = KvmIrqchip { chip_id, ..KvmIrqchip::zeroed() };
    vm.exchange(KVM_GET_IRQCHIP, &mut chip).map(|_| chip)
}

/// Writes a chip's state.
pub(in crate::cases) fn set_chip<T: Pod>(vm: &Fd, chip_id: u32, state: &T) {
    let mut chip = KvmIrqchip { chip_id, ..KvmIrqchip::zeroed() };
    chip.chip[..size_of::<T>()].copy_from_slice(state.bytes());
    vm.exchange(KVM_SET_IRQCHIP, &mut chip).expect("KVM_SET_IRQCHIP");
}

/// Reads a chip's state.
pub(in crate::cases) fn get_chip<T: Pod>(vm: &Fd, chip_id: u32) -> T {
    T::from_prefix(&chip(vm, chip_id).expect("KVM_GET_IRQCHIP").chip).expect("a state")
}

/// KVM_SET_GSI_ROUTING.
pub(in crate::cases) fn set_routes(vm: &Fd, routes: &[KvmIrqRoutingEntry]) -> Result<i32, Errno> {
    vm.buffer(KVM_SET_GSI_ROUTING, &mut list_with(&KvmIrqRouting { nr: routes.len() as u32, flags: 0 }, routes))
}

pub(in crate::cases) fn creation(device: &Device) {
    let vm = device.vm();
    assert_eq!(vm.fd.number(KVM_CREATE_IRQCHIP, 0), Ok(0));
    assert_eq!(vm.fd.number(KVM_CREATE_IRQCHIP, 0), Err(Errno::EEXIST));
    let vm = device.vm();
    let _vcpu = vm.vcpu(0);
    assert_eq!(vm.fd.number(KVM_CREATE_IRQCHIP, 0), Err(Errno::EINVAL));
}

pub(in crate::cases) fn without(device: &Device) {
    let vm = device.vm();
    let vcpu = vm.vcpu(0);
    assert_eq!(chip(&vm.fd, 0).err(), Some(Errno::ENXIO));
    assert_eq!(vm.fd.put(KVM_IRQ_LINE, &KvmIrqLevel { irq: 1, level: 1 }), Err(Errno::ENXIO));
    assert_eq!(vcpu.fd.get::<KvmLapicState>(KVM_GET_LAPIC).err(), Some(Errno::EINVAL));
    assert_eq!(vcpu.fd.put(KVM_SET_LAPIC, &KvmLapicState::zeroed()), Err(Errno::EINVAL));
}

pub(in crate::cases) fn pic_state(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    for id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut state: KvmPicState = get_chip(&vm.fd, id);
        (state.imr, state.irq_base, state.isr, state.priority_add, state.elcr) = (0xb8, 0x70, 0x04, 2, 0x40);
        set_chip(&vm.fd, id, &state);
        assert_eq!(get_chip::<KvmPicState>(&vm.fd, id), state);
    }
}

pub(in crate::cases) fn ioapic_state(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let mut state: KvmIoapicState = get_chip(&vm.fd, KVM_IRQCHIP_IOAPIC);
    assert_eq!((state.base_address, state.redirtbl[3] >> 16 & 1), (0xfec0_0000, 1));
    (state.ioregsel, state.id) = (0x10, 5);
    state.redirtbl[3] = 0x0300_0000_0000_8931;
    state.redirtbl[23] = 0x0100_0000_0001_0042;
    set_chip(&vm.fd, KVM_IRQCHIP_IOAPIC, &state);
    assert_eq!(get_chip::<KvmIoapicState>(&vm.fd, KVM_IRQCHIP_IOAPIC), state);
}

pub(in crate::cases) fn no_chip(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    for id in [3, 77, u32::MAX] {
        assert_eq!(chip(&vm.fd, id).err(), Some(Errno::EINVAL));
        let mut chip = KvmIrqchip { chip_id: id, ..KvmIrqchip::zeroed() };
        assert_eq!(vm.fd.exchange(KVM_SET_IRQCHIP, &mut chip), Err(Errno::EINVAL));
    }
}

pub(in crate::cases) fn lapic_state(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let vcpus = [vm.vcpu(0), vm.vcpu(3)];
    for (vcpu, id) in vcpus.iter().zip([0u8, 3]) {
        let mut state: KvmLapicState = vcpu.fd.get(KVM_GET_LAPIC).expect("KVM_GET_LAPIC");
        assert_eq!(state.regs[0x23], id);
        assert_eq!((state.regs[0x30], state.regs[0xf0]), (0x14, 0xff));
        // TPR, spurious vector, LVT of the timer, divider, initial count.
        for (at, value) in [(0x80, 0x20u32), (0xf0, 0x1a5), (0x320, 0x1_0033), (0x3e0, 3)] {
            state.regs[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        vcpu.fd.put(KVM_SET_LAPIC, &state).expect("KVM_SET_LAPIC");
        let back: KvmLapicState = vcpu.fd.get(KVM_GET_LAPIC).expect("KVM_GET_LAPIC");
        for at in [0x20, 0x80, 0xf0, 0x320, 0x3e0] {
            assert_eq!(back.regs[at..at + 4], state.regs[at..at + 4], "register {at:#x}");
        }
        assert_eq!(vcpu.sregs().cr8, 2);
    }
}

pub(in crate::cases) fn bad_routes(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let good = KvmIrqRoutingEntry::to_msi(30, 0xfee0_0000, 0x41);
    assert_eq!(set_routes(&vm.fd, &[good]), Ok(0));
    for (what, route) in [
        ("a chip that does not exist", KvmIrqRoutingEntry::to_irqchip(1, 7, 1)),
        ("a pin that does not exist", KvmIrqRoutingEntry::to_irqchip(1, KVM_IRQCHIP_IOAPIC, 24)),
        ("a type that does not exist", KvmIrqRoutingEntry { type_: 99, ..good }),
        ("flags", KvmIrqRoutingEntry { flags: 2, ..good }),
        ("a GSI that is too large", KvmIrqRoutingEntry { gsi: 100_000, ..good }),
    ] {
        assert_eq!(set_routes(&vm.fd, &[good, route]), Err(Errno::EINVAL), "{what}");
    }
    let two_on_a_chip = [1, 2].map(|pin| KvmIrqRoutingEntry::to_irqchip(5, KVM_IRQCHIP_IOAPIC, pin));
    assert_eq!(set_routes(&vm.fd, &two_on_a_chip), Err(Errno::EINVAL), "two pins of one chip");
    let mut bytes = list_with(&KvmIrqRouting { nr: 1, flags: 1 }, &[good]);
    assert_eq!(vm.fd.buffer(KVM_SET_GSI_ROUTING, &mut bytes), Err(Errno::EINVAL), "flags of the table");
    let mut bytes = list_with(&KvmIrqRouting { nr: 5000, flags: 0 }, &vec![good; 5000]);
    assert_eq!(vm.fd.buffer(KVM_SET_GSI_ROUTING, &mut bytes), Err(Errno::EINVAL), "a table that is too long");
    assert_eq!(set_routes(&vm.fd, &[]), Ok(0));
}
