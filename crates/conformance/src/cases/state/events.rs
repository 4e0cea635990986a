//! KVM_GET_VCPU_EVENTS, KVM_GET_MP_STATE.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno},
    vm::{CODE, Exit, RealMode, Vcpu},
};

fn set_events(vcpu: &Vcpu, events: &KvmVcpuEvents) -> Result<i32, Errno> {
    vcpu.fd.put(KVM_SET_VCPU_EVENTS, events)
}

/// HLT at the start; vector `vector` sets BX to its number.
fn machine(device: &Device, vector: u8) -> RealMode {
    let machine = RealMode::new(device, |a| a.hlt());
    machine.set_vector(vector, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(bx, i32::from(vector))?;
        a.hlt()
    });
    machine
}

pub(super) fn exception(device: &Device) {
    // #UD, as if its delivery had been interrupted.
    let machine = machine(device, 6);
    let mut events = machine.vcpu.events();
    assert_eq!((events.exception.injected, events.interrupt.injected, events.nmi.pending), (0, 0, 0));
    (events.exception.injected, events.exception.nr) = (1, 6);
    set_events(&machine.vcpu, &events).expect("KVM_SET_VCPU_EVENTS");
    let back = machine.vcpu.events();
    assert_eq!((back.exception.injected, back.exception.nr), (1, 6));
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rbx, 6);
    assert_eq!(machine.memory.u16(0x7ffa), CODE as u16);
    assert_eq!(machine.vcpu.events().exception.injected, 0);
}

pub(super) fn shadow(device: &Device) {
    // The client can tell that STI has just been executed, and say so.
    let machine = RealMode::new(device, |a| {
        a.sti()?;
        a.out(0x10, al)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    assert_eq!(vcpu.run(), Exit::out8(0x10, 0));
    vcpu.run_to_hlt();
    assert_eq!(vcpu.events().interrupt.shadow, 0);
    let mut events = vcpu.events();
    (events.flags, events.interrupt.shadow) = (KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI);
    set_events(vcpu, &events).expect("KVM_SET_VCPU_EVENTS");
    assert_ne!(vcpu.events().interrupt.shadow & KVM_X86_SHADOW_INT_STI, 0);
    (events.flags, events.interrupt.shadow) = (KVM_VCPUEVENT_VALID_SHADOW, 0);
    set_events(vcpu, &events).expect("KVM_SET_VCPU_EVENTS");
    assert_eq!(vcpu.events().interrupt.shadow, 0);
}

pub(super) fn nmi(device: &Device) {
    let machine = machine(device, 2);
    let vcpu = &machine.vcpu;
    let mut events = vcpu.events();
    assert_ne!(events.flags & KVM_VCPUEVENT_VALID_NMI_PENDING, 0);
    (events.flags, events.nmi.pending, events.nmi.masked) = (KVM_VCPUEVENT_VALID_NMI_PENDING, 1, 1);
    set_events(vcpu, &events).expect("KVM_SET_VCPU_EVENTS");
    let back = vcpu.events().nmi;
    assert_eq!((back.pending, back.masked), (1, 1));
    // Masked: it waits.
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rip, CODE + 1);
    vcpu.edit_regs(|r| r.rip = CODE);
    let mut events = vcpu.events();
    (events.flags, events.nmi.masked) = (0, 0);
    set_events(vcpu, &events).expect("KVM_SET_VCPU_EVENTS");
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rbx, 2);
    let after = vcpu.events().nmi;
    assert_eq!((after.pending, after.masked), (0, 1));
}

pub(super) fn impossible(device: &Device) {
    let vcpu = device.vm().vcpu(0);
    let good = vcpu.events();
    type Edit = fn(&mut KvmVcpuEvents);
    let edits: [(&str, Edit); 3] = [
        ("flags", |e| e.flags = 1 << 31),
        ("a vector above 31", |e| (e.exception.injected, e.exception.nr) = (1, 32)),
        ("NMI as an exception", |e| (e.exception.injected, e.exception.nr) = (1, 2)),
    ];
    for (what, edit) in edits {
        let mut events = good;
        edit(&mut events);
        assert_eq!(set_events(&vcpu, &events), Err(Errno::EINVAL), "{what}");
    }
}

pub(super) fn payload(device: &Device) {
    let vm = device.vm();
    vm.enable(KVM_CAP_EXCEPTION_PAYLOAD, [1, 0, 0, 0]).expect("KVM_ENABLE_CAP");
    let machine = RealMode::with_code(vm, &[0xf4]);
    machine.set_vector(14, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(eax, cr2)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    let mut events = vcpu.events();
    events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    (events.exception.pending, events.exception.injected, events.exception.nr) = (1, 0, 14);
    (events.exception_has_payload, events.exception_payload) = (1, 0x12_3456);
    set_events(vcpu, &events).expect("KVM_SET_VCPU_EVENTS");
    // CR2 changes when the exception is delivered, not before.
    assert_eq!(vcpu.sregs().cr2, 0);
    vcpu.run_to_hlt();
    assert_eq!((vcpu.regs().rax, vcpu.sregs().cr2), (0x12_3456, 0x12_3456));
}

pub(super) fn mp_state(device: &Device) {
    let machine = machine(device, 2);
    let vcpu = &machine.vcpu;
    assert_eq!(vcpu.mp_state(), KVM_MP_STATE_RUNNABLE);
    assert_eq!(vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE), Ok(0));
    // Without local APICs nothing else makes sense.
    for state in [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_HALTED, KVM_MP_STATE_SIPI_RECEIVED, 77] {
        assert_eq!(vcpu.set_mp_state(state), Err(Errno::EINVAL), "state {state}");
    }
    vcpu.run_to_hlt();
    assert_eq!(vcpu.mp_state(), KVM_MP_STATE_RUNNABLE);
}

pub(super) fn mp_state_apic(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let (first, second) = (vm.vcpu(0), vm.vcpu(1));
    assert_eq!((first.mp_state(), second.mp_state()), (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED));
    for state in [KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_RUNNABLE] {
        assert_eq!(second.set_mp_state(state), Ok(0), "state {state}");
        assert_eq!(second.mp_state(), state);
    }
    assert_eq!(second.set_mp_state(77), Err(Errno::EINVAL));
}
