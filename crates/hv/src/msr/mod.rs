//! Model-specific registers: what the guest reads and writes with RDMSR and WRMSR, and the client with KVM_GET_MSRS
//! and KVM_SET_MSRS.
//!
//! Most are data in a table ([`stored`]) or registers of the processor ([`registers`]); those that act (TSC, local
//! APIC, kvmclock) are the vCPU's business, which asks here for the rest.
mod constant;
#[cfg(test)]
mod edge_tests;
mod list;
mod mce;
mod mtrr;
mod registers;
mod stored;

use alloc::boxed::Box;
use platform::{OutOfMemory, fallible::try_box};
use x86::{CpuState, Efer, msr};

use crate::cpuid::Cpuid;
pub(crate) use list::{FEATURES as FEATURE_LIST, feature, list};
pub(crate) use mce::{BANKS as MCE_BANKS, CAPABILITIES as MCE_CAPABILITIES, Mce};
pub(crate) use registers::valid_efer;

/// Who accesses a register: a client may write what a guest may only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Guest,
    Client,
}

/// The access is not possible: #GP for the guest, the end of the list for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No such register.
    Unknown,
    /// Not with this value, or not writable.
    Invalid,
}

/// What has to follow a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Effects {
    /// Every translation is stale.
    pub(crate) flush: bool,
}

/// The registers of one vCPU that are neither the processor's nor a device's.
#[derive(Debug, Default)]
pub(crate) struct Msrs {
    stored: stored::Stored,
    mtrr: mtrr::Mtrr,
    pub(crate) mce: Mce,
    /// IA32_ARCH_CAPABILITIES.
    pub(crate) arch_capabilities: u64,
}

impl Msrs {
    /// In a box, as they are too large to be moved about on a kernel's stack.
    #[inline(never)]
    pub(crate) fn boxed(arch_capabilities: u64) -> Result<Box<Self>, OutOfMemory> {
        try_box(Self { arch_capabilities, ..Self::default() })
    }

    pub(crate) fn read(&self, index: u32, by: By, state: &CpuState, cpuid: &Cpuid) -> Result<u64, Refused> {
        if let Some(value) = registers::read(index, state, cpuid, by) {
            return Ok(value);
        }
        if index == msr::ARCH_CAPABILITIES && (by == By::Client || cpuid.has_arch_capabilities()) {
            return Ok(self.arch_capabilities);
        }
        if let Some(value) = self.stored.read(index, cpuid, by) {
            return Ok(value);
        }
        self.mtrr
            .read(index)
            .or_else(|| self.mce.read(index))
            .or_else(|| constant::read(index, cpuid))
            .ok_or(Refused::Unknown)
    }

    pub(crate) fn write(
        &mut self,
        index: u32,
        value: u64,
        by: By,
        state: &mut CpuState,
        cpuid: &Cpuid,
    ) -> Result<Effects, Refused> {
        if index == msr::EFER {
            let old = state.efer;
            registers::write_efer(value, by, state, cpuid)?;
            return Ok(Effects { flush: (old ^ state.efer) & Efer::NXE.bits() != 0 });
        }
        if index == msr::ARCH_CAPABILITIES && by == By::Client {
            self.arch_capabilities = value;
            return Ok(Effects::default());
        }
        let answer = registers::write(index, value, state, cpuid, by)
            .or_else(|| self.stored.write(index, value, cpuid, by))
            .or_else(|| self.mtrr.write(index, value))
            .or_else(|| self.mce.write(index, value, by))
            .or_else(|| constant::write(index, value, by, cpuid));
        answer.unwrap_or(Err(Refused::Unknown)).map(|()| Effects::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::Features;

    fn vcpu(features: Features) -> (Msrs, CpuState, Cpuid) {
        let offer =
            crate::cpuid::Offer { features, xcr0: 7, tsc_khz: 2_000_000, arch_capabilities: 1, fast_strings: true };
        let cpuid = Cpuid::new(crate::cpuid::supported(&offer).unwrap());
        (Msrs::default(), CpuState::reset(0), cpuid)
    }

    #[test]
    fn every_listed_register_can_be_saved_and_restored() {
        let (mut msrs, mut state, cpuid) = vcpu(Features::all());
        for index in list().filter(|i| !crate::vcpu::is_active_msr(*i)) {
            let value = msrs.read(index, By::Client, &state, &cpuid);
            let value = value.unwrap_or_else(|e| panic!("read of {index:#x}: {e:?}"));
            let written = msrs.write(index, value, By::Client, &mut state, &cpuid);
            assert!(written.is_ok(), "write of {value:#x} to {index:#x}: {written:?}");
        }
    }

    /// (register, value, accepted from the guest)
    #[test]
    fn writes_are_checked() {
        let (mut msrs, mut state, cpuid) = vcpu(Features::all());
        for (index, value, accepted) in [
            (msr::LSTAR, 0xffff_8000_0000_0000, true),
            (msr::LSTAR, 0x8000_0000_0000_0000, false),
            (msr::FS_BASE, 0x1_0000_0000_0000, false),
            (msr::STAR, u64::MAX, true),
            (msr::TSC_AUX, 7, true),
            (msr::TSC_AUX, 1 << 32, false),
            (msr::PAT, 0x0007_0406_0007_0406, true),
            (msr::PAT, 0x0002_0406_0007_0406, false),
            (msr::MTRR_DEF_TYPE, 0xc06, true),
            (msr::MTRR_DEF_TYPE, 0xc02, false),
            (msr::MTRR_CAP, 0, false),
            (msr::MTRR_PHYS_BASE0, 0x6, true),
            (msr::MTRR_PHYS_BASE0, 0x2, false),
            (msr::MC0_CTL, 0, true),
            (msr::MC0_CTL, u64::MAX, true),
            (msr::MC0_CTL, 5, false),
            (msr::MC0_CTL + 1, 0, true),
            (msr::MC0_CTL + 1, 1, false),
            (msr::MCG_STATUS, 0, true),
            (msr::HWCR, 0x10, false),
            (msr::HWCR, 1 << 18, true),
            (msr::UCODE_REV, 5, true),
            (msr::EFER, Efer::SCE.bits(), true),
            (msr::EFER, 1 << 1, false),
            (msr::EFER, Efer::SVME.bits(), false),
            (0x1234_5678, 0, false),
        ] {
            let written = msrs.write(index, value, By::Guest, &mut state, &cpuid).is_ok();
            assert_eq!(written, accepted, "{value:#x} to {index:#x}");
        }
        assert_eq!(state.lstar, 0xffff_8000_0000_0000);
        assert_eq!(msrs.read(msr::PAT, By::Guest, &state, &cpuid), Ok(0x0007_0406_0007_0406));
    }

    /// Row C10: what the guests of the log touched, with its reading.
    #[test]
    fn guests_of_the_time_find_their_registers() {
        let (mut msrs, mut state, cpuid) = vcpu(Features::all());
        for index in [
            msr::MISC_ENABLE,
            msr::MCG_STATUS,
            msr::MCG_CAP,
            msr::MC0_CTL,
            msr::MC0_CTL + 1,
            msr::EBL_CR_POWERON,
            msr::PERF_STATUS,
            msr::PLATFORM_ID,
            msr::UCODE_REV,
            msr::P5_MC_ADDR,
            msr::P5_MC_TYPE,
            msr::SYSCFG,
            msr::HWCR,
            msr::EFER,
            msr::STAR,
            msr::SYSENTER_CS,
            msr::PAT,
            msr::MTRR_CAP,
        ] {
            assert!(msrs.read(index, By::Guest, &state, &cpuid).is_ok(), "{index:#x}");
        }
        assert!(msrs.write(msr::EBL_CR_POWERON, 0, By::Guest, &mut state, &cpuid).is_ok());
        assert_eq!(msrs.read(0xdead, By::Guest, &state, &cpuid), Err(Refused::Unknown));
    }

    #[test]
    fn efer_follows_the_modes() {
        let (mut msrs, mut state, cpuid) = vcpu(Features::all());
        let nxe = Efer::NXE.bits();
        let effects = msrs.write(msr::EFER, nxe, By::Guest, &mut state, &cpuid).unwrap();
        assert!(effects.flush && state.efer == nxe);
        // LME cannot change while paging is on, and LMA not at all.
        state.cr0 |= x86::Cr0::PG.bits() | x86::Cr0::PE.bits();
        let lme = Efer::LME.bits();
        assert!(msrs.write(msr::EFER, lme, By::Guest, &mut state, &cpuid).is_err());
        state.cr0 &= !x86::Cr0::PG.bits();
        msrs.write(msr::EFER, lme | Efer::LMA.bits(), By::Guest, &mut state, &cpuid).unwrap();
        assert_eq!(state.efer, lme);
        let (mut msrs, mut state, cpuid) = vcpu(Features::all() - Features::NX - Features::LM);
        for bit in [nxe, lme] {
            assert!(msrs.write(msr::EFER, bit, By::Guest, &mut state, &cpuid).is_err());
        }
    }
}
