//! Ioctls: bad input is refused, state goes in and comes out.
use abi::*;
use platform::MaySleep;
use std::vec::Vec;

use crate::{
    Errno, Outcome,
    backend::{BackendVcpu, Groups},
    testing::{CODE, Machine, cx},
};

fn value<B: crate::backend::Backend>(outcome: Result<Outcome<B>, Errno>) -> Result<i32, Errno> {
    match outcome? {
        Outcome::Value(value) => Ok(value),
        other => panic!("{other:?}"),
    }
}

#[test]
fn some_calls_without_argument_refuse_one_and_others_do_not_look() {
    let m = Machine::with_irqchip();
    for nr in [KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE] {
        assert_eq!(value(m.kvm.ioctl(nr, 1, &cx())), Err(Errno::EINVAL), "{:?}", ioctl_name(nr));
    }
    assert_eq!(value(m.vcpu.ioctl(KVM_RUN, 1, &cx())), Err(Errno::EINVAL));
    // As on Linux.
    assert!(m.vm.ioctl(KVM_GET_TSC_KHZ, 1, &cx()).is_ok());
    assert_eq!(value(m.vcpu.ioctl(KVM_NMI, 1, &cx())), Ok(0));
}

#[test]
fn every_request_with_a_bad_pointer_is_efault_or_better() {
    let m = Machine::with_irqchip();
    let bad = 0x10;
    for (nr, name) in KVM_IOCTL_NAMES {
        let on_device = value(m.kvm.ioctl(*nr, bad, &cx()));
        let on_vm = match m.vm.ioctl(*nr, bad, &cx()) {
            Ok(Outcome::NewVcpu(_) | Outcome::NewVm(_) | Outcome::NewStats(_)) => continue,
            other => value(other),
        };
        let on_vcpu = value(m.vcpu.ioctl(*nr, bad, &cx()));
        for answer in [on_device, on_vm, on_vcpu] {
            let has_structure = ioc_size(*nr) != 0;
            assert!(!has_structure || answer.is_err(), "{name} accepted a bad pointer");
        }
    }
}

#[test]
fn unknown_requests_are_enotty() {
    let m = Machine::new();
    for nr in [0, 0xae, 0xaeff, u32::MAX, ioc(IOC_WRITE, 0x81, 5)] {
        assert_eq!(value(m.kvm.ioctl(nr, 0, &cx())), Err(Errno::ENOTTY));
        assert_eq!(value(m.vm.ioctl(nr, 0, &cx())), Err(Errno::ENOTTY));
        assert_eq!(value(m.vcpu.ioctl(nr, 0, &cx())), Err(Errno::ENOTTY));
    }
}

#[test]
fn what_rekvm_run_asks_first() {
    let m = Machine::new();
    assert_eq!(value(m.kvm.ioctl(KVM_GET_API_VERSION, 0, &cx())), Ok(12));
    assert_eq!(value(m.kvm.ioctl(KVM_GET_VCPU_MMAP_SIZE, 0, &cx())), Ok(3 * 4096));
    for cap in [KVM_CAP_USER_MEMORY, KVM_CAP_SET_TSS_ADDR, KVM_CAP_EXT_CPUID, KVM_CAP_IRQCHIP, KVM_CAP_MP_STATE] {
        assert_eq!(value(m.kvm.ioctl(KVM_CHECK_EXTENSION, cap.into(), &cx())), Ok(1), "{:?}", cap_name(cap));
    }
    assert_eq!(value(m.kvm.ioctl(KVM_CHECK_EXTENSION, u64::MAX, &cx())), Ok(0));
    assert_eq!(value(m.vm.ioctl(KVM_SET_TSS_ADDR, 0xfffb_d000, &cx())), Ok(0));
    assert_eq!(value(m.vm.ioctl(KVM_SET_TSS_ADDR, 1 << 40, &cx())), Err(Errno::EINVAL));
}

/// A structure goes in and comes out the same.
fn round_trip<T: Pod + core::fmt::Debug + PartialEq>(m: &Machine, get: u32, set: u32, change: impl FnOnce(&mut T)) {
    let mut value: T = m.get(get);
    change(&mut value);
    m.ioctl(set, &mut value).unwrap();
    assert_eq!(m.get::<T>(get), value, "{:?}", ioctl_name(set));
}

#[test]
fn state_goes_in_and_comes_out() {
    let m = Machine::with_irqchip();
    round_trip::<KvmRegs>(&m, KVM_GET_REGS, KVM_SET_REGS, |r| (r.rax, r.r15, r.rip, r.rflags) = (1, 2, 3, 0x246));
    round_trip::<KvmSregs>(&m, KVM_GET_SREGS, KVM_SET_SREGS, |s| {
        (s.cr0, s.cr3, s.cr4, s.efer) = (0x8005_003b, 0x1000, 0x6f0, 0xd01);
        (s.cs.l, s.cs.db, s.cs.selector, s.cr8) = (1, 0, 0x10, 5);
    });
    round_trip::<KvmSregs2>(&m, KVM_GET_SREGS2, KVM_SET_SREGS2, |s| s.cr3 = 0x2000);
    round_trip::<KvmFpu>(&m, KVM_GET_FPU, KVM_SET_FPU, |f| (f.fcw, f.xmm[3][7]) = (0x27f, 9));
    // Only the XSAVE calls have MXCSR.
    m.ioctl(KVM_SET_FPU, &mut KvmFpu { mxcsr: 0x1fa0, ..KvmFpu::default() }).unwrap();
    assert_eq!((m.get::<KvmFpu>(KVM_GET_FPU).mxcsr, m.get::<KvmXsave>(KVM_GET_XSAVE).region[6]), (0, 0x1f80));
    round_trip::<KvmXsave>(&m, KVM_GET_XSAVE, KVM_SET_XSAVE, |x| x.region[40] = 0x1234);
    round_trip::<KvmXcrs>(&m, KVM_GET_XCRS, KVM_SET_XCRS, |x| x.xcrs[0].value = 7);
    round_trip::<KvmDebugregs>(&m, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, |d| (d.db[2], d.dr7) = (5, 0x401));
    round_trip::<KvmMpState>(&m, KVM_GET_MP_STATE, KVM_SET_MP_STATE, |s| s.mp_state = KVM_MP_STATE_HALTED);
    round_trip::<KvmLapicState>(&m, KVM_GET_LAPIC, KVM_SET_LAPIC, |l| {
        // The priority of the processor follows that of the task.
        (l.regs[0x80], l.regs[0xa0]) = (0x20, 0x20);
    });
    round_trip::<KvmVcpuEvents>(&m, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, |e| e.nmi.pending = 1);
}

#[test]
fn each_register_that_is_too_large_is_refused_by_itself() {
    let m = Machine::new();
    let good: KvmDebugregs = m.get(KVM_GET_DEBUGREGS);
    let other = KvmDebugregs { db: [1; 4], ..good };
    for mut bad in [
        KvmDebugregs { flags: 1, ..other },
        KvmDebugregs { dr6: 1 << 32, ..other },
        KvmDebugregs { dr7: 1 << 32, ..other },
    ] {
        assert_eq!(value(m.ioctl(KVM_SET_DEBUGREGS, &mut bad)), Err(Errno::EINVAL), "{bad:?}");
        assert_eq!(m.get::<KvmDebugregs>(KVM_GET_DEBUGREGS), good);
    }
    let good: KvmSregs = m.get(KVM_GET_SREGS);
    for (cr8, expected) in [(15, Ok(0)), (16, Err(Errno::EINVAL))] {
        assert_eq!(value(m.ioctl(KVM_SET_SREGS, &mut KvmSregs { cr8, ..good })), expected);
    }
}

#[test]
fn a_vcpu_that_has_not_run_shows_its_signature_in_rdx() {
    let m = Machine::new();
    let (other, _run) = Machine::new_vcpu(&m.vm, 1);
    m.use_supported_cpuid(&other);
    let (rdx, signature) =
        other.with_inner(|inner| (inner.cpu.registers(Groups::GENERAL).gpr[2], inner.cpuid.signature()));
    assert_eq!(rdx, u64::from(signature));
}

/// The entries of the most that are offered end beyond the client's memory here: they are looked for.
#[test]
fn as_many_routes_as_are_offered_are_read_and_no_more() {
    let m = Machine::with_irqchip();
    let most = KVM_MAX_IRQ_ROUTES as u32;
    for (nr, error) in [(most, Errno::EFAULT), (most + 1, Errno::EINVAL)] {
        assert_eq!(value(m.vm_ioctl(KVM_SET_GSI_ROUTING, &mut KvmIrqRouting { nr, flags: 0 })), Err(error));
    }
}

#[test]
fn a_message_for_0xff_goes_to_all_until_the_client_wants_it_to_be_an_id() {
    let id = KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    for (flags, reached) in [(KVM_X2APIC_API_USE_32BIT_IDS, 1), (KVM_X2APIC_API_USE_32BIT_IDS | id, 0)] {
        let m = Machine::with_irqchip();
        let mut cap = KvmEnableCap { cap: KVM_CAP_X2APIC_API, ..KvmEnableCap::default() };
        cap.args[0] = flags;
        m.vm_ioctl(KVM_ENABLE_CAP, &mut cap).unwrap();
        let mut sregs: KvmSregs = m.get(KVM_GET_SREGS);
        sregs.apic_base |= 1 << 10;
        m.ioctl(KVM_SET_SREGS, &mut sregs).unwrap();
        let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
        lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
        m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
        let mut msi = KvmMsi { address_lo: 0xfee0_0000 | 0xff << 12, data: 0x51, ..KvmMsi::default() };
        assert_eq!(value(m.vm_ioctl(KVM_SIGNAL_MSI, &mut msi)), Ok(reached));
    }
}

#[test]
fn devices_of_the_vm_go_in_and_come_out() {
    let m = Machine::with_irqchip();
    value(m.vm_ioctl(KVM_CREATE_PIT2, &mut KvmPitConfig::default())).unwrap();
    let mut chip = KvmIrqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..KvmIrqchip::default() };
    value(m.vm_ioctl(KVM_GET_IRQCHIP, &mut chip)).unwrap();
    let mut ioapic = KvmIoapicState::from_prefix(&chip.chip).unwrap();
    assert_eq!(ioapic.base_address, 0xfec0_0000);
    ioapic.redirtbl[5] = 0x1_0031;
    chip.chip[..size_of::<KvmIoapicState>()].copy_from_slice(ioapic.bytes());
    value(m.vm_ioctl(KVM_SET_IRQCHIP, &mut chip)).unwrap();
    let mut back = KvmIrqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..KvmIrqchip::default() };
    value(m.vm_ioctl(KVM_GET_IRQCHIP, &mut back)).unwrap();
    assert_eq!(back, chip);
    chip.chip_id = 3;
    assert_eq!(value(m.vm_ioctl(KVM_SET_IRQCHIP, &mut chip)), Err(Errno::EINVAL));
    let mut pit = KvmPitState2::default();
    value(m.vm_ioctl(KVM_GET_PIT2, &mut pit)).unwrap();
    value(m.vm_ioctl(KVM_SET_PIT2, &mut pit)).unwrap();
    assert_eq!(value(m.vm_ioctl(KVM_CREATE_PIT2, &mut KvmPitConfig::default())), Err(Errno::EEXIST));
    let without = Machine::new();
    assert_eq!(value(without.vm_ioctl(KVM_GET_PIT2, &mut pit)), Err(Errno::ENXIO));
    assert_eq!(value(without.vm_ioctl(KVM_IRQ_LINE, &mut KvmIrqLevel::default())), Err(Errno::ENXIO));
    // A timer without controllers: nobody hears its interrupts.
    value(without.vm_ioctl(KVM_CREATE_PIT2, &mut KvmPitConfig::default())).unwrap();
    value(without.vm_ioctl(KVM_GET_PIT2, &mut pit)).unwrap();
}

fn msrs(entries: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = KvmMsrs { nmsrs: entries.len() as u32, pad: 0 }.bytes().to_vec();
    for (index, data) in entries {
        bytes.extend(KvmMsrEntry { index: *index, reserved: 0, data: *data }.bytes());
    }
    bytes
}

#[test]
fn msr_lists_stop_at_the_first_bad_one() {
    let m = Machine::new();
    let mut list = msrs(&[(x86::msr::STAR, 5), (0xdead, 0), (x86::msr::LSTAR, 7)]);
    let set = m.client.with_bytes(&mut list, |arg| m.vcpu.ioctl(KVM_SET_MSRS, arg, &cx()));
    assert_eq!(value(set), Ok(1));
    let mut list = msrs(&[(x86::msr::STAR, 0), (x86::msr::LSTAR, 9)]);
    let get = m.client.with_bytes(&mut list, |arg| m.vcpu.ioctl(KVM_GET_MSRS, arg, &cx()));
    assert_eq!((value(get), &list[16..24], &list[32..40]), (Ok(2), &5u64.to_le_bytes()[..], &[0; 8][..]));
    for (number, answer) in [(255, Ok(255)), (256, Err(Errno::E2BIG)), (u32::MAX, Err(Errno::E2BIG))] {
        let mut list = msrs(&[(x86::msr::STAR, 5); 256]);
        list[..4].copy_from_slice(&number.to_le_bytes());
        let set = m.client.with_bytes(&mut list, |arg| m.vcpu.ioctl(KVM_SET_MSRS, arg, &cx()));
        assert_eq!(value(set), answer);
    }
}

#[test]
fn every_msr_of_the_index_list_can_be_saved() {
    let m = Machine::with_irqchip();
    let mut list = std::vec![0u8; 4 + 4 * 400];
    list[..4].copy_from_slice(&400u32.to_le_bytes());
    value(m.client.with_bytes(&mut list, |arg| m.kvm.ioctl(KVM_GET_MSR_INDEX_LIST, arg, &cx()))).unwrap();
    let words: Vec<u32> = list.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    for index in &words[1..=words[0] as usize] {
        let mut one = msrs(&[(*index, 0)]);
        let read = m.client.with_bytes(&mut one, |arg| m.vcpu.ioctl(KVM_GET_MSRS, arg, &cx()));
        assert_eq!(value(read), Ok(1), "read of {index:#x}");
        let written = m.client.with_bytes(&mut one, |arg| m.vcpu.ioctl(KVM_SET_MSRS, arg, &cx()));
        assert_eq!(value(written), Ok(1), "write of {index:#x}");
    }
    let mut short = std::vec![0u8; 8];
    let short_answer = m.client.with_bytes(&mut short, |arg| m.kvm.ioctl(KVM_GET_MSR_INDEX_LIST, arg, &cx()));
    assert_eq!((value(short_answer), short[0]), (Err(Errno::E2BIG), words[0] as u8));
}

#[test]
fn cpuid_is_fixed_once_the_guest_has_run() {
    let m = Machine::new();
    m.run().unwrap();
    m.use_supported_cpuid(&m.vcpu);
    let mut empty = [0u8; 8];
    let other = m.client.with_bytes(&mut empty, |arg| m.vcpu.ioctl(KVM_SET_CPUID2, arg, &cx()));
    assert_eq!(value(other), Err(Errno::EINVAL));
}

#[test]
fn translate_walks_the_guests_tables() {
    let m = Machine::new();
    // Two-level paging: one 4 MiB page, and one table with page 3 at 0x5000.
    m.poke(0x2000, &0x83u32.to_le_bytes());
    m.poke(0x2004, &0x3003u32.to_le_bytes());
    m.poke(0x3000 + 4 * 3, &0x5001u32.to_le_bytes());
    m.state(|s| (s.cr0, s.cr3, s.cr4) = (0x8000_0011, 0x2000, 0x10));
    for (gva, expected) in [(0x1234, Some(0x1234)), (0x40_3456, Some(0x5456)), (0x40_4000, None), (1 << 31, None)] {
        let mut t = KvmTranslation { linear_address: gva, ..KvmTranslation::default() };
        m.ioctl(KVM_TRANSLATE, &mut t).unwrap();
        assert_eq!((t.valid != 0).then_some(t.physical_address), expected, "{gva:#x}");
    }
    // It is a read: accessed bits are set where it led somewhere.
    assert_eq!([0x2000, 0x2004, 0x300c, 0x3010].map(|at| m.peek::<u32>(at) & 0x20), [0x20, 0x20, 0x20, 0]);
}

#[test]
fn signal_masks_are_kept_for_packaging() {
    let m = Machine::new();
    assert_eq!(m.vcpu.signal_mask(), None);
    let mut mask = [8u8, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0x80];
    m.client.with_bytes(&mut mask, |arg| m.vcpu.ioctl(KVM_SET_SIGNAL_MASK, arg, &cx())).unwrap();
    assert_eq!(m.vcpu.signal_mask(), Some(0x8000_0000_0000_0201));
    mask[0] = 4;
    let bad = m.client.with_bytes(&mut mask, |arg| m.vcpu.ioctl(KVM_SET_SIGNAL_MASK, arg, &cx()));
    assert_eq!(value(bad), Err(Errno::EINVAL));
    m.vcpu.ioctl(KVM_SET_SIGNAL_MASK, 0, &cx()).unwrap();
    assert_eq!(m.vcpu.signal_mask(), None);
}

#[test]
fn statistics_are_a_file_in_linuxs_format() {
    let m = Machine::new();
    m.script.exit(crate::backend::Exit::Cpuid { len: 2 });
    m.run().unwrap();
    let Outcome::NewStats(file) = m.vcpu.ioctl(KVM_GET_STATS_FD, 0, &cx()).unwrap() else { panic!() };
    let mut whole = std::vec![0; 1 << 16];
    let len = file.read_at(0, &mut whole);
    whole.truncate(len);
    let header = KvmStatsHeader::from_prefix(&whole).unwrap();
    let names = header.desc_offset as usize;
    let entry = size_of::<KvmStatsDesc>() + header.name_size as usize;
    let mut found = 0;
    for i in 0..header.num_desc as usize {
        let at = names + i * entry;
        let desc = KvmStatsDesc::from_prefix(&whole[at..]).unwrap();
        let name = &whole[at + size_of::<KvmStatsDesc>()..at + entry];
        let value_at = (header.data_offset + desc.offset) as usize;
        let value = u64::from_le_bytes(whole[value_at..value_at + 8].try_into().unwrap());
        match core::ffi::CStr::from_bytes_until_nul(name).unwrap().to_str().unwrap() {
            "exit_cpuid" | "runs" => assert_eq!(value, 1),
            "exits" | "script_entries" => assert_eq!(value, 2),
            _ => continue,
        }
        found += 1;
    }
    assert_eq!(found, 4);
    // In pieces it is the same file.
    let pieces: Vec<u8> = (0..len)
        .step_by(7)
        .flat_map(|at| {
            let mut piece = [0; 7];
            let n = file.read_at(at as u64, &mut piece);
            piece[..n].to_vec()
        })
        .collect();
    assert_eq!(pieces, whole);
    assert_eq!(file.read_at(len as u64, &mut [0; 8]), 0);
    assert_eq!(file.read_at(u64::MAX, &mut [0; 8]), 0);
}

#[test]
fn a_vcpu_without_its_pages_does_not_run() {
    let m = Machine::new();
    let Outcome::NewVcpu(vcpu) = m.vm.ioctl(KVM_CREATE_VCPU, 5, &MaySleep::at_entry()).unwrap() else { panic!() };
    assert_eq!(value(vcpu.ioctl(KVM_RUN, 0, &cx())), Err(Errno::EFAULT));
    assert_eq!(m.state(|s| s.rip), CODE);
}

#[test]
fn the_bound_on_shadow_pages_has_a_default_and_a_minimum() {
    let m = Machine::new();
    let get = || value(m.vm.ioctl(KVM_GET_NR_MMU_PAGES, 0, &cx()));
    assert_eq!(get(), Ok(64));
    m.set_slot(1, 1 << 32, 1 << 30, 1 << 40).unwrap();
    assert_eq!(get(), Ok(((1 << 18) + 16) / 50));
    assert_eq!(value(m.vm.ioctl(KVM_SET_NR_MMU_PAGES, 63, &cx())), Err(Errno::EINVAL));
    assert_eq!(value(m.vm.ioctl(KVM_SET_NR_MMU_PAGES, 65, &cx())), Ok(0));
    assert_eq!(get(), Ok(65));
}
