//! Making and closing: any order is safe, numbers are bounded, nothing is left behind.
use abi::*;
use std::vec::Vec;

use crate::{
    Errno, Kvm, Outcome,
    testing::{Machine, cx, host, script::Scripted},
};

fn vms(kvm: &Kvm<Scripted>) -> Vec<u32> {
    let mut all = Vec::new();
    kvm.for_each_vm(|n| all.push(n));
    all
}

#[test]
fn each_vm_is_in_the_list_once_while_it_lives() {
    let kvm = Kvm::new(Scripted::default(), &cx()).unwrap();
    let make = || match kvm.ioctl(KVM_CREATE_VM, 0, &cx()).unwrap() {
        Outcome::NewVm(vm) => vm,
        other => panic!("{other:?}"),
    };
    let (a, b) = (make(), make());
    let again = a.clone();
    assert_eq!(vms(&kvm), [1, 2]);
    drop(a);
    assert_eq!(vms(&kvm), [1, 2]);
    drop(again);
    assert_eq!(vms(&kvm), [2]);
    drop(b);
    assert_eq!(vms(&kvm), []);
}

#[test]
fn a_vcpu_keeps_its_vm_and_statistics_keep_it_too() {
    let m = Machine::with_irqchip();
    m.vm_ioctl(KVM_CREATE_PIT2, &mut KvmPitConfig::default()).unwrap();
    let Outcome::NewStats(stats) = m.vm.ioctl(KVM_GET_STATS_FD, 0, &cx()).unwrap() else { panic!() };
    let Machine { kvm, vm, vcpu, .. } = m;
    drop(vm);
    assert_eq!(vms(&kvm), [1]);
    assert!(vcpu.ioctl(KVM_GET_TSC_KHZ, 0, &cx()).is_ok());
    drop(vcpu);
    assert!(stats.read_at(0, &mut [0; 64]) == 64);
    drop(stats);
    assert_eq!(vms(&kvm), [], "a timer or a handle keeps the VM");
}

#[test]
fn vcpu_numbers_are_bounded_and_used_once() {
    let m = Machine::new();
    let create = |id| m.vm.ioctl(KVM_CREATE_VCPU, id, &cx()).map(drop);
    assert_eq!(create(0), Err(Errno::EEXIST));
    assert_eq!(create(255), Ok(()));
    for id in [256, 1 << 32, u64::MAX] {
        assert_eq!(create(id), Err(Errno::EINVAL));
    }
    assert_eq!(m.vm.vcpu_ids().collect::<Vec<_>>(), [0, 255]);
}

#[test]
fn what_must_precede_vcpus_is_refused_after_one() {
    let m = Machine::new();
    let irqchip = m.vm.ioctl(KVM_CREATE_IRQCHIP, 0, &cx()).map(drop);
    assert_eq!(irqchip, Err(Errno::EINVAL));
    assert_eq!(m.vm.ioctl(KVM_SET_BOOT_CPU_ID, 1, &cx()).map(drop), Err(Errno::EBUSY));
    assert_eq!(m.vm_ioctl(KVM_SET_IDENTITY_MAP_ADDR, &mut 0u64).map(drop), Err(Errno::EINVAL));
}

fn owned(m: &Machine, slot: u32, gpa: u64, size: u64) -> Result<(), Errno> {
    let mut region = KvmMemoryRegion { slot, flags: 0, guest_phys_addr: gpa, memory_size: size };
    m.vm_ioctl(KVM_SET_MEMORY_REGION, &mut region).map(drop)
}

/// A copy of the dirty log to the client, which is made under the lock of the slots, may meet a page of the client's that is
/// to be brought in: of a mapping of this VM's own memory.
#[test]
fn a_page_fault_in_a_mapping_of_the_vms_memory_waits_for_no_lock_of_the_slots() {
    let m = Machine::new();
    owned(&m, 1, 0x10_0000, 0x2000).unwrap();
    let mut all = Vec::new();
    let here = cx();
    let held = m.vm.shared().memory.locked(&here);
    m.vm.for_each_owned(|memory| all.push(memory));
    drop(held);
    assert_eq!(all.len(), 1);
}

#[test]
fn memory_that_the_vm_owns_comes_and_goes_with_its_slot() {
    let m = Machine::new();
    let list = || {
        let mut all = Vec::new();
        m.vm.for_each_owned(|memory| all.push(memory));
        all
    };
    owned(&m, 1, 0x10_0000, 0x2000).unwrap();
    owned(&m, 2, 0x20_0000, 0x1000).unwrap();
    let [first, second] = list()[..] else { panic!("{:?}", list()) };
    assert_eq!((first.gpa, first.bytes, second.gpa, second.bytes), (0x10_0000, 0x2000, 0x20_0000, 0x1000));
    // The guest reaches it, as the client's mapping would.
    let at = first.hva.0;
    let load = move || <host::Client as platform::Memory>::load::<u32>(platform::Hva(at + 0x1004));
    assert_eq!(load(), Ok(0));
    m.script.entry(move |_, env| {
        use mmu::PhysMem;
        env.memory.view(0).unwrap().store(0x10_1004, 7u32).unwrap();
        crate::backend::Exit::Hlt { len: 1 }
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_HLT));
    assert_eq!(load(), Ok(7));
    // The host has no room: nothing changes.
    assert_eq!(owned(&m, 3, 0x1000_0000, 0x1000_0000), Err(Errno::ENOMEM));
    assert_eq!(list().len(), 2);
    owned(&m, 1, 0x30_0000, 0x2000).unwrap();
    assert_eq!(list()[1].hva, first.hva, "a moved slot keeps its memory");
    owned(&m, 1, 0, 0).unwrap();
    assert!(load().is_err(), "deleted, but still there");
    let kept = second.hva;
    drop(m);
    assert!(<host::Client as platform::Memory>::load::<u8>(kept).is_err(), "the VM is gone, but not its memory");
}
