//! /dev/kvm itself: version, capabilities, lists, new VMs.
use abi::*;

use crate::{
    device::{Device, Errno},
    runner::{Case, case, not_applicable},
    vm::{RealMode, cpuid2, list_with, read_list},
};

pub(super) const CASES: &[Case] = &[
    case("api-version-is-12", "A01", api_version),
    case("misc-minor-232", "A01", misc_minor),
    case("every-call-finds-the-node", "A01", node),
    case("no-argument-means-zero", "A03", no_argument),
    case("unknown-capabilities-are-zero", "A01", unknown_capabilities),
    case("a-vm-answers-for-capabilities-too", "A01", vm_capabilities).needs(KVM_CAP_CHECK_EXTENSION_VM),
    case("size-of-the-mapping", "A04", mmap_size),
    case("machine-types", "A01", machine_types),
    case("msr-index-list", "A01 A10", msr_index_list),
    case("msr-index-list-holds-what-can-be-read", "A10", msr_index_list_readable),
    case("msr-feature-list", "A10", msr_feature_list).needs(KVM_CAP_GET_MSR_FEATURES),
    case("supported-cpuid-sizes", "A08", supported_cpuid_sizes),
    case("supported-cpuid-is-consistent", "A08", supported_cpuid),
    case("vms-do-not-share", "A02", vms_do_not_share),
];

fn api_version(device: &Device) {
    assert_eq!(device.fd.number(KVM_GET_API_VERSION, 0), Ok(12));
}

fn misc_minor(device: &Device) {
    match device.fd.device_number() {
        Some(number) => assert_eq!(number, (10, 232)),
        None => not_applicable("the in-process device has no node"),
    }
}

fn node(device: &Device) {
    let Some(node) = device.node() else { not_applicable("the in-process device has no node") };
    for cloexec in [false, true] {
        for (call, opened) in node.open(cloexec) {
            let fd = opened.unwrap_or_else(|errno| panic!("{call}: {errno}"));
            assert_eq!(fd.closes_on_exec(), cloexec, "{call}");
            assert_eq!(fd.number(KVM_GET_API_VERSION, 0), Ok(12), "{call}");
            assert_eq!(fd.close(), Ok(()), "{call}");
        }
    }
    for mode in [libc::F_OK, libc::R_OK | libc::W_OK] {
        node.access(mode).into_iter().for_each(|(call, answer)| assert_eq!(answer, Ok(0), "{call}, {mode}"));
    }
    node.access(libc::X_OK).into_iter().for_each(|(call, answer)| assert_eq!(answer, Err(Errno::EACCES), "{call}"));
    for (call, kind) in node.kind(&device.fd) {
        assert_eq!(kind, Ok((libc::S_IFCHR, 10, 232)), "{call}");
    }
    assert_eq!(node.kind_to_nowhere(), [Err(Errno::EFAULT); 2]);
}

fn no_argument(device: &Device) {
    for request in [KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE] {
        for argument in [1, 0x1000, u64::MAX] {
            assert_eq!(device.fd.number(request, argument), Err(Errno::EINVAL));
        }
    }
    let vm = device.vm();
    let vcpu = vm.vcpu(0);
    assert_eq!(vcpu.fd.number(KVM_RUN, 1), Err(Errno::EINVAL));
    // Others do not look at it.
    assert_eq!(device.vm().fd.number(KVM_CREATE_IRQCHIP, 1), Ok(0));
}

fn unknown_capabilities(device: &Device) {
    for cap in [19, 60_000, u32::MAX] {
        assert_eq!(device.cap(cap), 0, "capability {cap}");
    }
}

fn vm_capabilities(device: &Device) {
    let vm = device.vm();
    for cap in [KVM_CAP_USER_MEMORY, KVM_CAP_NR_VCPUS, KVM_CAP_NR_MEMSLOTS, KVM_CAP_EXT_CPUID, 60_000] {
        assert_eq!(vm.fd.number(KVM_CHECK_EXTENSION, cap.into()), Ok(device.cap(cap)), "capability {cap}");
    }
}

fn mmap_size(device: &Device) {
    let bytes = device.run_bytes();
    // kvm_run and the PIO data page at least; whole pages.
    assert!(bytes >= 2 * 4096 && bytes.is_multiple_of(4096), "{bytes} bytes");
    let vcpu = device.vm().vcpu(0);
    // Mapped twice, the pages are the same.
    let again = vcpu.fd.map(bytes, 0).expect("a second mapping");
    vcpu.page.set_cr8(0x5a);
    assert_eq!(again.u64(KVM_RUN_CR8_OFFSET), 0x5a);
}

fn machine_types(device: &Device) {
    for kind in [77, u64::MAX] {
        assert_eq!(device.fd.make(KVM_CREATE_VM, kind).err(), Some(Errno::EINVAL));
    }
}

/// KVM_GET_MSR_INDEX_LIST and the like: room for `room` indices.
fn indices(device: &Device, nr: u32, room: usize) -> (Result<i32, Errno>, u32, Vec<u32>) {
    let mut bytes = list_with(&KvmMsrList { nmsrs: room as u32 }, &vec![0u32; room]);
    let answer = device.fd.buffer(nr, &mut bytes);
    let nmsrs = KvmMsrList::from_prefix(&bytes).expect("a header").nmsrs;
    (answer, nmsrs, read_list::<KvmMsrList, u32>(&bytes, room.min(nmsrs as usize)))
}

fn msr_index_list(device: &Device) {
    // Too little room: E2BIG, and how many there are.
    let (answer, count, _) = indices(device, KVM_GET_MSR_INDEX_LIST, 1);
    assert_eq!(answer, Err(Errno::E2BIG));
    assert!(count > 10, "{count} MSRs");
    let (answer, filled, list) = indices(device, KVM_GET_MSR_INDEX_LIST, count as usize + 5);
    assert_eq!((answer, filled), (Ok(0), count));
    let mut unique = list.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), list.len(), "an index stands twice in the list");
    for index in [0x10, 0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082] {
        assert!(list.contains(&index), "MSR {index:#x} is not in the list");
    }
}

fn msr_index_list_readable(device: &Device) {
    let (_, _, list) = indices(device, KVM_GET_MSR_INDEX_LIST, 1000);
    let vcpu = device.vm().vcpu(0);
    vcpu.support_all(device);
    for index in list {
        assert!(vcpu.msr(index).is_some(), "MSR {index:#x} is listed but cannot be read");
    }
}

fn msr_feature_list(device: &Device) {
    let (answer, count, list) = indices(device, KVM_GET_MSR_FEATURE_INDEX_LIST, 1000);
    assert_eq!((answer, list.len()), (Ok(0), count as usize));
    for index in list {
        let mut bytes = list_with(&KvmMsrs { nmsrs: 1, pad: 0 }, &[KvmMsrEntry { index, ..Default::default() }]);
        assert_eq!(device.fd.buffer(KVM_GET_MSRS, &mut bytes), Ok(1), "feature MSR {index:#x}");
    }
    // Other MSRs are a vCPU's.
    let mut bytes =
        list_with(&KvmMsrs { nmsrs: 1, pad: 0 }, &[KvmMsrEntry { index: 0xc000_0081, ..Default::default() }]);
    assert_eq!(device.fd.buffer(KVM_GET_MSRS, &mut bytes), Ok(0));
}

fn supported_cpuid_sizes(device: &Device) {
    let all = cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID);
    let ask = |nent: u32| {
        let mut bytes = list_with(&KvmCpuid2 { nent, padding: 0 }, &vec![KvmCpuidEntry2::default(); nent as usize]);
        (device.fd.buffer(KVM_GET_SUPPORTED_CPUID, &mut bytes), bytes)
    };
    for nent in [0, 1, all.len() as u32 - 1] {
        assert_eq!(ask(nent).0, Err(Errno::E2BIG), "room for {nent} of {}", all.len());
    }
    let (answer, bytes) = ask(all.len() as u32);
    assert_eq!((answer, read_list::<KvmCpuid2, KvmCpuidEntry2>(&bytes, all.len())), (Ok(0), all));
}

fn supported_cpuid(device: &Device) {
    let all = cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID);
    let leaf =
        |function: u32| all.iter().find(|e| e.function == function).unwrap_or_else(|| panic!("no leaf {function:#x}"));
    assert!(leaf(0).eax >= 1);
    assert!(leaf(0x8000_0000).eax >= 0x8000_0008);
    // FPU, TSC, MSR, PAE, CX8.
    let features = leaf(1);
    assert_eq!(features.edx & 0x171, 0x171, "leaf 1 EDX {:#x}", features.edx);
    // Long mode; 36 to 52 physical bits.
    assert_ne!(leaf(0x8000_0001).edx & 1 << 29, 0);
    assert!((36..=52).contains(&(leaf(0x8000_0008).eax & 0xff)));
    // KVM's own leaves.
    let signature = leaf(0x4000_0000);
    assert_eq!([signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes).concat(), b"KVMKVMKVM\0\0\0");
    for entry in &all {
        let same = |e: &&KvmCpuidEntry2| (e.function, e.index) == (entry.function, entry.index);
        assert_eq!(all.iter().filter(same).count(), 1, "leaf {:#x}.{} stands twice", entry.function, entry.index);
    }
}

fn vms_do_not_share(device: &Device) {
    let machines = [1u8, 2].map(|n| {
        let machine = RealMode::new(device, |a| {
            use iced_x86::code_asm::*;
            a.mov(al, byte_ptr(0x500))?;
            a.inc(byte_ptr(0x500))?;
            a.out(0x10, al)?;
            a.hlt()
        });
        machine.memory.set_u8(0x500, n * 10);
        machine
    });
    for (machine, n) in machines.iter().zip([10, 20]) {
        assert_eq!(machine.vcpu.run(), crate::vm::Exit::out8(0x10, n));
    }
    for (machine, n) in machines.iter().zip([11, 21]) {
        machine.vcpu.run_to_hlt();
        assert_eq!(machine.memory.u8(0x500), n);
    }
}
