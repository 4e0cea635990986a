//! Memory types: MTRRs and the PAT (SDM vol. 3, 11.11 and 11.12). They are kept and checked; every host that runs
//! rekvm keeps guest memory write-back whatever they say.
use x86::msr;

use super::Refused;

/// Variable ranges.
const RANGES: usize = 8;
/// Fixed-range registers: one of 64 KiB, two of 16 KiB, eight of 4 KiB steps.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// MTRRCAP: 8 variable ranges, fixed ranges, write combining.
const CAP: u64 = RANGES as u64 | 1 << 8 | 1 << 10;
/// The PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// The registers.
#[derive(Debug)]
pub(super) struct Mtrr {
    variable: [u64; 2 * RANGES],
    fixed: [u64; FIXED.len()],
    def_type: u64,
    pat: u64,
}

impl Default for Mtrr {
    fn default() -> Self {
        Self { variable: [0; 2 * RANGES], fixed: [0; FIXED.len()], def_type: 0, pat: PAT_RESET }
    }
}

enum Which {
    Variable(usize),
    Fixed(usize),
    DefType,
    Pat,
}

fn which(index: u32) -> Option<Which> {
    Some(match index {
        msr::PAT => Which::Pat,
        msr::MTRR_DEF_TYPE => Which::DefType,
        0x200..=0x20f => Which::Variable((index - msr::MTRR_PHYS_BASE0) as usize),
        _ => Which::Fixed(FIXED.iter().position(|f| *f == index)?),
    })
}

/// The registers of this file.
pub(super) fn indices() -> impl Iterator<Item = u32> {
    (msr::MTRR_PHYS_BASE0..msr::MTRR_PHYS_BASE0 + 2 * RANGES as u32).chain(FIXED).chain([msr::MTRR_DEF_TYPE, msr::PAT])
}

fn memory_type(value: u64) -> bool {
    matches!(value & 0xff, 0 | 1 | 4 | 5 | 6)
}

fn each_byte(value: u64, ok: impl Fn(u8) -> bool) -> bool {
    value.to_le_bytes().into_iter().all(ok)
}

impl Mtrr {
    pub(super) fn read(&self, index: u32) -> Option<u64> {
        if index == msr::MTRR_CAP {
            return Some(CAP);
        }
        Some(match which(index)? {
            Which::Variable(n) => self.variable[n],
            Which::Fixed(n) => self.fixed[n],
            Which::DefType => self.def_type,
            Which::Pat => self.pat,
        })
    }

    pub(super) fn write(&mut self, index: u32, value: u64) -> Option<Result<(), Refused>> {
        if index == msr::MTRR_CAP {
            return Some(Err(Refused::Invalid));
        }
        let (register, valid) = match which(index)? {
            // Bits above the physical address width are dropped by processors of different widths; the type is not.
            Which::Variable(n) if n % 2 == 0 => (&mut self.variable[n], memory_type(value) && value & 0xf00 == 0),
            Which::Variable(n) => (&mut self.variable[n], value & 0x7ff == 0),
            Which::Fixed(n) => (&mut self.fixed[n], each_byte(value, |t| memory_type(t.into()))),
            Which::DefType => (&mut self.def_type, memory_type(value) && value & !0xcff == 0),
            Which::Pat => (&mut self.pat, each_byte(value, |t| matches!(t, 0 | 1 | 4..=7))),
        };
        if !valid {
            return Some(Err(Refused::Invalid));
        }
        *register = value;
        Some(Ok(()))
    }
}
