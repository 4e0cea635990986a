//! Arguments that no client should pass: addresses, sizes, descriptors, requests.
use abi::*;

use crate::{
    device::{Address, Device, Errno, Fd, fenced},
    runner::{Case, case},
    vm::RealMode,
};

mod requests;

use requests::{DEVICE, VCPU, VM};

pub(super) const CASES: &[Case] = &[
    case("bad-addresses-on-the-device", "A01", |device| addresses(&device.again(), DEVICE)),
    case("bad-addresses-on-a-vm", "A01", vm_addresses),
    case("bad-addresses-on-a-vcpu", "A01", vcpu_addresses),
    case("structures-cut-short-on-the-device", "A01", |device| cut_short(&device.again(), DEVICE)),
    case("structures-cut-short-on-a-vm", "A01", vm_cut_short),
    case("structures-cut-short-on-a-vcpu", "A01", vcpu_cut_short),
    case("answers-to-memory-that-cannot-be-written", "A01", unwritable),
    case("requests-of-another-size", "A01", other_sizes),
    case("requests-that-do-not-exist", "A01", unknown_requests),
    case("requests-on-the-wrong-descriptor", "A01", wrong_descriptor),
    case("lists-longer-than-their-memory", "A10 A08", long_lists),
    case("descriptors-that-are-none", "A02", no_descriptor),
    case("mappings-that-are-none", "A04", no_mapping),
];

/// A machine that shows afterwards that nothing happened to it.
fn machine(device: &Device) -> RealMode {
    let vm = device.vm();
    vm.irqchip();
    RealMode::with_code(vm, &[0xe6, 0x10, 0xf4])
}

fn still_well(machine: &RealMode) {
    assert_eq!(machine.vcpu.run(), crate::vm::Exit::out8(0x10, 0));
}

fn refused(answer: Result<i32, Errno>) -> bool {
    // Some look at other things first, or are not offered.
    matches!(answer, Err(Errno::EFAULT | Errno::EINVAL | Errno::ENOTTY | Errno::ENXIO | Errno::E2BIG | Errno::EEXIST))
}

fn addresses(fd: &Fd, requests: &[(&str, u32)]) {
    for (name, nr) in requests {
        for address in Address::BAD {
            let answer = fd.at(*nr, address);
            assert!(refused(answer), "{name} of {address:x?} answers {answer:?}");
        }
    }
}

/// The last byte of the structure is missing.
fn cut_short(fd: &Fd, requests: &[(&str, u32)]) {
    for (name, nr) in requests {
        let size = ioc_size(*nr);
        let (address, _) = fenced(&vec![0; size - 1]);
        let answer = fd.at(*nr, address);
        assert!(refused(answer), "{name} with {} of {size} bytes answers {answer:?}", size - 1);
    }
}

fn vm_addresses(device: &Device) {
    let machine = machine(device);
    addresses(&machine.vm.fd, VM);
    still_well(&machine);
}

fn vcpu_addresses(device: &Device) {
    let machine = machine(device);
    addresses(&machine.vcpu.fd, VCPU);
    still_well(&machine);
}

fn vm_cut_short(device: &Device) {
    let machine = machine(device);
    cut_short(&machine.vm.fd, VM);
    still_well(&machine);
}

fn vcpu_cut_short(device: &Device) {
    let machine = machine(device);
    cut_short(&machine.vcpu.fd, VCPU);
    still_well(&machine);
}

fn unwritable(device: &Device) {
    let machine = machine(device);
    let page = crate::device::Memory::new(8192);
    page.protect(0, 8192, libc::PROT_READ);
    for nr in
        [KVM_GET_REGS, KVM_GET_SREGS, KVM_GET_FPU, KVM_GET_LAPIC, KVM_GET_MP_STATE, KVM_GET_DEBUGREGS, KVM_TRANSLATE]
    {
        assert_eq!(machine.vcpu.fd.at(nr, Address::of(&page)), Err(Errno::EFAULT), "{}", ioctl_name(nr).unwrap_or("?"));
    }
    assert_eq!(machine.vm.fd.at(KVM_GET_CLOCK, Address::of(&page)), Err(Errno::EFAULT));
    still_well(&machine);
}

fn other_sizes(device: &Device) {
    let machine = machine(device);
    for (name, nr) in VCPU {
        let size = ioc_size(*nr);
        for other in
            [size + 8, size.saturating_sub(4).max(1)].into_iter().filter(|other| *other < 1 << 13 && *other != size)
        {
            let nr = ioc(ioc_dir(*nr), ioc_nr(*nr), other);
            // Another size is another request; a few of those exist.
            if ioctl_name(nr).is_some() {
                continue;
            }
            let answer = machine.vcpu.fd.buffer(nr, &mut vec![0; 1 << 13]);
            assert!(matches!(answer, Err(Errno::EINVAL | Errno::ENOTTY)), "{name} of {other} bytes: {answer:?}");
        }
    }
    still_well(&machine);
}

fn unknown_requests(device: &Device) {
    let machine = machine(device);
    for fd in [&device.fd, &machine.vm.fd, &machine.vcpu.fd] {
        for nr in [ioc(IOC_NONE, 0xff, 0), ioc(IOC_NONE, 0x3f, 0), 0, 0x5401] {
            let answer = fd.number(nr, 0);
            assert!(matches!(answer, Err(Errno::EINVAL | Errno::ENOTTY)), "{nr:#x}: {answer:?}");
        }
    }
    still_well(&machine);
}

fn wrong_descriptor(device: &Device) {
    let machine = machine(device);
    let fds = [(&device.fd, DEVICE), (&machine.vm.fd, VM), (&machine.vcpu.fd, VCPU)];
    for (n, (fd, own)) in fds.iter().enumerate() {
        for (name, nr) in fds.iter().enumerate().filter(|(m, _)| *m != n).flat_map(|(_, (_, requests))| *requests) {
            // Numbers that mean something on several.
            if own.iter().any(|(_, other)| other == nr) || requests::SHARED.contains(nr) {
                continue;
            }
            let answer = fd.buffer(*nr, &mut vec![0; 1 << 13]);
            assert!(matches!(answer, Err(Errno::EINVAL | Errno::ENOTTY)), "{name} on descriptor {n}: {answer:?}");
        }
    }
    for (fd, nr) in [
        (&device.fd, KVM_RUN),
        (&device.fd, KVM_CREATE_VCPU),
        (&machine.vm.fd, KVM_RUN),
        (&machine.vm.fd, KVM_CREATE_VM),
        (&machine.vcpu.fd, KVM_CREATE_VCPU),
        (&machine.vcpu.fd, KVM_CREATE_VM),
        (&machine.vcpu.fd, KVM_GET_API_VERSION),
    ] {
        let answer = fd.number(nr, 0);
        assert!(matches!(answer, Err(Errno::EINVAL | Errno::ENOTTY)), "{nr:#x}: {answer:?}");
    }
    still_well(&machine);
}

fn long_lists(device: &Device) {
    let machine = machine(device);
    // Headers that promise more than there is, the last element cut in half.
    let short = |nr, header: &[u8], element: usize, there: usize| {
        let mut bytes = header.to_vec();
        bytes.resize(header.len() + element * there - element / 2, 0);
        machine.vcpu.fd.at(nr, fenced(&bytes).0)
    };
    for nr in [KVM_GET_MSRS, KVM_SET_MSRS] {
        assert_eq!(short(nr, KvmMsrs { nmsrs: 3, pad: 0 }.bytes(), 16, 3), Err(Errno::EFAULT));
    }
    assert_eq!(short(KVM_SET_CPUID2, KvmCpuid2 { nent: 2, padding: 0 }.bytes(), 40, 2), Err(Errno::EFAULT));
    assert_eq!(short(KVM_SET_CPUID, KvmCpuid { nent: 2, padding: 0 }.bytes(), 24, 2), Err(Errno::EFAULT));
    let (address, _) = fenced(KvmCpuid2 { nent: 200, padding: 0 }.bytes());
    assert_eq!(device.fd.at(KVM_GET_SUPPORTED_CPUID, address), Err(Errno::EFAULT));
    let (address, _) = fenced(KvmMsrList { nmsrs: 1000 }.bytes());
    assert_eq!(device.fd.at(KVM_GET_MSR_INDEX_LIST, address), Err(Errno::EFAULT));
    let (address, _) = fenced(KvmIrqRouting { nr: 10, flags: 0 }.bytes());
    assert_eq!(machine.vm.fd.at(KVM_SET_GSI_ROUTING, address), Err(Errno::EFAULT));
    still_well(&machine);
}

fn no_descriptor(device: &Device) {
    let sys = device.fd.sys();
    for number in [-1, i32::MIN, i32::MAX, 9999] {
        // Not ours to close: the value is forgotten.
        let fd = std::mem::ManuallyDrop::new(Fd::new(sys, number));
        assert_eq!(fd.number(KVM_GET_API_VERSION, 0), Err(Errno::EBADF));
        assert_eq!(fd.dup().err(), Some(Errno::EBADF));
        assert_eq!(fd.map(4096, 0).err(), Some(Errno::EBADF));
    }
}

fn no_mapping(device: &Device) {
    let machine = machine(device);
    assert_eq!(device.fd.map(4096, 0).err(), Some(Errno::ENODEV));
    assert_eq!(machine.vcpu.fd.map(0, 0).err(), Some(Errno::EINVAL));
    assert_eq!(machine.vcpu.fd.map(4096, 0x800).err(), Some(Errno::EINVAL));
    assert!(machine.vcpu.fd.map(usize::MAX - 4095, 0).is_err());
    still_well(&machine);
}
