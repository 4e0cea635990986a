//! Why a guest stopped running: one vocabulary for all back ends.
use emulate::Intercept;
use x86::Exception;

/// An access to guest-physical memory that did not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write, or the write half of a read-modify-write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// IN, OUT, INS or OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PioExit {
    /// Port number.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// OUT or OUTS.
    pub write: bool,
    /// INS or OUTS: to be emulated, the other fields are a hint.
    pub string: bool,
    /// Length of the instruction in bytes, 0 if unknown.
    pub len: u8,
}

impl PioExit {
    /// IN or OUT.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        !self.string && matches!(self.size, 1 | 2 | 4)
    }

    /// The bits of EAX that are read or written.
    #[inline]
    pub(crate) fn mask(&self) -> u32 {
        match self.size {
            1 => 0xff,
            2 => 0xffff,
            _ => u32::MAX,
        }
    }
}

/// An access to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrOp {
    /// MOV to CRn of a value.
    Write {
        /// 0, 3, 4 or 8.
        number: u8,
        /// What the guest wants there.
        value: u64,
    },
    /// MOV from CR8 to a general register.
    ReadCr8 {
        /// General register number.
        gpr: u8,
    },
    /// Anything else (CLTS, LMSW, SMSW): to be emulated.
    Other,
}

/// What happened. `len` is the length of the instruction that caused it, 0 if the processor does not tell;
/// RIP is still at that instruction, and who handles the exit moves it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A request bit, a host interrupt or a kick: look around and enter again.
    Interrupted,
    /// The guest could take an interrupt now.
    InterruptWindow,
    /// The guest could take an NMI now.
    NmiWindow,
    /// HLT.
    Hlt {
        /// Instruction length.
        len: u8,
    },
    /// PAUSE in a loop.
    Pause {
        /// Instruction length.
        len: u8,
    },
    /// CPUID.
    Cpuid {
        /// Instruction length.
        len: u8,
    },
    /// RDMSR of ECX.
    MsrRead {
        /// Instruction length.
        len: u8,
    },
    /// WRMSR of EDX:EAX to ECX.
    MsrWrite {
        /// Instruction length.
        len: u8,
    },
    /// RDPMC, already checked against CR4.PCE.
    Rdpmc {
        /// Instruction length.
        len: u8,
    },
    /// VMCALL or VMMCALL.
    Hypercall {
        /// Instruction length.
        len: u8,
    },
    /// WBINVD, INVD.
    CacheFlush {
        /// Instruction length.
        len: u8,
    },
    /// MONITOR or MWAIT.
    MonitorMwait {
        /// Instruction length.
        len: u8,
        /// MWAIT.
        wait: bool,
    },
    /// XSETBV, to be emulated.
    Xsetbv {
        /// Instruction length.
        len: u8,
    },
    /// RSM.
    Rsm,
    /// Port I/O whose permission has been checked.
    Pio(PioExit),
    /// Control-register access.
    Cr {
        /// Which.
        op: CrOp,
        /// Instruction length.
        len: u8,
    },
    /// [`Translation::Shadow`](super::Translation) only: INVLPG, whose privilege has been checked. The processor may remember the
    /// page still.
    Invlpg {
        /// Linear address, if the processor tells.
        gva: Option<u64>,
        /// Instruction length.
        len: u8,
    },
    /// A guest-physical address has no translation with the wanted right. If no memory slot serves it, it is device
    /// memory, and the instruction is emulated. The processor remembers no translation of this address any more.
    NestedPageFault {
        /// The guest-physical address.
        gpa: u64,
        /// What was tried.
        access: Access,
        /// The fault was met on the processor's own walk of the guest's page tables. (AMD's processors count all of those as
        /// writes: APM vol. 2, 15.25.6.)
        table_walk: bool,
    },
    /// [`Translation::Shadow`](super::Translation) only: the walk of the shadow tables failed for one of their sakes or
    /// for the guest's. Nothing has changed; the processor no longer remembers a translation of this page.
    PageFault {
        /// Linear address.
        gva: u64,
        /// Error code of the processor (`x86::exception::pf`), as its walk of the shadow tables gives it.
        code: u32,
        /// The access was the processor's own (descriptor tables, TSS, stack of an inner level): EFLAGS.AC does not
        /// lift SMAP for it. False from a processor that does not tell.
        implicit: bool,
    },
    /// An intercepted exception of the guest (debugging by the client, #MC, ...), not delivered.
    Exception {
        /// Which; RIP as the guest's handler would see it.
        exception: Exception,
    },
    /// A debugger's single step or hardware breakpoint: DR6 and DR7 as the client reads them.
    Debug {
        /// DR6.
        dr6: u64,
    },
    /// A hardware task switch that the processor leaves to software.
    TaskSwitch,
    /// The processor cannot deliver the event that was to be injected in the guest's mode: the core does.
    Delivery,
    /// A triple fault, or shutdown by other means.
    Shutdown,
    /// The instruction at RIP has to be emulated (the back end cannot run it itself).
    Emulate,
    /// Memory of the client vanished while the guest used it: EFAULT.
    BadAddress {
        /// The guest-physical address.
        gpa: u64,
    },
    /// The processor refused to enter the guest, with its reason code.
    FailEntry {
        /// KVM_EXIT_FAIL_ENTRY's hardware_entry_failure_reason.
        reason: u64,
    },
    /// A reason that the back end does not know.
    Unknown {
        /// The processor's code for it.
        reason: u64,
    },
}

impl Exit {
    /// The exit for an instruction that the emulator leaves to whoever runs the processor; `len` as in the exits, `gpr` the
    /// number of its general register operand.
    pub const fn intercepted(what: Intercept, len: u8, gpr: u8) -> Self {
        match what {
            Intercept::Hlt => Self::Hlt { len },
            Intercept::Cpuid => Self::Cpuid { len },
            Intercept::Rdmsr => Self::MsrRead { len },
            Intercept::Wrmsr => Self::MsrWrite { len },
            Intercept::Rdpmc => Self::Rdpmc { len },
            Intercept::Hypercall => Self::Hypercall { len },
            Intercept::Pause => Self::Pause { len },
            Intercept::Monitor => Self::MonitorMwait { len, wait: false },
            Intercept::Mwait => Self::MonitorMwait { len, wait: true },
            Intercept::Wbinvd => Self::CacheFlush { len },
            Intercept::Rsm => Self::Rsm,
            Intercept::WriteCr8(value) => Self::Cr { op: CrOp::Write { number: 8, value }, len },
            Intercept::ReadCr8 => Self::Cr { op: CrOp::ReadCr8 { gpr }, len },
        }
    }
}
