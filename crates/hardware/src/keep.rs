//! Registers of the guest's that neither vendor's processors exchange when they enter a guest: XCR0, TSC_AUX and the addresses of
//! breakpoints. They are the guest's only while it runs, and only where they differ from the host's.
use x86::{CpuState, Cr4, debug::DR7_ENABLED, msr};

use crate::Instructions;

/// The host's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// XCR0; 0 without XSAVE.
    pub xcr0: u64,
    /// TSC_AUX, if the processor has it.
    pub tsc_aux: Option<u64>,
}

/// What the guest has to itself.
#[derive(Debug)]
#[must_use = "the host's values have to come back"]
pub struct Kept {
    xcr0: bool,
    tsc_aux: Option<u64>,
}

impl Host {
    /// Loads the guest's values. `dr7` is its DR7 while it runs, and `breakpoints` sets DR0 to DR3 for that.
    ///
    /// # Safety
    /// Interrupts are off until [`Self::load_host`]. Leaving the guest clears DR7, and the host's own breakpoints come back
    /// afterwards. XCR0 of the guest is one that the processor takes.
    #[inline]
    pub unsafe fn load_guest<I: Instructions>(&self, state: &CpuState, dr7: u64, breakpoints: impl FnOnce()) -> Kept {
        // SAFETY: by the caller's promise; the registers exist where `self` has values of them.
        unsafe {
            if dr7 & DR7_ENABLED != 0 {
                breakpoints();
            }
            // A guest without CR4.OSXSAVE cannot tell whose XCR0 it is.
            let xcr0 = self.xcr0 != 0 && state.cr4 & Cr4::OSXSAVE.bits() != 0;
            if xcr0 && state.xcr0 != self.xcr0 {
                I::set_xcr0(state.xcr0);
            }
            let tsc_aux = self.tsc_aux.filter(|host| *host != state.tsc_aux);
            if tsc_aux.is_some() {
                I::write_msr(msr::TSC_AUX, state.tsc_aux);
            }
            Kept { xcr0, tsc_aux }
        }
    }

    /// Puts the host's values back.
    ///
    /// # Safety
    /// Behind [`Self::load_guest`], with what that has answered.
    #[inline]
    pub unsafe fn load_host<I: Instructions>(&self, state: &mut CpuState, kept: Kept) {
        // SAFETY: the host's own values.
        unsafe {
            if let Some(host) = kept.tsc_aux {
                I::write_msr(msr::TSC_AUX, host);
            }
            if kept.xcr0 {
                // Not every processor that runs guests intercepts XSETBV: QEMU's does not.
                state.xcr0 = I::xcr0();
                if state.xcr0 != self.xcr0 {
                    I::set_xcr0(self.xcr0);
                }
            }
        }
    }
}
