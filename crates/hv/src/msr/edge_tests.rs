//! Each register by itself: what it holds, which bits of a write it takes, drops or refuses, and who has it.
use std::vec::Vec;

use abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KvmCpuidEntry2};
use x86::{CpuState, Features, msr};

use super::{By, Mce, Msrs, Refused};
use crate::cpuid::{Cpuid, Offer, supported};

struct Vcpu {
    msrs: Msrs,
    state: CpuState,
    cpuid: Cpuid,
}

impl Vcpu {
    fn new(features: Features) -> Self {
        let offer = Offer { features, xcr0: 7, tsc_khz: 0, arch_capabilities: 0, fast_strings: true };
        Self::with(Cpuid::new(supported(&offer).unwrap()))
    }

    fn with(cpuid: Cpuid) -> Self {
        Self { msrs: Msrs::default(), state: CpuState::reset(0), cpuid }
    }

    fn read(&self, index: u32) -> Result<u64, Refused> {
        self.msrs.read(index, By::Guest, &self.state, &self.cpuid)
    }

    fn write(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        self.msrs.write(index, value, By::Guest, &mut self.state, &self.cpuid).map(drop)
    }

    fn client_write(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        self.msrs.write(index, value, By::Client, &mut self.state, &self.cpuid).map(drop)
    }
}

fn intel() -> Vcpu {
    Vcpu::new(Features::all() - Features::AMD)
}

#[test]
fn registers_of_the_processor_are_apart() {
    let mut v = intel();
    let all = [
        msr::STAR,
        msr::LSTAR,
        msr::CSTAR,
        msr::SFMASK,
        msr::FS_BASE,
        msr::GS_BASE,
        msr::KERNEL_GS_BASE,
        msr::TSC_AUX,
        msr::SYSENTER_CS,
        msr::SYSENTER_ESP,
        msr::SYSENTER_EIP,
    ];
    for (n, index) in all.into_iter().enumerate() {
        v.write(index, 0x1000 + n as u64).unwrap();
    }
    for (n, index) in all.into_iter().enumerate() {
        assert_eq!(v.read(index), Ok(0x1000 + n as u64), "{index:#x}");
    }
    let bad = 0x0001_0000_0000_0000;
    for index in [msr::LSTAR, msr::CSTAR, msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE, msr::SYSENTER_ESP] {
        assert_eq!(v.write(index, bad), Err(Refused::Invalid), "{index:#x}");
    }
    // AMD's are 32 bits wide.
    let mut amd = Vcpu::new(Features::all());
    for index in [msr::SYSENTER_ESP, msr::SYSENTER_EIP] {
        amd.write(index, bad | 0x1234).unwrap();
        assert_eq!(amd.read(index), Ok(0x1234));
    }
    // TSC_AUX comes with either of two instructions.
    for (without, known) in
        [(Features::RDTSCP, true), (Features::RDPID, true), (Features::RDTSCP | Features::RDPID, false)]
    {
        let mut v = Vcpu::new(Features::all() - without);
        assert_eq!((v.read(msr::TSC_AUX).is_ok(), v.write(msr::TSC_AUX, 1).is_ok()), (known, known));
        assert_eq!(v.client_write(msr::TSC_AUX, 1), Ok(()));
    }
}

#[test]
fn memory_types() {
    let mut v = intel();
    let fixed = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
    let variable: Vec<u32> = (0x200..0x210).collect();
    assert_eq!(v.read(msr::MTRR_CAP), Ok(0x508));
    assert_eq!(v.write(msr::MTRR_CAP, 0x508), Err(Refused::Invalid));
    assert_eq!(v.read(msr::PAT), Ok(0x0007_0406_0007_0406));
    // Each holds its own value.
    for (n, index) in variable.iter().enumerate() {
        v.write(*index, (n as u64 + 1) << 12).unwrap();
    }
    for (n, index) in variable.iter().enumerate() {
        assert_eq!(v.read(*index), Ok((n as u64 + 1) << 12));
    }
    let types =
        |n: usize| 0x0606_0606_0606_0606 & !(0xff << (8 * (n % 8))) | if n < 8 { 0 } else { 1 << (8 * (n % 8)) };
    for (n, index) in fixed.into_iter().enumerate() {
        v.write(index, types(n)).unwrap();
    }
    for (n, index) in fixed.into_iter().enumerate() {
        assert_eq!(v.read(index), Ok(types(n)));
    }
    for typ in 0..=8u64 {
        let (ram, pat) = (matches!(typ, 0 | 1 | 4 | 5 | 6), matches!(typ, 0 | 1 | 4..=7));
        assert_eq!(v.write(msr::MTRR_DEF_TYPE, typ).is_ok(), ram, "{typ}");
        assert_eq!(v.write(0x200, typ).is_ok(), ram, "{typ}");
        for byte in 0..8 {
            let value = 0x0606_0606_0606_0606 & !(0xff << (8 * byte)) | typ << (8 * byte);
            for index in fixed {
                assert_eq!(v.write(index, value).is_ok(), ram, "{index:#x} {value:#x}");
            }
            assert_eq!(v.write(msr::PAT, value).is_ok(), pat, "{value:#x}");
        }
    }
    for bit in 8..64 {
        assert_eq!(v.write(msr::MTRR_DEF_TYPE, 6 | 1 << bit).is_ok(), bit == 10 || bit == 11, "{bit}");
        assert_eq!(v.write(0x202, 6 | 1 << bit).is_ok(), bit >= 12, "{bit}");
    }
    for bit in 0..64 {
        assert_eq!(v.write(0x203, 1 << bit).is_ok(), bit >= 11, "{bit}");
    }
    assert_eq!(v.read(0x210), Err(Refused::Unknown));
}

#[test]
fn machine_checks() {
    let mut mce = Mce::default();
    for bad in [0, 33, 255, 3 | 1 << 9, 3 | 1 << 25, 3 | 1 << 32] {
        assert_eq!(mce.setup(bad), Err(Refused::Invalid), "{bad:#x}");
    }
    assert_eq!(mce.setup(32 | 1 << 8 | 1 << 24 | 0xff_0000), Ok(()));
    let mut v = intel();
    assert_eq!((v.read(msr::MCG_CAP), v.read(msr::MCG_CTL)), (Ok(10), Ok(0)));
    // Without MCG_CTL_P there is nothing to control.
    assert_eq!((v.write(msr::MCG_CTL, 0), v.write(msr::MCG_CTL, u64::MAX)), (Ok(()), Err(Refused::Invalid)));
    assert_eq!((v.client_write(msr::MCG_CTL, 5), v.read(msr::MCG_CTL)), (Ok(()), Ok(0)));
    assert_eq!(v.write(msr::MCG_CAP, 1), Err(Refused::Invalid));
    assert_eq!(v.read(msr::MC0_CTL + 4 * 10), Err(Refused::Unknown));
    v.msrs.mce.setup(2 | 1 << 8).unwrap();
    assert_eq!(v.read(msr::MCG_CTL), Ok(u64::MAX));
    for (value, ok) in [(0, true), (1, false), (u64::MAX - 1, false), (u64::MAX, true)] {
        assert_eq!(v.write(msr::MCG_CTL, value).is_ok(), ok, "{value:#x}");
    }
    for bank in 0..3 {
        assert_eq!(v.read(msr::MC0_CTL + 4 * bank).is_ok(), bank < 2, "{bank}");
    }
    for (value, ok) in [(0, true), (u64::MAX, true), (!(1 << 10), true), (!1, true), (!2, false), (7, false)] {
        assert_eq!(v.write(msr::MC0_CTL + 4, value).is_ok(), ok, "{value:#x}");
    }
    // STATUS, ADDR and MISC of both banks.
    for register in [1, 2, 3, 5, 6, 7] {
        v.client_write(msr::MC0_CTL + register, u64::from(register) << 8).unwrap();
    }
    for register in [1, 2, 3, 5, 6, 7] {
        assert_eq!(v.read(msr::MC0_CTL + register), Ok(u64::from(register) << 8));
    }
    assert_eq!(v.write(msr::MC0_CTL + 5, 1), Err(Refused::Invalid));
}

#[test]
fn injected_machine_checks() {
    const VALID: u64 = 1 << 63;
    const OVERFLOW: u64 = 1 << 62;
    const UNCORRECTED: u64 = 1 << 61;
    let new = || {
        let mut mce = Mce::default();
        mce.setup(2 | 1 << 8).unwrap();
        mce
    };
    let bank = |mce: &Mce, n: u32| [1, 2, 3].map(|r| mce.read(msr::MC0_CTL + 4 * n + r).unwrap());
    let mut mce = new();
    assert_eq!(mce.inject(2, VALID, 0, 0, 0), Err(Refused::Invalid));
    assert_eq!(mce.inject(0, 1, 0, 0, 0), Err(Refused::Invalid));
    // A corrected error is only noted; another one overflows.
    assert_eq!(mce.inject(1, VALID, 2, 3, 4), Ok(false));
    assert_eq!((bank(&mce, 1), mce.read(msr::MCG_STATUS)), ([VALID, 2, 3], Some(0)));
    assert_eq!(mce.inject(1, VALID, 5, 6, 7), Ok(false));
    assert_eq!(bank(&mce, 1), [VALID | OVERFLOW, 5, 6]);
    // One that was not corrected is signalled, and a later corrected one does not hide it.
    assert_eq!(mce.inject(0, VALID | UNCORRECTED, 8, 9, 10), Ok(true));
    assert_eq!((bank(&mce, 0), mce.read(msr::MCG_STATUS)), ([VALID | UNCORRECTED, 8, 9], Some(10)));
    assert_eq!(mce.inject(0, VALID, 11, 12, 13), Ok(false));
    assert_eq!(bank(&mce, 0), [VALID | UNCORRECTED | OVERFLOW, 8, 9]);
    // Reporting that is switched off, for the bank or for all.
    for index in [msr::MC0_CTL, msr::MCG_CTL] {
        let mut mce = new();
        mce.write(index, 0, By::Guest).unwrap().unwrap();
        assert_eq!((mce.inject(0, VALID | UNCORRECTED, 1, 2, 3), bank(&mce, 0)), (Ok(false), [0; 3]));
        assert_eq!((mce.inject(0, VALID, 1, 2, 3), bank(&mce, 0)), (Ok(false), [VALID, 1, 2]));
    }
}

#[test]
fn bits_are_taken_dropped_or_refused() {
    // (register, after reset, bits that a write changes, what becomes of the others)
    for (index, reset, writable, refused) in [
        (msr::FEATURE_CONTROL, 1, 0, false),
        (msr::MISC_ENABLE, 0x1809, u64::MAX, false),
        (msr::DEBUGCTL, 0, 3, false),
        (msr::SYSCFG, 0, 0x7c_0000, false),
        (msr::HWCR, 1 << 24, 1 << 18 | 1 << 24, true),
        (msr::VM_CR, 0, 0, false),
        (msr::VM_HSAVE_PA, 0, 0, false),
        (msr::LS_CFG, 0, u64::MAX, false),
        (msr::DE_CFG, 2, 2, false),
    ] {
        let mut v = Vcpu::new(Features::all());
        assert_eq!(v.read(index), Ok(reset), "{index:#x}");
        for bit in (0..64).map(|n| 1u64 << n) {
            let before = v.read(index).unwrap();
            let ignored = index == msr::HWCR && 0x148 & bit != 0;
            let accepted = v.write(index, before ^ bit).is_ok();
            assert_eq!(accepted, writable & bit != 0 || !refused || ignored, "{bit:#x} of {index:#x}");
            let after = if accepted { before ^ bit & writable } else { before };
            assert_eq!(v.read(index), Ok(after), "{bit:#x} of {index:#x}");
        }
    }
    let mut v = Vcpu::new(Features::all());
    assert_eq!((v.read(msr::XSS), v.client_write(msr::XSS, 1)), (Err(Refused::Unknown), Err(Refused::Invalid)));
    assert_eq!(v.client_write(msr::XSS, 0), Ok(()));
    for index in [msr::VM_CR, msr::VM_HSAVE_PA, msr::LS_CFG, msr::DE_CFG] {
        assert_eq!(intel().read(index), Err(Refused::Unknown), "{index:#x}");
    }
}

#[test]
fn speculation_control_comes_with_any_of_its_bits() {
    for (leaf, edx) in [(7, true), (0x8000_0008, false)] {
        for bit in 0..32 {
            let (register, flags) = (1u32 << bit, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
            let (ebx, edx) = if edx { (0, register) } else { (register, 0) };
            let entry = KvmCpuidEntry2 { function: leaf, flags, ebx, edx, ..KvmCpuidEntry2::default() };
            let mut v = Vcpu::with(Cpuid::new([entry].into()));
            let has = if leaf == 7 { matches!(bit, 26 | 27 | 31) } else { matches!(bit, 12 | 14 | 15 | 24) };
            assert_eq!(v.read(msr::SPEC_CTRL).is_ok(), has, "{leaf:#x} bit {bit}");
            assert_eq!(v.write(msr::SPEC_CTRL, 0x407).is_ok(), has);
            for bit in 0..64 {
                assert_eq!(v.client_write(msr::SPEC_CTRL, 1 << bit).is_ok(), 0x407u64 >> bit & 1 != 0, "{bit}");
            }
        }
    }
}

#[test]
fn constants() {
    let (mut v, amd) = (intel(), Vcpu::new(Features::all()));
    assert_eq!((v.read(msr::UCODE_REV), amd.read(msr::UCODE_REV)), (Ok(0x1_0000_0000), Ok(0x0100_0065)));
    assert_eq!((v.read(msr::PERF_STATUS), v.read(0x2c)), (Ok(1000 | 4 << 40), Ok(1 << 24)));
    for index in [0, 1, 0x17, 0x2a, 0x79, 0x11e, 0x186, 0x187, 0x1db, 0x1de, 0xc1, 0x199, 0x606, 0x641, 0xc001_0141] {
        v.write(index, 5).unwrap();
        assert_eq!(v.read(index), Ok(0), "{index:#x}");
    }
    for index in [0xc3, 0x188, 0x1da, 0x1df, 0xc001_0008, 0xc001_0142] {
        assert_eq!((v.read(index), v.write(index, 0)), (Err(Refused::Unknown), Err(Refused::Unknown)), "{index:#x}");
    }
    for index in [msr::PERF_STATUS, 0x2c] {
        assert_eq!((v.write(index, 0), v.client_write(index, 0)), (Err(Refused::Unknown), Ok(())), "{index:#x}");
    }
    // Commands that CPUID has to tell of.
    for (index, bit) in [(msr::PRED_CMD, 26), (0x10b, 28)] {
        assert_eq!((v.write(index, 1), v.client_write(index, 1)), (Err(Refused::Unknown), Ok(())), "{index:#x}");
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let entry = KvmCpuidEntry2 { function: 7, flags, edx: 1 << bit, ..KvmCpuidEntry2::default() };
        let mut v = Vcpu::with(Cpuid::new([entry].into()));
        let written = [v.write(index, 0), v.write(index, 1), v.write(index, 2)];
        assert_eq!(written, [Ok(()), Ok(()), Err(Refused::Invalid)], "{index:#x}");
    }
}
