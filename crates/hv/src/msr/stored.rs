//! MSRs that only hold a value: number, value after reset, bits that can be written, and who sees it.
use x86::{Features, msr};

use super::{By, Refused};
use crate::cpuid::Cpuid;

/// On which processors a register exists for the guest. The client reaches all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exists {
    Always,
    SpecCtrl,
    Amd,
    Xsaves,
}

/// What happens when a bit outside the mask is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    /// #GP.
    Refused,
    /// It stays as it was.
    Dropped,
}

struct Row {
    index: u32,
    reset: u64,
    writable: u64,
    extra: Extra,
    exists: Exists,
}

const fn row(index: u32, reset: u64, writable: u64, extra: Extra, exists: Exists) -> Row {
    Row { index, reset, writable, extra, exists }
}

const ALL: u64 = u64::MAX;
/// Bits of MISC_ENABLE: fast strings, automatic thermal control, BTS and PEBS unavailable.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 3 | 1 << 11 | 1 << 12;

const ROWS: &[Row] = &[
    row(msr::FEATURE_CONTROL, 1, 0, Extra::Dropped, Exists::Always),
    row(msr::SPEC_CTRL, 0, 0x407, Extra::Refused, Exists::SpecCtrl),
    row(msr::MISC_ENABLE, MISC_ENABLE_RESET, ALL, Extra::Dropped, Exists::Always),
    row(msr::DEBUGCTL, 0, 0x3, Extra::Dropped, Exists::Always),
    row(msr::XSS, 0, 0, Extra::Refused, Exists::Xsaves),
    // SYSCFG: MTRR and TOM bits that firmware sets.
    row(msr::SYSCFG, 0, 0x7c_0000, Extra::Dropped, Exists::Always),
    // HWCR: what Linux clears or sets on each model (TLB cache disable, monitor, FFDIS, ...) is dropped; McStatusWrEn
    // and TscFreqSel are kept.
    row(msr::HWCR, 1 << 24, 1 << 18 | 1 << 24, Extra::Refused, Exists::Always),
    row(msr::VM_CR, 0, 0, Extra::Dropped, Exists::Amd),
    row(msr::VM_HSAVE_PA, 0, 0, Extra::Dropped, Exists::Amd),
    row(msr::LS_CFG, 0, ALL, Extra::Dropped, Exists::Amd),
    // DE_CFG: LFENCE is serialising.
    row(msr::DE_CFG, 1 << 1, 1 << 1, Extra::Dropped, Exists::Amd),
];

/// Bits of HWCR that a write may carry without effect.
const HWCR_IGNORED: u64 = 1 << 3 | 1 << 6 | 1 << 8;

/// The values.
#[derive(Debug)]
pub(super) struct Stored([u64; ROWS.len()]);

impl Default for Stored {
    fn default() -> Self {
        Self(core::array::from_fn(|i| ROWS[i].reset))
    }
}

fn find(index: u32, cpuid: &Cpuid, by: By) -> Option<(usize, &'static Row)> {
    let (i, row) = ROWS.iter().enumerate().find(|(_, row)| row.index == index)?;
    let exists = by == By::Client
        || match row.exists {
            Exists::Always => true,
            Exists::SpecCtrl => cpuid.has_spec_ctrl(),
            Exists::Amd => cpuid.features().contains(Features::AMD),
            Exists::Xsaves => false,
        };
    exists.then_some((i, row))
}

/// The registers of this table.
pub(super) fn indices() -> impl Iterator<Item = u32> {
    ROWS.iter().map(|row| row.index)
}

impl Stored {
    pub(super) fn read(&self, index: u32, cpuid: &Cpuid, by: By) -> Option<u64> {
        find(index, cpuid, by).map(|(i, _)| self.0[i])
    }

    pub(super) fn write(&mut self, index: u32, value: u64, cpuid: &Cpuid, by: By) -> Option<Result<(), Refused>> {
        let (i, row) = find(index, cpuid, by)?;
        let old = self.0[i];
        let value = if index == msr::HWCR { value & !HWCR_IGNORED } else { value };
        if row.extra == Extra::Refused && (value ^ old) & !row.writable != 0 {
            return Some(Err(Refused::Invalid));
        }
        self.0[i] = value & row.writable | old & !row.writable;
        Some(Ok(()))
    }
}
