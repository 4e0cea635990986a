//! Bits of the control registers and of EFER (SDM vol. 3, 2.5; APM vol. 2, 3.1).
use bitflags::bitflags;

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        /// Protected mode.
        const PE = 1 << 0;
        /// WAIT obeys TS.
        const MP = 1 << 1;
        /// No x87: every x87 instruction is #NM.
        const EM = 1 << 2;
        /// Task switched: the next FPU instruction is #NM.
        const TS = 1 << 3;
        /// Extension type, always one.
        const ET = 1 << 4;
        /// x87 errors are #MF instead of an external interrupt.
        const NE = 1 << 5;
        /// Supervisor writes obey read-only pages.
        const WP = 1 << 16;
        /// Alignment checks may be enabled by EFLAGS.AC.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags! {
    /// CR4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC for CPL 0 only.
        const TSD = 1 << 2;
        /// Debugging extensions: DR4 and DR5 are #UD.
        const DE = 1 << 3;
        /// 4 MiB pages in two-level paging.
        const PSE = 1 << 4;
        /// Physical address extension.
        const PAE = 1 << 5;
        /// Machine-check enable.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC at any CPL.
        const PCE = 1 << 8;
        /// FXSAVE, FXRSTOR and SSE are usable.
        const OSFXSR = 1 << 9;
        /// Unmasked SSE exceptions are #XM (else #UD).
        const OSXMMEXCPT = 1 << 10;
        /// SGDT, SIDT, SLDT, SMSW, STR for CPL 0 only.
        const UMIP = 1 << 11;
        /// Five-level paging.
        const LA57 = 1 << 12;
        /// VMX is enabled.
        const VMXE = 1 << 13;
        /// SMX is enabled.
        const SMXE = 1 << 14;
        /// RDFSBASE and its kin are usable.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and XSETBV are usable.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 24;
    }
}

bitflags! {
    /// EFER, MSR 0xc0000080.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        /// SYSCALL and SYSRET are usable.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active: LME and CR0.PG.
        const LMA = 1 << 10;
        /// No-execute enable: bit 63 of a paging entry is NX, else reserved.
        const NXE = 1 << 11;
        /// SVM enable.
        const SVME = 1 << 12;
        /// Long mode segment limit enable.
        const LMSLE = 1 << 13;
        /// Fast FXSAVE and FXRSTOR.
        const FFXSR = 1 << 14;
    }
}

/// CR0 after reset and INIT: ET, NW and CD (SDM vol. 3, table 9-1).
pub const CR0_RESET: u64 = 0x6000_0010;

/// XCR0 component bits (SDM vol. 1, 13.3).
pub mod xcr0 {
    /// x87 state, always one.
    pub const X87: u64 = 1 << 0;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
}
