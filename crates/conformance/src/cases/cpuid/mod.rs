//! CPUID: the table that the client sets is what the guest sees.
use abi::*;
use iced_x86::code_asm as asm;

use crate::{
    device::{Device, Errno},
    runner::{Case, case},
    vm::{RealMode, cpuid2, list_with},
};

pub(super) const CASES: &[Case] = &[
    case("the-guest-sees-the-table", "A08", guest_sees_table),
    case("sub-leaves", "A08", sub_leaves),
    case("without-a-table-everything-is-zero", "A08", no_table),
    case("leaves-above-the-highest", "A08", above_highest),
    case("the-old-call-sets-the-table-too", "A08", old_call),
    case("the-table-can-be-read-back", "A08", read_back),
    case("bits-that-follow-the-state", "A08", live_bits),
    case("features-can-be-taken-away", "A08 C07", no_nx),
    case("tables-that-are-too-large", "A08", too_large),
];

/// CPUID with EAX and ECX from the client, then HLT, again and again.
fn machine(device: &Device) -> RealMode {
    RealMode::new(device, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.cpuid()?;
        a.hlt()?;
        a.jmp(start)
    })
}

fn ask(machine: &RealMode, leaf: u32, index: u32) -> [u32; 4] {
    machine.vcpu.edit_regs(|r| (r.rax, r.rcx) = (leaf.into(), index.into()));
    machine.vcpu.run_to_hlt();
    let r = machine.vcpu.regs();
    [r.rax, r.rbx, r.rcx, r.rdx].map(|register| {
        assert_eq!(register >> 32, 0, "the upper half of a register");
        register as u32
    })
}

const fn entry(function: u32, index: u32, flags: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> KvmCpuidEntry2 {
    KvmCpuidEntry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
}

const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

/// Leaf 0 with this highest leaf and vendor (EBX, ECX, EDX).
fn leaf0(highest: u32, [ebx, ecx, edx]: [u32; 3]) -> KvmCpuidEntry2 {
    entry(0, 0, 0, [highest, ebx, ecx, edx])
}

fn guest_sees_table(device: &Device) {
    let machine = machine(device);
    let values = [0x1111_2222, 0x3333_4444, 0x5555_6666, 0x7777_8888];
    let own = entry(0x4000_0100, 0, 0, values);
    machine.vcpu.set_cpuid(&[leaf0(2, AMD), entry(2, 0, 0, [1, 2, 3, 4]), own]).expect("KVM_SET_CPUID2");
    machine.vcpu.edit_regs(|r| (r.rbx, r.rdx) = (u64::MAX, u64::MAX));
    assert_eq!(ask(&machine, 0, 0), [2, AMD[0], AMD[1], AMD[2]]);
    assert_eq!(ask(&machine, 2, 77), [1, 2, 3, 4]);
    assert_eq!(ask(&machine, 0x4000_0100, 0), values);
    // A leaf within the range that the table leaves out.
    assert_eq!(ask(&machine, 1, 0), [0; 4]);
}

fn sub_leaves(device: &Device) {
    let machine = machine(device);
    let sub = |index| entry(4, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, [index + 1; 4]);
    machine.vcpu.set_cpuid(&[leaf0(4, INTEL), sub(0), sub(1), sub(2)]).expect("KVM_SET_CPUID2");
    for index in 0..3 {
        assert_eq!(ask(&machine, 4, index), [index + 1; 4]);
    }
    assert_eq!(ask(&machine, 4, 3), [0; 4]);
}

fn no_table(device: &Device) {
    let machine = machine(device);
    for leaf in [0, 1, 0x8000_0000] {
        assert_eq!(ask(&machine, leaf, 0), [0; 4]);
    }
}

fn above_highest(device: &Device) {
    for (vendor, above) in [(INTEL, [9, 8, 7, 6]), (AMD, [0; 4])] {
        let machine = machine(device);
        let table = [leaf0(2, vendor), entry(2, 0, 0, [9, 8, 7, 6]), entry(0x8000_0000, 0, 0, [0x8000_0000, 0, 0, 0])];
        machine.vcpu.set_cpuid(&table).expect("KVM_SET_CPUID2");
        // Intel's processors answer with the highest basic leaf (SDM vol. 2, CPUID), AMD's with zeroes.
        assert_eq!(ask(&machine, 3, 0), above);
        assert_eq!(ask(&machine, 0x8000_0001, 0), above);
    }
}

fn old_call(device: &Device) {
    let machine = machine(device);
    let old = |function, [eax, ebx, ecx, edx]: [u32; 4]| KvmCpuidEntry { function, eax, ebx, ecx, edx, padding: 0 };
    let table = [old(0, [1, AMD[0], AMD[1], AMD[2]]), old(1, [0x623, 1, 2, 3])];
    let mut bytes = list_with(&KvmCpuid { nent: 2, padding: 0 }, &table);
    machine.vcpu.fd.buffer(KVM_SET_CPUID, &mut bytes).expect("KVM_SET_CPUID");
    assert_eq!(ask(&machine, 0, 0), [1, AMD[0], AMD[1], AMD[2]]);
    assert_eq!(ask(&machine, 1, 0)[0], 0x623);
}

fn read_back(device: &Device) {
    let machine = machine(device);
    let table = [leaf0(2, AMD), entry(2, 0, 0, [1, 2, 3, 4]), entry(0x4000_0100, 0, 0, [5, 6, 7, 8])];
    machine.vcpu.set_cpuid(&table).expect("KVM_SET_CPUID2");
    let back = cpuid2(&machine.vcpu.fd, KVM_GET_CPUID2);
    // Linux leaves the number of entries as the client had it; those behind the table are empty then.
    assert!(back[table.len()..].iter().all(|entry| *entry == KvmCpuidEntry2::default()));
    for (back, set) in back.iter().zip(&table) {
        assert_eq!(back, set);
    }
    let mut bytes = list_with(&KvmCpuid2 { nent: 2, padding: 0 }, &[KvmCpuidEntry2::default(); 2]);
    assert_eq!(machine.vcpu.fd.buffer(KVM_GET_CPUID2, &mut bytes), Err(Errno::E2BIG));
}

fn live_bits(device: &Device) {
    let machine = machine(device);
    machine.vcpu.support_all(device);
    const OSXSAVE: u32 = 1 << 27;
    assert_eq!(ask(&machine, 1, 0)[2] & OSXSAVE, 0);
    if ask(&machine, 1, 0)[2] & 1 << 26 != 0 {
        machine.vcpu.edit_sregs(|s| s.cr4 |= 1 << 18);
        assert_eq!(ask(&machine, 1, 0)[2] & OSXSAVE, OSXSAVE);
    }
    // Leaf 1's APIC bit follows IA32_APIC_BASE.
    let enabled = machine.vcpu.sregs().apic_base & 1 << 11 != 0;
    assert_eq!(ask(&machine, 1, 0)[3] & 1 << 9 != 0, enabled);
}

fn no_nx(device: &Device) {
    let machine = RealMode::new(device, |a| {
        // EFER.NXE
        a.mov(asm::ecx, 0xc000_0080u32)?;
        a.mov(asm::eax, 0x800)?;
        a.xor(asm::edx, asm::edx)?;
        a.wrmsr()?;
        a.hlt()
    });
    machine.set_vector(13, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(asm::bx, 0x6666)?;
        a.hlt()
    });
    let table: Vec<_> = cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID)
        .into_iter()
        .map(|mut entry| {
            if entry.function == 0x8000_0001 {
                entry.edx &= !(1 << 20);
            }
            entry
        })
        .collect();
    machine.vcpu.set_cpuid(&table).expect("KVM_SET_CPUID2");
    machine.vcpu.run_to_hlt();
    assert_eq!((machine.vcpu.regs().rbx & 0xffff, machine.vcpu.sregs().efer), (0x6666, 0));
}

fn too_large(device: &Device) {
    let vcpu = device.vm().vcpu(0);
    for count in [257, 100_000] {
        let mut bytes = list_with(&KvmCpuid2 { nent: count, padding: 0 }, &vec![KvmCpuidEntry2::default(); 300]);
        assert_eq!(vcpu.fd.buffer(KVM_SET_CPUID2, &mut bytes), Err(Errno::E2BIG), "{count} entries");
        let mut bytes = list_with(&KvmCpuid { nent: count, padding: 0 }, &vec![KvmCpuidEntry::default(); 300]);
        assert_eq!(vcpu.fd.buffer(KVM_SET_CPUID, &mut bytes), Err(Errno::E2BIG), "{count} entries");
    }
}
