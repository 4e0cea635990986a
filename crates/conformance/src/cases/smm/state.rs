//! System management mode in what the client saves and restores.
use super::*;

fn set(vcpu: &Vcpu, edit: impl FnOnce(&mut KvmVcpuEvents)) -> Result<i32, Errno> {
    let mut events = vcpu.events();
    edit(&mut events);
    events.flags |= KVM_VCPUEVENT_VALID_SMM;
    vcpu.fd.put(KVM_SET_VCPU_EVENTS, &events)
}

pub(super) fn events(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    let vcpu = machine.vcpu();
    let events = vcpu.events();
    assert_eq!((events.flags & KVM_VCPUEVENT_VALID_SMM, events.smi), (KVM_VCPUEVENT_VALID_SMM, KvmEventSmi::default()));
    machine.smi();
    machine.run_to_out();
    assert_eq!(vcpu.events().smi, KvmEventSmi { smm: 1, ..Default::default() });
    // Out of the mode and in again: the rest of the handler is only there in it.
    set(vcpu, |e| e.smi.smm = 0).expect("KVM_SET_VCPU_EVENTS");
    assert_eq!(vcpu.events().smi.smm, 0);
    set(vcpu, |e| e.smi.smm = 1).expect("KVM_SET_VCPU_EVENTS");
    vcpu.run_to_hlt();
    assert_eq!((vcpu.events().smi, vcpu.regs().rbx), (KvmEventSmi::default(), 1));
}

pub(super) fn pending(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    let vcpu = machine.vcpu();
    machine.smi();
    assert_eq!(vcpu.events().smi, KvmEventSmi { pending: 1, ..Default::default() });
    set(vcpu, |e| e.smi.pending = 0).expect("KVM_SET_VCPU_EVENTS");
    vcpu.run_to_hlt();
    set(vcpu, |e| e.smi.pending = 1).expect("KVM_SET_VCPU_EVENTS");
    assert_eq!(machine.run_to_out(), 7);
    // NMIs that were blocked before stay so.
    set(vcpu, |e| e.smi.smm_inside_nmi = 1).expect("KVM_SET_VCPU_EVENTS");
    vcpu.edit_regs(|r| r.rip = 0x8000);
    assert_eq!(machine.run_to_out(), 7);
    machine.smram.set_u32(AREA + 0x178, CODE as u32);
    machine.smram.set_u32(AREA + 0x1f0, CODE as u32);
    vcpu.run_to_hlt();
    assert_eq!((vcpu.events().smi, vcpu.events().nmi.masked), (KvmEventSmi::default(), 1));
}

/// A vCPU that waits after INIT would lose it.
pub(super) fn init(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let vcpu = vm.vcpu(0);
    set(&vcpu, |e| e.smi.smm = 1).expect("KVM_SET_VCPU_EVENTS");
    assert_eq!(vcpu.set_mp_state(KVM_MP_STATE_INIT_RECEIVED), Err(Errno::EINVAL));
    set(&vcpu, |e| e.smi.latched_init = 1).expect("KVM_SET_VCPU_EVENTS");
    let shown = vcpu.events().smi;
    assert_eq!((shown.smm, shown.latched_init), (1, 1));
    set(&vcpu, |e| (e.smi.smm, e.smi.latched_init) = (0, 0)).expect("KVM_SET_VCPU_EVENTS");
    vcpu.set_mp_state(KVM_MP_STATE_INIT_RECEIVED).expect("KVM_SET_MP_STATE");
    assert_eq!(set(&vcpu, |e| e.smi.smm = 1), Err(Errno::EINVAL));
}

pub(super) fn msrs(device: &Device) {
    let machine = Machine::new(
        device,
        |a| {
            a.mov(ecx, 0x34)?;
            a.rdmsr()?;
            a.out(PORT, al)?;
            a.mov(ecx, 0x9e)?;
            a.rdmsr()?;
            a.hlt()
        },
        |a| a.rsm(),
    );
    machine.real.set_vector(13, 0x3000);
    machine.real.put_code(0x3000, |a| a.hlt());
    let vcpu = machine.vcpu();
    vcpu.support_all(device);
    assert_eq!((vcpu.msr(0x9e), vcpu.msr(0x34)), (Some(SMBASE), Some(0)));
    machine.smi();
    assert_eq!(machine.run_to_out(), 1, "SMI_COUNT is the guest's to read");
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rip, 0x3001, "SMBASE is not");
    assert!(vcpu.set_msr(0x34, 5) && vcpu.set_msr(0x9e, 0x1_0000));
    assert_eq!((vcpu.msr(0x9e), vcpu.msr(0x34)), (Some(0x1_0000), Some(5)));
}
