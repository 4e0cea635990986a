//! MSRs that are registers of the processor: SYSCALL, SYSENTER, segment bases, EFER, TSC_AUX.
use x86::{CpuState, Cr0, Efer, Features, Seg, msr, paging::canonical};

use super::{By, Refused};
use crate::cpuid::Cpuid;

fn offered(cpuid: &Cpuid, feature: Features, by: By) -> bool {
    by == By::Client || cpuid.features().contains(feature)
}

pub(super) fn read(index: u32, state: &CpuState, cpuid: &Cpuid, by: By) -> Option<u64> {
    Some(match index {
        msr::EFER => state.efer,
        msr::STAR => state.star,
        msr::LSTAR => state.lstar,
        msr::CSTAR => state.cstar,
        msr::SFMASK => state.sfmask,
        msr::FS_BASE => state.seg[Seg::Fs as usize].base,
        msr::GS_BASE => state.seg[Seg::Gs as usize].base,
        msr::KERNEL_GS_BASE => state.kernel_gs_base,
        msr::TSC_AUX if offered(cpuid, Features::RDTSCP, by) || offered(cpuid, Features::RDPID, by) => state.tsc_aux,
        msr::SYSENTER_CS => state.sysenter_cs,
        msr::SYSENTER_ESP => state.sysenter_esp,
        msr::SYSENTER_EIP => state.sysenter_eip,
        _ => return None,
    })
}

pub(super) fn write(
    index: u32,
    value: u64,
    state: &mut CpuState,
    cpuid: &Cpuid,
    by: By,
) -> Option<Result<(), Refused>> {
    let address = |value| if canonical(value, state.linear_bits()) { Ok(value) } else { Err(Refused::Invalid) };
    let checked = match index {
        msr::LSTAR | msr::CSTAR | msr::FS_BASE | msr::GS_BASE | msr::KERNEL_GS_BASE => address(value),
        // AMD's are 32 bits wide, Intel's must be canonical.
        msr::SYSENTER_ESP | msr::SYSENTER_EIP if cpuid.features().contains(Features::AMD) => Ok(value & 0xffff_ffff),
        msr::SYSENTER_ESP | msr::SYSENTER_EIP => address(value),
        msr::TSC_AUX => {
            let exists = offered(cpuid, Features::RDTSCP, by) || offered(cpuid, Features::RDPID, by);
            if !exists {
                return None;
            }
            if value >> 32 == 0 { Ok(value) } else { Err(Refused::Invalid) }
        }
        _ => Ok(value),
    };
    let value = match checked {
        Ok(value) => value,
        Err(e) => return Some(Err(e)),
    };
    let register = match index {
        msr::STAR => &mut state.star,
        msr::LSTAR => &mut state.lstar,
        msr::CSTAR => &mut state.cstar,
        msr::SFMASK => &mut state.sfmask,
        msr::FS_BASE => &mut state.seg[Seg::Fs as usize].base,
        msr::GS_BASE => &mut state.seg[Seg::Gs as usize].base,
        msr::KERNEL_GS_BASE => &mut state.kernel_gs_base,
        msr::TSC_AUX => &mut state.tsc_aux,
        msr::SYSENTER_CS => &mut state.sysenter_cs,
        msr::SYSENTER_ESP => &mut state.sysenter_esp,
        msr::SYSENTER_EIP => &mut state.sysenter_eip,
        _ => return None,
    };
    *register = value;
    Some(Ok(()))
}

/// Whether EFER may have these bits set, LMA aside.
pub(crate) fn valid_efer(value: u64, features: Features) -> bool {
    let mut allowed = Efer::SCE.bits() | Efer::LMA.bits();
    for (feature, bit) in [(Features::LM, Efer::LME), (Features::NX, Efer::NXE), (Features::FFXSR, Efer::FFXSR)] {
        if features.contains(feature) {
            allowed |= bit.bits();
        }
    }
    value & !allowed == 0
}

/// EFER. LMA is the processor's: writes leave it, except a client's.
pub(super) fn write_efer(value: u64, by: By, state: &mut CpuState, cpuid: &Cpuid) -> Result<(), Refused> {
    // A client may set EFER before it sets CPUID.
    let features = if by == By::Client && cpuid.entries().is_empty() { Features::all() } else { cpuid.features() };
    if !valid_efer(value, features) {
        return Err(Refused::Invalid);
    }
    let (lme, lma) = (Efer::LME.bits(), Efer::LMA.bits());
    if by == By::Guest && (state.efer ^ value) & lme != 0 && state.cr0 & Cr0::PG.bits() != 0 {
        return Err(Refused::Invalid);
    }
    let keep = if by == By::Guest { lma } else { 0 };
    state.efer = value & !keep | state.efer & keep;
    state.refresh();
    Ok(())
}
