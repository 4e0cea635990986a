//! Changes of the slots and dirty logs: the guest flushes nothing.
use abi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_SET_MEMORY_ALIAS, KvmMemoryAlias};

use super::{FRAMES, HOLE, PWU, Paged, TABLE, WINDOW};
use crate::{
    device::{Device, Memory},
    vm::Exit,
};

/// A page with `value` at its beginning.
fn page(value: u32) -> Memory {
    let memory = Memory::new(4096);
    memory.set_u32(0, value);
    memory
}

pub(super) fn other_memory(device: &Device) {
    let machine = Paged::new(device);
    let vcpus = [machine.vcpu(0), machine.vcpu(1)];
    machine.memory.set_u32(TABLE as usize, HOLE | PWU);
    let set = |memory| machine.vm.set_slot(1, 0, HOLE.into(), memory).expect("KVM_SET_USER_MEMORY_REGION");
    set(page(1));
    // At two addresses, and by both vCPUs.
    for vcpu in &vcpus {
        assert_eq!((machine.read(vcpu, HOLE), machine.read(vcpu, WINDOW)), (1, 1));
    }
    machine.vm.delete_slot(1).expect("deleting a slot");
    set(page(2));
    for vcpu in &vcpus {
        assert_eq!((machine.read(vcpu, HOLE), machine.read(vcpu, WINDOW)), (2, 2));
    }
}

pub(super) fn gone(device: &Device) {
    let machine = Paged::new(device);
    let vcpu = machine.vcpu(0);
    machine.vm.set_slot(1, 0, HOLE.into(), page(1)).expect("KVM_SET_USER_MEMORY_REGION");
    assert_eq!(machine.read(&vcpu, HOLE), 1);
    machine.vm.delete_slot(1).expect("deleting a slot");
    machine.begin(&vcpu, |a| super::store(a, HOLE, 2));
    assert_eq!(vcpu.run(), Exit::Write { gpa: HOLE.into(), data: vec![2, 0, 0, 0] });
}

pub(super) fn alias(device: &Device) {
    let machine = Paged::new(device);
    let vcpu = machine.vcpu(0);
    let set = |frame: u32| {
        machine.memory.set_u32(frame as usize, frame);
        let alias = KvmMemoryAlias {
            slot: 0,
            flags: 0,
            guest_phys_addr: HOLE.into(),
            memory_size: 4096,
            target_phys_addr: frame.into(),
        };
        machine.vm.fd.put(KVM_SET_MEMORY_ALIAS, &alias).expect("KVM_SET_MEMORY_ALIAS");
    };
    for frame in [FRAMES, FRAMES + 0x1000] {
        set(frame);
        assert_eq!(machine.read(&vcpu, HOLE), frame);
    }
}

pub(super) fn log_begins(device: &Device) {
    let machine = Paged::new(device);
    let vcpus = [machine.vcpu(0), machine.vcpu(1)];
    let memory = page(0);
    machine.vm.set_slot(1, 0, HOLE.into(), memory).expect("KVM_SET_USER_MEMORY_REGION");
    vcpus.iter().for_each(|vcpu| machine.write(vcpu, HOLE, 1));
    machine.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, HOLE.into(), memory).expect("a dirty log");
    machine.write(&vcpus[1], HOLE, 2);
    assert_eq!(machine.vm.dirty(1, 1), [0]);
}

pub(super) fn log_taken(device: &Device) {
    let machine = Paged::new(device);
    let vcpus = [machine.vcpu(0), machine.vcpu(1)];
    machine.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, HOLE.into(), page(0)).expect("a dirty log");
    vcpus.iter().for_each(|vcpu| machine.write(vcpu, HOLE, 1));
    for vcpu in vcpus.iter().cycle().take(4) {
        assert_eq!(machine.vm.dirty(1, 1), [0]);
        machine.write(vcpu, HOLE, 2);
    }
}
