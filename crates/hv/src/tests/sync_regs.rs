//! Registers in kvm_run.
use abi::*;
use core::mem::offset_of;

use crate::{
    Errno,
    backend::Exit,
    testing::{CODE, Machine},
};

const AT: u64 = KVM_RUN_SYNC_REGS_OFFSET as u64;
const SREGS: u64 = AT + offset_of!(KvmSyncRegs, sregs) as u64;
const EVENTS: u64 = AT + offset_of!(KvmSyncRegs, events) as u64;

fn set(m: &Machine, valid: u64, dirty: u64) {
    m.set_run_field(KVM_RUN_VALID_REGS_OFFSET as u64, valid);
    m.set_run_field(KVM_RUN_DIRTY_REGS_OFFSET as u64, dirty);
}

#[test]
fn the_classes_that_the_client_wants_are_shown_at_each_return() {
    let m = Machine::new();
    m.run().unwrap();
    assert_eq!(m.run_field::<KvmRegs>(AT), KvmRegs::default());
    set(&m, KVM_SYNC_X86_REGS | KVM_SYNC_X86_EVENTS, 0);
    m.script.entry(|s, _| {
        s.gpr[0] = 0x77;
        s.shadow = x86::Shadow::Sti;
        Exit::Shutdown
    });
    m.run().unwrap();
    let (regs, sregs): (KvmRegs, KvmSregs) = (m.run_field(AT), m.run_field(SREGS));
    assert_eq!((regs, regs.rax), (m.get(KVM_GET_REGS), 0x77));
    assert_eq!(sregs, KvmSregs::default());
    assert_eq!(m.run_field::<KvmVcpuEvents>(EVENTS).interrupt.shadow, KVM_X86_SHADOW_INT_STI);
    // Also when a signal ends the call.
    set(&m, KVM_SYNC_X86_VALID_FIELDS, 0);
    m.set_run_field(KVM_RUN_IMMEDIATE_EXIT_OFFSET as u64, 1u8);
    assert_eq!(m.run(), Err(Errno::EINTR));
    assert_eq!(m.run_field::<KvmSregs>(SREGS), m.get(KVM_GET_SREGS));
}

#[test]
fn what_the_client_has_changed_is_taken_once() {
    let m = Machine::new();
    let (mut regs, mut sregs): (KvmRegs, KvmSregs) = (m.get(KVM_GET_REGS), m.get(KVM_GET_SREGS));
    let mut events: KvmVcpuEvents = m.get(KVM_GET_VCPU_EVENTS);
    (regs.rbx, regs.rip, sregs.cr2, events.nmi.masked) = (5, CODE + 0x10, 0x123, 1);
    m.set_run_field(AT, regs);
    m.set_run_field(SREGS, sregs);
    m.set_run_field(EVENTS, events);
    set(&m, 0, KVM_SYNC_X86_REGS);
    m.run().unwrap();
    assert_eq!(m.run_field::<u64>(KVM_RUN_DIRTY_REGS_OFFSET as u64), 0);
    assert_eq!(m.state(|s| (s.gpr[3], s.rip, s.cr2)), (5, CODE + 0x10, 0));
    m.state(|s| s.gpr[3] = 6);
    set(&m, 0, KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS);
    m.run().unwrap();
    assert_eq!(m.state(|s| (s.gpr[3], s.cr2)), (6, 0x123));
    assert!(*m.script.nmi_blocked.lock().unwrap());
}

#[test]
fn unknown_classes_and_impossible_registers_are_refused() {
    for (valid, dirty) in [(8, 0), (0, 8), (1 << 63, 0)] {
        let m = Machine::new();
        set(&m, valid, dirty);
        assert_eq!(m.run(), Err(Errno::EINVAL), "{valid:#x} {dirty:#x}");
    }
    let m = Machine::new();
    m.set_run_field(SREGS, KvmSregs { cr0: 1 << 31, ..m.get(KVM_GET_SREGS) });
    set(&m, 0, KVM_SYNC_X86_SREGS);
    assert_eq!(m.run(), Err(Errno::EINVAL));
}

#[test]
fn a_triple_fault_can_be_saved_where_the_client_asked_for_it() {
    let m = Machine::new();
    let mut events: KvmVcpuEvents = m.get(KVM_GET_VCPU_EVENTS);
    events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    events.triple_fault = 1;
    assert_eq!(m.ioctl(KVM_SET_VCPU_EVENTS, &mut events).map(drop), Err(Errno::EINVAL));
    let mut enable = KvmEnableCap { cap: KVM_CAP_X86_TRIPLE_FAULT_EVENT, ..KvmEnableCap::default() };
    enable.args[0] = 1;
    m.vm_ioctl(KVM_ENABLE_CAP, &mut enable).unwrap();
    m.ioctl(KVM_SET_VCPU_EVENTS, &mut events).unwrap();
    // It stays when the client does not speak of it.
    let mut other = KvmVcpuEvents { flags: 0, triple_fault: 0, ..events };
    m.ioctl(KVM_SET_VCPU_EVENTS, &mut other).unwrap();
    let seen: KvmVcpuEvents = m.get(KVM_GET_VCPU_EVENTS);
    assert_eq!((seen.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT != 0, seen.triple_fault), (true, 1));
    assert_eq!(m.run(), Ok(KVM_EXIT_SHUTDOWN));
    assert_eq!(m.get::<KvmVcpuEvents>(KVM_GET_VCPU_EVENTS).triple_fault, 0);
}
