//! The page of one control block.
use platform::{MaySleep, OutOfMemory, hardware::Frames};

use crate::vmcb::Vmcb;

/// A control block in host-physical memory. The processor reads and writes it during VMRUN, VMLOAD and VMSAVE only, which
/// want it borrowed for writing.
pub struct ControlBlock<F>(F);

impl<F: Frames> ControlBlock<F> {
    /// All zero.
    pub fn new(cx: &MaySleep) -> Result<Self, OutOfMemory> {
        F::new(1, false, cx).map(Self)
    }

    /// Its host-physical address.
    pub fn hpa(&self) -> u64 {
        self.0.hpa()
    }

    /// What is in it.
    #[inline]
    pub fn get(&self) -> &Vmcb {
        // SAFETY: a page of zeros to begin with, aligned to its size, that is only reached through this value; any bits are
        // a `Vmcb`.
        unsafe { &*self.0.as_ptr().cast() }
    }

    /// To be changed.
    #[inline]
    pub fn get_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as above, borrowed for writing.
        unsafe { &mut *self.0.as_ptr().cast() }
    }
}
