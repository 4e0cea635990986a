//! Which ports and model-specific registers the guest reaches without asking (APM vol. 2, 15.10 and 15.11). One map of each
//! kind serves all guests.
use platform::{MaySleep, OutOfMemory, hardware::Frames};
use x86::msr;

/// Pages of the I/O permission map: a bit for each port, and three behind the last.
const IO_PAGES: usize = 3;
/// Pages of the MSR permission map: two bits for each of three ranges of 0x2000 registers.
const MSR_PAGES: usize = 2;
const PAGE: usize = 4096;

/// Registers that the guest reads and writes by itself. The processor keeps them in the control block, and programs change
/// them at each switch of threads.
const FREE: [u32; 3] = [msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE];

/// Number of the bit that forbids reads of an MSR; the next one forbids writes. None: the map does not know the
/// register, and every access exits.
fn msr_bit(index: u32) -> Option<usize> {
    let (range, first) = match index {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (1, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (2, 0xc001_0000),
        _ => return None,
    };
    Some((range * 0x2000 + (index - first) as usize) * 2)
}

/// The two maps.
pub struct Permissions<F> {
    io: F,
    msr: F,
}

impl<F: Frames> Permissions<F> {
    /// All ports are forbidden, and all registers but a few.
    pub fn new(cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let io = F::new(IO_PAGES, false, cx)?;
        let msr = F::new(MSR_PAGES, false, cx)?;
        bytes(&io, IO_PAGES).fill(0xff);
        fill_msr(bytes(&msr, MSR_PAGES));
        Ok(Self { io, msr })
    }

    /// Host-physical address of the I/O map.
    pub fn io(&self) -> u64 {
        self.io.hpa()
    }

    /// Host-physical address of the MSR map.
    pub fn msr(&self) -> u64 {
        self.msr.hpa()
    }
}

#[allow(clippy::mut_from_ref)]
fn bytes<F: Frames>(frames: &F, pages: usize) -> &mut [u8] {
    // SAFETY: the frames are this long, live as long as the reference, and nobody knows of them yet.
    unsafe { core::slice::from_raw_parts_mut(frames.as_ptr(), pages * PAGE) }
}

fn fill_msr(map: &mut [u8]) {
    map.fill(0xff);
    for bit in FREE.into_iter().filter_map(msr_bit) {
        map[bit / 8] &= !(3 << (bit % 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestFrames;

    fn read_write(map: &[u8], index: u32) -> u8 {
        let bit = msr_bit(index).unwrap();
        map[bit / 8] >> (bit % 8) & 3
    }

    #[test]
    fn registers_stand_where_the_manual_has_them() {
        for (index, byte) in [(0, 0), (0x1fff, 0x7ff), (0xc000_0000, 0x800), (0xc001_0000, 0x1000)] {
            assert_eq!(msr_bit(index).unwrap() / 8, byte, "{index:#x}");
        }
        for index in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, 0x4b56_4d00] {
            assert_eq!(msr_bit(index), None, "{index:#x}");
        }
    }

    #[test]
    fn only_the_bases_are_free() {
        let maps = Permissions::<TestFrames>::new(&MaySleep::at_entry()).unwrap();
        let map = bytes(&maps.msr, MSR_PAGES);
        for index in FREE {
            assert_eq!(read_write(map, index), 0, "{index:#x}");
        }
        for index in [msr::EFER, msr::TSC_AUX, msr::LSTAR, msr::APIC_BASE, msr::SPEC_CTRL, msr::VM_HSAVE_PA, msr::VM_CR]
        {
            assert_eq!(read_write(map, index), 3, "{index:#x}");
        }
        let free: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(free, 2 * FREE.len() as u32);
        assert!(bytes(&maps.io, IO_PAGES).iter().all(|byte| *byte == 0xff));
    }
}
