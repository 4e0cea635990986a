//! MSRs that read as a constant and take writes without effect: chipset, microcode and performance registers that
//! guests look at on real machines.
use core::ops::RangeInclusive;

use x86::{Features, msr};

use super::{By, Refused};
use crate::cpuid::Cpuid;

/// Read as 0; writes are ignored.
const ZERO: &[RangeInclusive<u32>] = &[
    msr::P5_MC_ADDR..=msr::P5_MC_TYPE,
    msr::PLATFORM_ID..=msr::PLATFORM_ID,
    msr::EBL_CR_POWERON..=msr::EBL_CR_POWERON,
    // BBL_CR_CTL3, microcode update trigger.
    0x11e..=0x11e,
    0x79..=0x79,
    // Last branch and last interrupt records.
    0x1db..=0x1de,
    // Performance counters and their selectors of P6 and K7.
    0xc1..=0xc2,
    0x186..=0x187,
    0xc001_0000..=0xc001_0007,
    // Requested performance state.
    0x199..=0x199,
    // Package and uncore energy and power limits.
    0x606..=0x606,
    0x611..=0x611,
    0x619..=0x619,
    0x639..=0x639,
    0x641..=0x641,
    // AMD: top of memory 1 and 2, IORR, northbridge configuration, patch loader, pending interrupt message, SMM base
    // and TSEG, MMIO configuration, P-states, OSVW, DC, BU and IC configuration, IBS.
    0xc001_0016..=0xc001_0019,
    0xc001_001a..=0xc001_001a,
    0xc001_001d..=0xc001_001d,
    0xc001_001f..=0xc001_0020,
    0xc001_0041..=0xc001_0042,
    0xc001_0055..=0xc001_0058,
    0xc001_0061..=0xc001_006b,
    0xc001_0111..=0xc001_0113,
    0xc001_0140..=0xc001_0141,
    0xc001_1021..=0xc001_1023,
    0xc001_102a..=0xc001_102d,
];

/// P4's EBC_FREQUENCY_ID: a bus of 100 MHz.
const EBC_FREQUENCY_ID: u32 = 0x2c;
/// Indirect branch prediction barrier and flushes: commands.
const FLUSH_CMD: u32 = 0x10b;
/// Microcode levels that no guest takes for an old one.
const UCODE_AMD: u64 = 0x0100_0065;
const UCODE_INTEL: u64 = 0x1_0000_0000;

pub(super) fn read(index: u32, cpuid: &Cpuid) -> Option<u64> {
    Some(match index {
        msr::UCODE_REV if cpuid.features().contains(Features::AMD) => UCODE_AMD,
        msr::UCODE_REV => UCODE_INTEL,
        // 1000 TSC increments a tick, a multiplier of 4.
        msr::PERF_STATUS => 1000 | 4 << 40,
        EBC_FREQUENCY_ID => 1 << 24,
        _ if ZERO.iter().any(|range| range.contains(&index)) => 0,
        _ => return None,
    })
}

pub(super) fn write(index: u32, value: u64, by: By, cpuid: &Cpuid) -> Option<Result<(), Refused>> {
    match index {
        // Only the client sets the level; a guest's write starts a read-out.
        msr::UCODE_REV => Some(Ok(())),
        // Commands are only the guest's to give where CPUID tells of them.
        msr::PRED_CMD if by == By::Guest && !cpuid.has_spec_ctrl() => None,
        FLUSH_CMD if by == By::Guest && !cpuid.has_flush_cmd() => None,
        msr::PRED_CMD | FLUSH_CMD => Some(if value & !1 == 0 { Ok(()) } else { Err(Refused::Invalid) }),
        EBC_FREQUENCY_ID | msr::PERF_STATUS if by == By::Client => Some(Ok(())),
        _ if ZERO.iter().any(|range| range.contains(&index)) => Some(Ok(())),
        _ => None,
    }
}
