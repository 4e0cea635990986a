//! What only AMD's processors are asked to do, beside what all are (`hardware::Instructions`).

use platform::hardware::Mitigations;

/// Instructions of SVM. Associated functions: there is one processor.
pub trait Instructions: hardware::Instructions {
    /// CLGI: nothing interrupts the processor, not even an NMI.
    ///
    /// # Safety
    /// SVM is switched on; [`Self::stgi`] follows soon.
    unsafe fn clgi();

    /// STGI.
    ///
    /// # Safety
    /// SVM is switched on, and the host's state is complete again.
    unsafe fn stgi();

    /// DR7. See `breakpoints`.
    ///
    /// # Safety
    /// Between [`Self::clgi`] and [`Self::stgi`]; no breakpoint that it enables is met before the host's value is back.
    unsafe fn set_dr7(value: u64);

    /// Runs the guest: puts the host's segment state aside (VMSAVE to `host`), loads the guest's (VMLOAD from `guest`) and
    /// its general registers, VMRUN, and all of it back. `gpr` are the guest's general registers, but for RAX and RSP,
    /// which are in the control block. Right behind the exit, before anything that could be led astray, the return stack buffer is
    /// filled and returns are untrained, as `mitigations` say.
    ///
    /// # Safety
    /// SVM is switched on, with GIF clear and interrupts off; `guest` is the host-physical address of a control block that
    /// keeps the guest away from the host, `host` that of a page of this processor's own.
    unsafe fn run(guest: u64, host: u64, gpr: &mut [u64; 16], mitigations: &Mitigations);
}
