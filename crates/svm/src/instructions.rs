//! What the processor is asked to do, instruction by instruction: the one way from this crate to the hardware. Tests put a
//! recorder here, which shows the order of the steps.

/// Privileged instructions of the processor that runs this. Associated functions: there is one processor.
pub trait Instructions: Send + Sync + 'static {
    /// CPUID: EAX, EBX, ECX, EDX.
    fn cpuid(leaf: u32, sub: u32) -> [u32; 4];

    /// RDMSR.
    ///
    /// # Safety
    /// The processor has this register.
    unsafe fn read_msr(index: u32) -> u64;

    /// WRMSR.
    ///
    /// # Safety
    /// The processor has this register and takes the value, and the host can live with it.
    unsafe fn write_msr(index: u32, value: u64);

    /// XGETBV of XCR0.
    ///
    /// # Safety
    /// CR4.OSXSAVE is set.
    unsafe fn xcr0() -> u64;

    /// XSETBV of XCR0.
    ///
    /// # Safety
    /// CR4.OSXSAVE is set and the value is one that the processor takes; interrupts are off until the host's value is back.
    unsafe fn set_xcr0(value: u64);

    /// DR0 to DR3.
    ///
    /// # Safety
    /// No breakpoint is enabled in DR7, and the host's values come back before one is.
    unsafe fn set_debug_addresses(addresses: &[u64; 4]);

    /// VERW: clears buffers of the processor.
    ///
    /// # Safety
    /// None is needed; it is a privilege of those who run guests.
    unsafe fn clear_buffers();

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

    /// Runs the guest: puts the host's segment state aside (VMSAVE to `host`), loads the guest's (VMLOAD from `guest`) and
    /// its general registers, VMRUN, and all of it back. `gpr` are the guest's general registers, but for RAX and RSP,
    /// which are in the control block. With `fill_rsb` no return prediction of the guest's is left.
    ///
    /// # Safety
    /// SVM is switched on, with GIF clear and interrupts off; `guest` is the host-physical address of a control block that
    /// keeps the guest away from the host, `host` that of a page of this processor's own.
    unsafe fn run(guest: u64, host: u64, gpr: &mut [u64; 16], fill_rsb: bool);
}
