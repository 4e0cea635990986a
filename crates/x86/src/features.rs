//! The processor features that decide whether an instruction exists and which control bits are legal.
#![allow(missing_docs)]
use bitflags::bitflags;

bitflags! {
    /// What the guest's CPUID table offers (set with KVM_SET_CPUID2), as far as execution depends on it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        const FPU = 1 << 0;
        const VME = 1 << 1;
        const DE = 1 << 2;
        const PSE = 1 << 3;
        const TSC = 1 << 4;
        const MSR = 1 << 5;
        const PAE = 1 << 6;
        const MCE = 1 << 7;
        const CX8 = 1 << 8;
        const SEP = 1 << 9;
        const PGE = 1 << 10;
        const CMOV = 1 << 11;
        const PSE36 = 1 << 12;
        const CLFLUSH = 1 << 13;
        const MMX = 1 << 14;
        const FXSR = 1 << 15;
        const SSE = 1 << 16;
        const SSE2 = 1 << 17;
        const SSE3 = 1 << 18;
        const PCLMULQDQ = 1 << 19;
        const MONITOR = 1 << 20;
        const SSSE3 = 1 << 21;
        const FMA = 1 << 22;
        const CX16 = 1 << 23;
        const PCID = 1 << 24;
        const SSE41 = 1 << 25;
        const SSE42 = 1 << 26;
        const MOVBE = 1 << 27;
        const POPCNT = 1 << 28;
        const AES = 1 << 29;
        const XSAVE = 1 << 30;
        const AVX = 1 << 31;
        const F16C = 1 << 32;
        const RDRAND = 1 << 33;
        const FSGSBASE = 1 << 34;
        const BMI1 = 1 << 35;
        const AVX2 = 1 << 36;
        const SMEP = 1 << 37;
        const BMI2 = 1 << 38;
        const INVPCID = 1 << 39;
        const RDSEED = 1 << 40;
        const ADX = 1 << 41;
        const SMAP = 1 << 42;
        const CLFLUSHOPT = 1 << 43;
        const CLWB = 1 << 44;
        const SHA = 1 << 45;
        const UMIP = 1 << 46;
        const RDPID = 1 << 47;
        const XSAVEOPT = 1 << 48;
        const XSAVEC = 1 << 49;
        const XGETBV1 = 1 << 50;
        const SYSCALL = 1 << 51;
        const NX = 1 << 52;
        const RDTSCP = 1 << 53;
        const LM = 1 << 54;
        const LAHF64 = 1 << 55;
        const LZCNT = 1 << 56;
        const SSE4A = 1 << 57;
        const PREFETCHW = 1 << 58;
        const GBPAGES = 1 << 59;
        const VAES = 1 << 60;
        const VPCLMULQDQ = 1 << 61;
        /// The vendor is AMD: SYSCALL exists in legacy mode, SYSENTER does not in long mode.
        const AMD = 1 << 62;
        const FFXSR = 1 << 63;
    }
}
