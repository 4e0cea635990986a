//! Slots that cannot be.
use abi::*;

use crate::{
    device::{Device, Errno, Memory},
    vm::Vm,
};

fn set(vm: &Vm, slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Result<i32, Errno> {
    vm.fd.put(
        KVM_SET_USER_MEMORY_REGION,
        &KvmUserspaceMemoryRegion { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva },
    )
}

pub(super) fn alignment(device: &Device) {
    let (vm, memory) = (device.vm(), Memory::new(0x4000));
    let hva = memory.address();
    for (what, gpa, size, hva) in [
        ("a gpa inside a page", 0x20800, 0x1000, hva),
        ("a size that is no number of pages", 0x20000, 0x1800, hva),
        ("less than a page", 0x20000, 1, hva),
        ("an address inside a page", 0x20000, 0x1000, hva + 8),
        ("an end behind the last address", u64::MAX - 0xfff, 0x2000, hva),
        ("an end at 2^64", u64::MAX - 0xfff, 0x1000, hva),
        ("an address of the kernel", 0x20000, 0x1000, 0xffff_8000_0000_0000),
        ("an address range that runs into the kernel's half", 0x20000, 0x4000, 0x7fff_ffff_e000),
        ("an address range that ends in the last page before it", 0x20000, 0x2000, 0x7fff_ffff_e000),
        ("an address range that wraps", 0x20000, 0x1000, u64::MAX - 0xfff),
    ] {
        assert_eq!(set(&vm, 0, 0, gpa, size, hva), Err(Errno::EINVAL), "{what}");
    }
    assert_eq!(set(&vm, 0, 0, 0x20000, 0x1000, hva), Ok(0));
}

pub(super) fn overlaps(device: &Device) {
    let (vm, memory) = (device.vm(), Memory::new(0x8000));
    let hva = memory.address();
    set(&vm, 1, 0, 0x20000, 0x4000, hva).expect("a slot");
    for (gpa, size) in [(0x20000, 0x4000), (0x23000, 0x1000), (0x1f000, 0x2000), (0x1f000, 0x8000), (0x21000, 0x1000)] {
        assert_eq!(set(&vm, 2, 0, gpa, size, hva), Err(Errno::EEXIST), "{gpa:#x}+{size:#x}");
    }
    set(&vm, 2, 0, 0x24000, 0x1000, hva).expect("the slot behind");
    set(&vm, 3, 0, 0x1f000, 0x1000, hva).expect("the slot before");
    // A move onto another one; a move that overlaps only its own old place is allowed.
    assert_eq!(set(&vm, 2, 0, 0x23000, 0x1000, hva), Err(Errno::EEXIST));
    assert_eq!(set(&vm, 2, 0, 0x25000, 0x1000, hva), Ok(0));
    set(&vm, 4, 0, 0x30000, 0x4000, hva).expect("a slot");
    assert_eq!(set(&vm, 4, 0, 0x31000, 0x4000, hva), Ok(0));
}

pub(super) fn changes(device: &Device) {
    let (vm, memory) = (device.vm(), Memory::new(0x8000));
    let hva = memory.address();
    set(&vm, 1, 0, 0x20000, 0x4000, hva).expect("a slot");
    assert_eq!(set(&vm, 1, 0, 0x20000, 0x5000, hva), Err(Errno::EINVAL), "another size");
    assert_eq!(set(&vm, 1, 0, 0x20000, 0x4000, hva + 0x1000), Err(Errno::EINVAL), "another address");
    if device.cap(KVM_CAP_READONLY_MEM) != 0 {
        assert_eq!(set(&vm, 1, KVM_MEM_READONLY, 0x20000, 0x4000, hva), Err(Errno::EINVAL), "read-only");
    }
    // Nothing new is fine.
    assert_eq!(set(&vm, 1, 0, 0x20000, 0x4000, hva), Ok(0));
    assert_eq!(set(&vm, 2, 0, 0, 0, 0), Err(Errno::EINVAL), "deletion of what is not there");
    assert_eq!(set(&vm, 1, 0, 0x77000, 0, 0), Ok(0), "deletion does not look at the address");
    assert_eq!(set(&vm, 1, 0, 0, 0, 0), Err(Errno::EINVAL), "a second deletion");
}

pub(super) fn numbers(device: &Device) {
    let (vm, memory) = (device.vm(), Memory::new(0x1000));
    let hva = memory.address();
    let limit = device.cap(KVM_CAP_NR_MEMSLOTS) as u32;
    for slot in [limit, 0xffff] {
        assert_eq!(set(&vm, slot, 0, 0x20000, 0x1000, hva), Err(Errno::EINVAL), "slot {slot}");
    }
    assert_eq!(set(&vm, limit - 1, 0, 0x20000, 0x1000, hva), Ok(0));
    if device.cap(KVM_CAP_MULTI_ADDRESS_SPACE) <= 1 {
        assert_eq!(set(&vm, 1 << 16, 0, 0x30000, 0x1000, hva), Err(Errno::EINVAL));
    }
    for flags in [4, 1 << 31, u32::MAX] {
        assert_eq!(set(&vm, 1, flags, 0x30000, 0x1000, hva), Err(Errno::EINVAL), "flags {flags:#x}");
    }
}

pub(super) fn intel_pages(device: &Device) {
    let vm = device.vm();
    assert_eq!(vm.fd.number(KVM_SET_TSS_ADDR, 0xfffb_d000), Ok(0));
    assert_eq!(vm.fd.put(KVM_SET_IDENTITY_MAP_ADDR, &0xfffb_c000u64), Ok(0));
    let _vcpu = vm.vcpu(0);
    // Too late.
    assert_eq!(vm.fd.put(KVM_SET_IDENTITY_MAP_ADDR, &0xfffb_c000u64), Err(Errno::EINVAL));
}

pub(super) fn mmu_pages(device: &Device) {
    let vm = device.vm();
    assert_eq!(vm.fd.number(KVM_SET_NR_MMU_PAGES, 1024), Ok(0));
    assert_eq!(vm.fd.number(KVM_GET_NR_MMU_PAGES, 0), Ok(1024));
    // Below what a vCPU needs at once.
    assert_eq!(vm.fd.number(KVM_SET_NR_MMU_PAGES, 3), Err(Errno::EINVAL));
    assert_eq!(vm.fd.number(KVM_GET_NR_MMU_PAGES, 0), Ok(1024));
}
