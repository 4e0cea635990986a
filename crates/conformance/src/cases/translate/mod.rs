//! KVM_TRANSLATE in every paging mode.
use crate::{
    device::Device,
    runner::{Case, case},
    vm::{RealMode, Vcpu},
};

pub(super) const CASES: &[Case] = &[
    case("without-paging", "A11 B01", off),
    case("two-levels", "A11 B01", two_levels),
    case("looking-sets-accessed-bits", "A11", accessed),
    case("pae", "A11 B01 B05", pae),
    case("long-mode", "A11 B01", long),
    case("tables-that-are-not-there", "A11 B06", no_tables),
];

fn gpa(vcpu: &Vcpu, gva: u64) -> Option<u64> {
    vcpu.translate(gva).map(|t| t.physical_address)
}

fn machine(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| a.hlt());
    machine.vcpu.support_all(device);
    machine
}

fn off(device: &Device) {
    let vcpu = machine(device).vcpu;
    for gva in [0, 0x1234, 0xfffff] {
        assert_eq!(gpa(&vcpu, gva), Some(gva));
    }
    vcpu.edit_sregs(|s| s.cr0 |= 1);
    assert_eq!(gpa(&vcpu, 0xffff_f123), Some(0xffff_f123));
}

fn two_levels(device: &Device) {
    let machine = machine(device);
    // A page table at 0x5000 for the first 4 MiB, a large page at 0xc0000000.
    machine.memory.set_u32(0x4000, 0x5003);
    machine.memory.set_u32(0x4c00, 0x40_0083);
    machine.memory.set_u32(0x5000 + 4 * 7, 0x8003);
    machine.vcpu.edit_sregs(|s| (s.cr0, s.cr3, s.cr4) = (0x8000_0011, 0x4000, 0x10));
    let vcpu = &machine.vcpu;
    assert_eq!(gpa(vcpu, 0x7abc), Some(0x8abc));
    assert_eq!(gpa(vcpu, 0xc012_3456), Some(0x52_3456));
    assert_eq!((gpa(vcpu, 0x8000), gpa(vcpu, 0x40_0000)), (None, None));
}

fn accessed(device: &Device) {
    let machine = machine(device);
    machine.memory.set_u32(0x4000, 0x5003);
    machine.memory.set_u32(0x501c, 0x8003);
    machine.vcpu.edit_sregs(|s| (s.cr0, s.cr3, s.cr4) = (0x8000_0011, 0x4000, 0x10));
    assert_eq!(gpa(&machine.vcpu, 0x7abc), Some(0x8abc));
    assert_eq!((machine.memory.u32(0x4000) & 0x60, machine.memory.u32(0x501c) & 0x60), (0x20, 0x20));
}

fn pae(device: &Device) {
    let machine = machine(device);
    let memory = machine.memory;
    // Two of the four directories; a page table, and a large page.
    memory.set_u64(0x4000, 0x5001);
    memory.set_u64(0x4018, 0x6001);
    memory.set_u64(0x5000, 0x7003);
    memory.set_u64(0x6008, 0x60_0083);
    memory.set_u64(0x7000 + 8 * 5, 0x1_2345_6003);
    machine.vcpu.edit_sregs(|s| (s.cr0, s.cr3, s.cr4) = (0x8000_0011, 0x4000, 0x20));
    let vcpu = &machine.vcpu;
    assert_eq!(gpa(vcpu, 0x5678), Some(0x1_2345_6678));
    assert_eq!(gpa(vcpu, 0xc021_2345), Some(0x61_2345));
    assert_eq!((gpa(vcpu, 0x4000_0000), gpa(vcpu, 0xc000_0000)), (None, None));
}

fn long(device: &Device) {
    let machine = machine(device);
    machine.go_long(device, 0x1000, |a| a.hlt());
    let memory = machine.memory;
    // A page table at 0x7000 at the top of the address space, by way of the same tables.
    memory.set_u64(0x4ff8, 0x5003);
    memory.set_u64(0x5ff8, 0x6003);
    memory.set_u64(0x6ff8, 0x7003);
    memory.set_u64(0x7ff8, 0x9003 | 1 << 35);
    let vcpu = &machine.vcpu;
    assert_eq!(gpa(vcpu, 0x1f_ffff), Some(0x1f_ffff));
    assert_eq!(gpa(vcpu, 0xffff_ffff_ffff_fabc), Some(0x9abc | 1 << 35));
    assert_eq!((gpa(vcpu, 0x20_0000), gpa(vcpu, 0xffff_ffff_ffff_e000)), (None, None));
}

fn no_tables(device: &Device) {
    let machine = machine(device);
    machine.vcpu.edit_sregs(|s| (s.cr0, s.cr3, s.cr4) = (0x8000_0011, 0x7fff_f000, 0x10));
    assert_eq!(gpa(&machine.vcpu, 0x1000), None);
    machine.vcpu.edit_sregs(|s| (s.cr0, s.cr3, s.cr4) = (0x10, 0, 0));
    machine.vcpu.run_to_hlt();
}
