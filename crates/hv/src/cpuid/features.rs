//! Which CPUID bit stands for which feature.
use x86::Features;

use super::supported;

/// A register that CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// (leaf, sub-leaf, register, bit, feature)
type Row = (u32, u32, Reg, u32, Features);

const fn row(leaf: u32, sub: u32, reg: Reg, bit: u32, feature: Features) -> Row {
    (leaf, sub, reg, bit, feature)
}

/// SDM vol. 2, CPUID; APM vol. 3, appendix E. Bits of leaf 1 that 0x8000_0001:EDX repeats on AMD are not listed twice.
pub(crate) const BITS: &[Row] = &{
    use Reg::{Eax, Ebx, Ecx, Edx};
    const EXT: u32 = 0x8000_0001;
    type F = Features;
    [
        row(1, 0, Edx, 0, F::FPU),
        row(1, 0, Edx, 1, F::VME),
        row(1, 0, Edx, 2, F::DE),
        row(1, 0, Edx, 3, F::PSE),
        row(1, 0, Edx, 4, F::TSC),
        row(1, 0, Edx, 5, F::MSR),
        row(1, 0, Edx, 6, F::PAE),
        row(1, 0, Edx, 7, F::MCE),
        row(1, 0, Edx, 8, F::CX8),
        row(1, 0, Edx, 11, F::SEP),
        row(1, 0, Edx, 13, F::PGE),
        row(1, 0, Edx, 15, F::CMOV),
        row(1, 0, Edx, 17, F::PSE36),
        row(1, 0, Edx, 19, F::CLFLUSH),
        row(1, 0, Edx, 23, F::MMX),
        row(1, 0, Edx, 24, F::FXSR),
        row(1, 0, Edx, 25, F::SSE),
        row(1, 0, Edx, 26, F::SSE2),
        row(1, 0, Ecx, 0, F::SSE3),
        row(1, 0, Ecx, 1, F::PCLMULQDQ),
        row(1, 0, Ecx, 3, F::MONITOR),
        row(1, 0, Ecx, 9, F::SSSE3),
        row(1, 0, Ecx, 12, F::FMA),
        row(1, 0, Ecx, 13, F::CX16),
        row(1, 0, Ecx, 17, F::PCID),
        row(1, 0, Ecx, 19, F::SSE41),
        row(1, 0, Ecx, 20, F::SSE42),
        row(1, 0, Ecx, 22, F::MOVBE),
        row(1, 0, Ecx, 23, F::POPCNT),
        row(1, 0, Ecx, 25, F::AES),
        row(1, 0, Ecx, 26, F::XSAVE),
        row(1, 0, Ecx, 28, F::AVX),
        row(1, 0, Ecx, 29, F::F16C),
        row(1, 0, Ecx, 30, F::RDRAND),
        row(7, 0, Ebx, 0, F::FSGSBASE),
        row(7, 0, Ebx, 3, F::BMI1),
        row(7, 0, Ebx, 5, F::AVX2),
        row(7, 0, Ebx, 7, F::SMEP),
        row(7, 0, Ebx, 8, F::BMI2),
        row(7, 0, Ebx, 10, F::INVPCID),
        row(7, 0, Ebx, 18, F::RDSEED),
        row(7, 0, Ebx, 19, F::ADX),
        row(7, 0, Ebx, 20, F::SMAP),
        row(7, 0, Ebx, 23, F::CLFLUSHOPT),
        row(7, 0, Ebx, 24, F::CLWB),
        row(7, 0, Ebx, 29, F::SHA),
        row(7, 0, Ecx, 2, F::UMIP),
        row(7, 0, Ecx, 9, F::VAES),
        row(7, 0, Ecx, 10, F::VPCLMULQDQ),
        row(7, 0, Ecx, 22, F::RDPID),
        row(0xd, 1, Eax, 0, F::XSAVEOPT),
        row(0xd, 1, Eax, 1, F::XSAVEC),
        row(0xd, 1, Eax, 2, F::XGETBV1),
        row(EXT, 0, Edx, 11, F::SYSCALL),
        row(EXT, 0, Edx, 20, F::NX),
        row(EXT, 0, Edx, 25, F::FFXSR),
        row(EXT, 0, Edx, 26, F::GBPAGES),
        row(EXT, 0, Edx, 27, F::RDTSCP),
        row(EXT, 0, Edx, 29, F::LM),
        row(EXT, 0, Ecx, 0, F::LAHF64),
        row(EXT, 0, Ecx, 5, F::LZCNT),
        row(EXT, 0, Ecx, 6, F::SSE4A),
        row(EXT, 0, Ecx, 8, F::PREFETCHW),
    ]
};

/// Bits of leaf 1 EDX that AMD's 0x8000_0001 EDX repeats.
pub(crate) const AMD_COMMON_EDX: u32 = 0x0183_f3ff;

/// The bits that `features` set in one register of one leaf.
pub(crate) fn register(features: Features, leaf: u32, sub: u32, reg: Reg) -> u32 {
    let mut value = 0;
    for (l, s, r, bit, feature) in BITS {
        if (*l, *s, *r) == (leaf, sub, reg) && features.contains(*feature) {
            value |= 1 << bit;
        }
    }
    value
}

/// The features that a processor's own CPUID shows, vendor included; `cpuid` executes it for a leaf and a sub-leaf, and
/// answers EAX, EBX, ECX, EDX.
pub fn features_from_cpuid(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Features {
    let highest = [cpuid(0, 0)[0], cpuid(0x8000_0000, 0)[0]];
    let mut features = Features::empty();
    for (leaf, sub, reg, bit, feature) in BITS {
        let [eax, ebx, ecx, edx] = if *leaf <= highest[(*leaf >> 31) as usize] { cpuid(*leaf, *sub) } else { [0; 4] };
        let register = match reg {
            Reg::Eax => eax,
            Reg::Ebx => ebx,
            Reg::Ecx => ecx,
            Reg::Edx => edx,
        };
        features.set(*feature, register & 1 << bit != 0);
    }
    let [_, b, c, d] = cpuid(0, 0);
    features.set(Features::AMD, [supported::AMD, supported::HYGON].contains(&[b, d, c]));
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processors_features_are_found_in_its_cpuid() {
        let processor = |leaf: u32, _: u32| match leaf {
            0 => [1, supported::AMD[0], supported::AMD[2], supported::AMD[1]],
            1 => [0, 0, 1, 1 << 25],
            0x8000_0000 => [0x8000_0001, 0, 0, 0],
            0x8000_0001 => [0, 0, 0, 1 << 20],
            // Beyond the highest leaf a processor answers anything.
            _ => [u32::MAX; 4],
        };
        let expected = Features::SSE | Features::SSE3 | Features::NX | Features::AMD;
        assert_eq!(features_from_cpuid(processor), expected);
    }
}
