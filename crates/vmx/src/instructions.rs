//! What only Intel's processors are asked to do, beside what all are (`hardware::Instructions`).

/// Registers of the host that are the same whatever runs on the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostProcessor {
    /// CR0.
    pub cr0: u64,
    /// Selectors of CS, SS and TR.
    pub cs: u16,
    /// See above.
    pub ss: u16,
    /// See above.
    pub tr: u16,
    /// Base of the TSS.
    pub tr_base: u64,
    /// Base of the GDT.
    pub gdt_base: u64,
    /// Its limit, which leaving a guest makes 64 KiB.
    pub gdt_limit: u16,
    /// Base of the IDT.
    pub idt_base: u64,
}

/// Registers of the host that belong to the thread, and stay what they are while it is inside a system call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostThread {
    /// Selectors of DS, ES, FS, GS.
    pub selectors: [u16; 4],
    /// Base of FS.
    pub fs_base: u64,
    /// KERNEL_GS_BASE, which is the GS base of user mode.
    pub kernel_gs_base: u64,
}

/// What INVEPT and INVVPID are to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// What comes from one root of EPT (its EPT pointer), or carries one VPID.
    One(u64),
    /// Everything of the kind.
    All,
}

/// What the processor did with VMLAUNCH or VMRESUME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It came out again: the exit reason says why.
    Left,
    /// It refused the control structure; the guest did not run.
    Refused,
}

/// Instructions of VMX, and the host's registers that a control structure wants to know. Associated functions: there is one
/// processor. Those of control structures concern the *current* one (VMPTRLD).
pub trait Instructions: hardware::Instructions {
    /// See [`HostProcessor`].
    ///
    /// # Safety
    /// Interrupts are off.
    unsafe fn host_processor() -> HostProcessor;

    /// See [`HostThread`].
    fn host_thread() -> HostThread;

    /// Loads again what leaving a guest has not: DS, ES, FS and GS with their bases, whose selectors are not zero; GDTR; and
    /// LDTR, if `ldtr` is not zero.
    ///
    /// # Safety
    /// Interrupts are off, and all of it is the host's. KERNEL_GS_BASE is written by the caller afterwards.
    unsafe fn load_host(processor: &HostProcessor, thread: &HostThread, ldtr: u16);

    /// LDTR's selector.
    fn ldtr() -> u16;

    /// CR2.
    fn cr2() -> u64;

    /// Writes CR2.
    ///
    /// # Safety
    /// Interrupts are off: no page fault of the host's is lost.
    unsafe fn set_cr2(value: u64);

    /// CR3.
    fn cr3() -> u64;

    /// CR4.
    fn cr4() -> u64;

    /// VMXON. False: the processor refuses.
    ///
    /// # Safety
    /// CR4.VMXE is set, IA32_FEATURE_CONTROL allows it, and `region` is the host-physical address of a page with the processor's
    /// revision, which nobody else uses until VMXOFF.
    unsafe fn vmxon(region: u64) -> bool;

    /// VMXOFF.
    ///
    /// # Safety
    /// VMX is on, and every control structure that was loaded here has been cleared.
    unsafe fn vmxoff();

    /// VMCLEAR: the processor writes out what it keeps of a control structure, and knows nothing of it any more.
    ///
    /// # Safety
    /// VMX is on, interrupts are off; `region` is the address of a control structure.
    unsafe fn vmclear(region: u64);

    /// VMPTRLD: makes a control structure the current one.
    ///
    /// # Safety
    /// As [`Self::vmclear`]; it is active on no other processor.
    unsafe fn vmptrld(region: u64);

    /// VMREAD, 0 for a field that the processor does not have.
    ///
    /// # Safety
    /// There is a current control structure, and interrupts are off.
    unsafe fn vmread(field: u32) -> u64;

    /// VMWRITE; nothing happens for a field that the processor does not have.
    ///
    /// # Safety
    /// As [`Self::vmread`]; the value keeps the guest away from the host.
    unsafe fn vmwrite(field: u32, value: u64);

    /// INVEPT.
    ///
    /// # Safety
    /// VMX is on, and the processor has the instruction and this kind of it.
    unsafe fn invept(what: Forget);

    /// INVVPID.
    ///
    /// # Safety
    /// As [`Self::invept`].
    unsafe fn invvpid(what: Forget);

    /// The host's handler of NMIs runs: the one that ended a guest's stay was not delivered.
    ///
    /// # Safety
    /// Interrupts are off and NMIs are blocked, as behind such an exit.
    unsafe fn nmi();

    /// Runs the guest of the current control structure: VMRESUME if it was `launched`, else VMLAUNCH. `gpr` are the guest's
    /// general registers, but for RSP, which is in the control structure. `host_stack` is the host's stack pointer that is in
    /// there. With `fill_rsb` no return prediction of the guest's is left.
    ///
    /// # Safety
    /// Interrupts are off; the control structure keeps the guest away from the host, and has the host's registers.
    unsafe fn run(gpr: &mut [u64; 16], launched: bool, host_stack: &mut u64, fill_rsb: bool) -> Entry;
}
