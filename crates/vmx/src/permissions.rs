//! Which model-specific registers the guest reaches without asking (SDM vol. 3, 25.6.9). One map serves all guests. All ports exit.
use platform::{MaySleep, OutOfMemory, hardware::Frames};
use x86::msr;

const PAGE: usize = 4096;
/// Where the bits for writes begin, behind those for reads.
const WRITES: usize = PAGE / 2;

/// Registers that the guest reads and writes by itself. The processor keeps them in the control structure, and programs change
/// them at each switch of threads.
const FREE: [u32; 2] = [msr::FS_BASE, msr::GS_BASE];

/// Number of the bit that makes reads of an MSR exit. None: the map does not know the register, and every access exits.
fn read_bit(index: u32) -> Option<usize> {
    match index {
        0..=0x1fff => Some(index as usize),
        0xc000_0000..=0xc000_1fff => Some(0x2000 + (index - 0xc000_0000) as usize),
        _ => None,
    }
}

/// The map.
pub struct MsrMap<F>(F);

impl<F: Frames> MsrMap<F> {
    /// All registers exit but a few.
    pub fn new(below_4g: bool, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let frames = F::new(1, below_4g, cx)?;
        // SAFETY: the frame is this long, lives as long as the slice, and nobody knows of it yet.
        fill(unsafe { core::slice::from_raw_parts_mut(frames.as_ptr(), PAGE) });
        Ok(Self(frames))
    }

    /// Its host-physical address.
    pub fn hpa(&self) -> u64 {
        self.0.hpa()
    }
}

fn fill(map: &mut [u8]) {
    map.fill(0xff);
    for bit in FREE.into_iter().filter_map(read_bit) {
        for byte in [bit / 8, WRITES + bit / 8] {
            if let Some(byte) = map.get_mut(byte) {
                *byte &= !(1 << (bit % 8));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_stand_where_the_manual_has_them() {
        for (index, byte) in [(0, 0), (0x1fff, 0x3ff), (0xc000_0000, 0x400), (0xc000_1fff, 0x7ff)] {
            assert_eq!(read_bit(index).unwrap() / 8, byte, "{index:#x}");
        }
        for index in [0x2000, 0xbfff_ffff, 0xc000_2000, 0x4b56_4d00] {
            assert_eq!(read_bit(index), None, "{index:#x}");
        }
    }

    #[test]
    fn only_the_bases_are_free() {
        let mut map = [0; PAGE];
        fill(&mut map);
        let exits = |index: u32, write: bool| {
            let bit = read_bit(index).unwrap();
            map[bit / 8 + if write { WRITES } else { 0 }] >> (bit % 8) & 1 != 0
        };
        for index in FREE {
            assert!(!exits(index, false) && !exits(index, true), "{index:#x}");
        }
        for index in [
            msr::EFER,
            msr::KERNEL_GS_BASE,
            msr::TSC_AUX,
            msr::LSTAR,
            msr::APIC_BASE,
            msr::SPEC_CTRL,
            msr::FEATURE_CONTROL,
        ] {
            assert!(exits(index, false) && exits(index, true), "{index:#x}");
        }
        let free: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(free, 2 * FREE.len() as u32);
    }
}
