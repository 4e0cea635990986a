//! The IOAPIC, on a pin that no PIC shares.
use abi::*;
use iced_x86::code_asm::*;

use super::{
    apic::{machine, ready, wait},
    calls::{get_chip, set_chip},
    pic::sleeps,
};
use crate::{
    device::Device,
    vm::{Exit, RealMode},
};

const PIN: u32 = 20;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

fn redirect(machine: &RealMode, entry: u64) {
    let mut state: KvmIoapicState = get_chip(&machine.vm.fd, KVM_IRQCHIP_IOAPIC);
    state.redirtbl[PIN as usize] = entry;
    set_chip(&machine.vm.fd, KVM_IRQCHIP_IOAPIC, &state);
}

fn entry(machine: &RealMode) -> u64 {
    get_chip::<KvmIoapicState>(&machine.vm.fd, KVM_IRQCHIP_IOAPIC).redirtbl[PIN as usize]
}

pub(super) fn edge(device: &Device) {
    let machine = machine(device, wait);
    ready(&machine);
    redirect(&machine, 0x41);
    for _ in 0..2 {
        machine.vm.irq_line(PIN, true);
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
        // Still high, but no edge.
        sleeps(&machine.vcpu);
        machine.vm.irq_line(PIN, false);
    }
}

pub(super) fn level(device: &Device) {
    const REMOTE_IRR: u64 = 1 << 14;
    let machine = machine(device, wait);
    ready(&machine);
    redirect(&machine, LEVEL | 0x41);
    machine.vm.irq_line(PIN, true);
    for _ in 0..3 {
        // As long as the line is high, each end of interrupt brings the next.
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
        assert_eq!(entry(&machine) & REMOTE_IRR, REMOTE_IRR);
    }
    machine.vm.irq_line(PIN, false);
    sleeps(&machine.vcpu);
    assert_eq!(entry(&machine) & REMOTE_IRR, 0);
}

pub(super) fn masked(device: &Device) {
    let machine = machine(device, wait);
    ready(&machine);
    redirect(&machine, MASKED | LEVEL | 0x51);
    machine.vm.irq_line(PIN, true);
    sleeps(&machine.vcpu);
    // A level that is still there counts when the mask goes.
    redirect(&machine, LEVEL | 0x51);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x51));
    machine.vm.irq_line(PIN, false);
    sleeps(&machine.vcpu);
}

pub(super) fn programmed(device: &Device) {
    let machine = machine(device, |a| {
        // Select and data registers; the entry of pin 20 is 0x10 + 2 * 20.
        a.mov(esi, 0xfec0_0000u32)?;
        a.mov(dword_ptr(esi), 0x39)?;
        a.mov(dword_ptr(esi + 0x10), 0)?;
        a.mov(dword_ptr(esi), 0x38)?;
        a.mov(dword_ptr(esi + 0x10), 0x41)?;
        a.mov(ecx, dword_ptr(esi + 0x10))?;
        a.mov(dword_ptr(esi), 1)?;
        a.mov(edx, dword_ptr(esi + 0x10))?;
        wait(a)
    });
    ready(&machine);
    let regs = machine.vcpu.regs();
    // Version register: 24 entries.
    assert_eq!((regs.rcx, regs.rdx >> 16 & 0xff), (0x41, 23));
    machine.vm.irq_line(PIN, true);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
}
