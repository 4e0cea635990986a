//! The local APIC, by its page, by its MSRs and by messages.
use abi::*;
use iced_x86::{IcedError, code_asm::*};

use crate::{
    device::Device,
    vm::{CODE, Exit, RealMode, assemble, cpuid2},
};

/// Writes a register of the local APIC. DS reaches all of memory.
pub(super) fn store(a: &mut CodeAssembler, register: i32, value: i32) -> Result<(), IcedError> {
    a.mov(ebx, 0xfee0_0000u32 as i32 + register)?;
    a.mov(dword_ptr(ebx), value)
}

/// A machine with local APICs, whose data segment reaches 4 GiB. Code begins by enabling the APIC; the handlers of vectors
/// 0x41, 0x51 and 0x61 tell port 0x81 their number and end the interrupt.
pub(in crate::cases) fn machine(
    device: &Device,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> RealMode {
    let vm = device.vm();
    vm.irqchip();
    in_vm(device, vm, code)
}

/// The same in a VM that has its controllers.
pub(in crate::cases) fn in_vm(
    device: &Device,
    vm: crate::vm::Vm,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> RealMode {
    let code = assemble(16, CODE, |a| {
        store(a, 0xf0, 0x1ff)?;
        code(a)
    });
    let machine = RealMode::with_code(vm, &code);
    for vector in [0x41u8, 0x51, 0x61] {
        let ip = 0x3000 + u16::from(vector) * 32;
        machine.set_vector(vector, ip);
        machine.put_code(ip, |a| {
            a.mov(al, i32::from(vector))?;
            a.out(0x81, al)?;
            store(a, 0xb0, 0)?;
            a.iret()
        });
    }
    machine.vcpu.support_all(device);
    machine.vcpu.edit_sregs(|s| (s.ds.limit, s.ds.g) = (u32::MAX, 1));
    machine
}

/// Tells port 0x80, allows interrupts and halts for ever.
pub(in crate::cases) fn wait(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(0x80, al)?;
    let mut wait = a.create_label();
    a.sti()?;
    a.set_label(&mut wait)?;
    a.hlt()?;
    a.jmp(wait)
}

pub(in crate::cases) fn ready(machine: &RealMode) {
    assert!(matches!(machine.vcpu.run(), Exit::Out { port: 0x80, .. }));
}

pub(in crate::cases) fn registers(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(ebx, 0xfee0_0030u32)?;
        a.mov(ecx, dword_ptr(ebx))?;
        store(a, 0x80, 0x30)?;
        a.mov(edx, dword_ptr(ebx))?;
        // A read-modify-write of the logical destination.
        store(a, 0xd0, 0x0100_0000)?;
        a.or(dword_ptr(ebx), 0x0600_0000)?;
        a.mov(esi, dword_ptr(ebx))?;
        a.out(0x80, al)
    });
    ready(&machine);
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rcx & 0xff, regs.rdx, regs.rsi), (0x14, 0x30, 0x0700_0000));
    let state: KvmLapicState = machine.vcpu.fd.get(KVM_GET_LAPIC).expect("KVM_GET_LAPIC");
    assert_eq!((state.regs[0x80], state.regs[0xd3], state.regs[0xf1]), (0x30, 7, 1));
    assert_eq!((machine.vcpu.page.cr8(), machine.vcpu.sregs().cr8), (3, 3));
}

pub(in crate::cases) fn self_ipi(device: &Device) {
    let machine = machine(device, |a| {
        store(a, 0x300, 0x4_0041)?;
        wait(a)
    });
    ready(&machine);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
    let state: KvmLapicState = machine.vcpu.fd.get(KVM_GET_LAPIC).expect("KVM_GET_LAPIC");
    // In service until the end of interrupt: bit 1 of the third word.
    assert_eq!((state.regs[0x120], state.regs[0x220]), (2, 0));
}

pub(in crate::cases) fn priorities(device: &Device) {
    let machine = machine(device, |a| {
        store(a, 0x80, 0x50)?;
        for vector in [0x41, 0x51, 0x61] {
            store(a, 0x300, 0x4_0000 | vector)?;
        }
        a.out(0x80, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.out(0x82, al)?;
        store(a, 0x80, 0)?;
        wait(a)
    });
    ready(&machine);
    // Above the task priority's class only, until it is lowered; then the highest first.
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x61));
    assert!(matches!(machine.vcpu.run(), Exit::Out { port: 0x82, .. }));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x51));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
}

pub(in crate::cases) fn timer(device: &Device) {
    let machine = machine(device, |a| {
        store(a, 0x3e0, 0xb)?;
        store(a, 0x320, 0x41)?;
        store(a, 0x380, 100_000)?;
        wait(a)
    });
    ready(&machine);
    // One shot: once.
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
    let state: KvmLapicState = machine.vcpu.fd.get(KVM_GET_LAPIC).expect("KVM_GET_LAPIC");
    assert_eq!(state.regs[0x390..0x394], [0; 4]);
    let (exit, ()) = crate::vm::while_running(&machine.vcpu, |running| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        assert!(!running.done());
        running.stop();
    });
    assert!(exit.is_err());
}

pub(in crate::cases) fn deadline(device: &Device) {
    let machine = machine(device, |a| {
        store(a, 0x320, 0x4_0041)?;
        a.sti()?;
        // TSC, and IA32_TSC_DEADLINE with what it was.
        a.mov(ecx, 0x10)?;
        a.rdmsr()?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        a.nop()?;
        a.mov(esi, 1)?;
        a.rdmsr()?;
        a.or(eax, edx)?;
        a.out(0x82, al)
    });
    // That the timer has this mode is told by a capability; the client has to say it to the guest.
    let mut entries = cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID);
    entries.iter_mut().filter(|entry| entry.function == 1).for_each(|entry| entry.ecx |= 1 << 24);
    machine.vcpu.set_cpuid(&entries).expect("KVM_SET_CPUID2");
    machine.vcpu.edit_regs(|regs| regs.rsi = 0);
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
    assert_eq!(machine.vcpu.regs().rsi, 0, "the guest went on");
    // It is disarmed.
    assert_eq!(machine.vcpu.run(), Exit::out8(0x82, 0));
}

pub(in crate::cases) fn x2apic(device: &Device) {
    let machine = machine(device, |a| {
        // IA32_APIC_BASE: x2APIC mode.
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.or(eax, 0x400)?;
        a.wrmsr()?;
        // Version, then a self-IPI by its own register.
        a.mov(ecx, 0x803)?;
        a.rdmsr()?;
        a.mov(esi, eax)?;
        a.mov(ecx, 0x83f)?;
        a.mov(eax, 0x41)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        wait(a)
    });
    // The end of an interrupt is an MSR too.
    machine.put_code(0x3000 + 0x41 * 32, |a| {
        a.out(0x81, al)?;
        a.mov(ecx, 0x80b)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.iret()
    });
    ready(&machine);
    assert_eq!((machine.vcpu.regs().rsi & 0xff, machine.vcpu.sregs().apic_base & 0xc00), (0x14, 0xc00));
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
}

pub(in crate::cases) fn msi(device: &Device) {
    let machine = machine(device, wait);
    ready(&machine);
    let message = KvmMsi { address_lo: 0xfee0_0000, data: 0x41, ..KvmMsi::default() };
    let sent = machine.vm.fd.put(KVM_SIGNAL_MSI, &message);
    assert!(sent.is_ok_and(|delivered| delivered > 0), "{sent:?}");
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
    assert_eq!(
        machine.vm.fd.put(KVM_SIGNAL_MSI, &KvmMsi { flags: 1 << 7, ..message }),
        Err(crate::device::Errno::EINVAL)
    );
}

pub(in crate::cases) fn msi_route(device: &Device) {
    let machine = machine(device, wait);
    ready(&machine);
    let routes = [KvmIrqRoutingEntry::to_msi(30, 0xfee0_0000, 0x41), KvmIrqRoutingEntry::to_msi(31, 0xfee0_0000, 0x51)];
    super::calls::set_routes(&machine.vm.fd, &routes).expect("KVM_SET_GSI_ROUTING");
    for (gsi, vector) in [(30, 0x41), (31, 0x51), (30, 0x41)] {
        machine.vm.irq_line(gsi, true);
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, vector));
    }
}

pub(in crate::cases) fn nmi_ipi(device: &Device) {
    let machine = machine(device, |a| {
        // To itself by its id, delivery mode NMI.
        store(a, 0x310, 0)?;
        store(a, 0x300, 0x400)?;
        a.hlt()
    });
    machine.set_vector(2, 0x2000);
    machine.put_code(0x2000, |a| {
        a.out(0x82, al)?;
        a.iret()
    });
    assert!(matches!(machine.vcpu.run(), Exit::Out { port: 0x82, .. }));
}
