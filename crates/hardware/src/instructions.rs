//! What the processor is asked to do, instruction by instruction, as far as all processors have it: the one way from the back
//! ends to the hardware. Each adds its own.

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

    /// DR0 to DR3. DR7 is cleared first: nobody's breakpoints are enabled until it is written again.
    ///
    /// # Safety
    /// The host's values of all five come back before it needs them.
    unsafe fn set_debug_addresses(addresses: &[u64; 4]);

    /// VERW: clears buffers of the processor.
    ///
    /// # Safety
    /// None is needed; it is a privilege of those who run guests.
    unsafe fn clear_buffers();
}
