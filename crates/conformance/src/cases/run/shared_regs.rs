//! KVM_CAP_SYNC_REGS: registers in kvm_run instead of by ioctls.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno},
    vm::{CODE, RealMode},
};

fn machine(device: &Device) -> RealMode {
    RealMode::new(device, |a| {
        a.inc(bx)?;
        a.hlt()?;
        a.inc(bx)?;
        a.hlt()
    })
}

pub(super) fn valid(device: &Device) {
    let classes = device.cap(KVM_CAP_SYNC_REGS) as u64;
    assert_eq!(classes & KVM_SYNC_X86_REGS, KVM_SYNC_X86_REGS);
    let machine = machine(device);
    let (vcpu, page) = (&machine.vcpu, machine.vcpu.page);
    page.0.set_u64(KVM_RUN_VALID_REGS_OFFSET, classes & KVM_SYNC_X86_VALID_FIELDS);
    vcpu.run_to_hlt();
    let shared: KvmSyncRegs = page.0.pod(KVM_RUN_SYNC_REGS_OFFSET);
    assert_eq!(shared.regs, vcpu.regs());
    assert_eq!(shared.regs.rip, CODE + 2);
    if classes & KVM_SYNC_X86_SREGS != 0 {
        assert_eq!(shared.sregs, vcpu.sregs());
    }
}

pub(super) fn dirty(device: &Device) {
    let machine = machine(device);
    let (vcpu, page) = (&machine.vcpu, machine.vcpu.page);
    page.0.set_u64(KVM_RUN_VALID_REGS_OFFSET, KVM_SYNC_X86_REGS);
    vcpu.run_to_hlt();
    let mut shared: KvmSyncRegs = page.0.pod(KVM_RUN_SYNC_REGS_OFFSET);
    shared.regs.rbx = 0x1000;
    page.0.set_pod(KVM_RUN_SYNC_REGS_OFFSET, &shared);
    page.0.set_u64(KVM_RUN_DIRTY_REGS_OFFSET, KVM_SYNC_X86_REGS);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rbx, 0x1001);
    assert_eq!(page.0.u64(KVM_RUN_DIRTY_REGS_OFFSET), 0);
}

pub(super) fn unknown(device: &Device) {
    let machine = machine(device);
    let page = machine.vcpu.page;
    for offset in [KVM_RUN_VALID_REGS_OFFSET, KVM_RUN_DIRTY_REGS_OFFSET] {
        page.0.set_u64(offset, 1 << 40);
        assert_eq!(machine.vcpu.try_run(), Err(Errno::EINVAL));
        page.0.set_u64(offset, 0);
    }
    assert_eq!(machine.vcpu.regs().rip, CODE);
    machine.vcpu.run_to_hlt();
}
