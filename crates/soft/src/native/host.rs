//! What the host's processor and this implementation can offer to guests.
use std::arch::is_x86_feature_detected as host_has;

use iced_x86::{Code, CpuidFeature};
use x86::{Features, control::xcr0};

/// What `emulate` does by itself, and what every host has that runs 64-bit programs.
const EVERYWHERE: Features = Features::FPU
    .union(Features::MMX)
    .union(Features::FXSR)
    .union(Features::SSE)
    .union(Features::SSE2)
    .union(Features::XSAVE)
    .union(Features::XSAVEOPT)
    .union(Features::XSAVEC)
    .union(Features::XGETBV1);

/// The vector features of the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vector(Features);

impl Vector {
    pub fn detect() -> Self {
        let avx = host_has!("avx");
        let pairs = [
            (Features::SSE3, host_has!("sse3")),
            (Features::PCLMULQDQ, host_has!("pclmulqdq")),
            (Features::SSSE3, host_has!("ssse3")),
            (Features::SSE41, host_has!("sse4.1")),
            (Features::SSE42, host_has!("sse4.2")),
            (Features::AES, host_has!("aes")),
            (Features::SHA, host_has!("sha")),
            (Features::SSE4A, host_has!("sse4a")),
            (Features::AVX, avx),
            (Features::FMA, avx && host_has!("fma")),
            (Features::F16C, avx && host_has!("f16c")),
            (Features::AVX2, avx && host_has!("avx2")),
            (Features::VAES, avx && host_has!("vaes")),
            (Features::VPCLMULQDQ, avx && host_has!("vpclmulqdq")),
        ];
        let found = pairs.iter().filter(|(_, has)| *has).fold(Features::empty(), |all, (f, _)| all.union(*f));
        Self(found)
    }

    /// Whether the host can execute the instruction form `code`.
    pub fn has(self, code: Code) -> bool {
        code.cpuid_features().iter().all(|feature| match feature {
            CpuidFeature::FPU
            | CpuidFeature::FPU387
            | CpuidFeature::CMOV
            | CpuidFeature::MMX
            | CpuidFeature::SSE
            | CpuidFeature::SSE2 => true,
            CpuidFeature::SSE3 => self.0.contains(Features::SSE3),
            CpuidFeature::SSSE3 => self.0.contains(Features::SSSE3),
            CpuidFeature::SSE4_1 => self.0.contains(Features::SSE41),
            CpuidFeature::SSE4_2 => self.0.contains(Features::SSE42),
            CpuidFeature::SSE4A => self.0.contains(Features::SSE4A),
            CpuidFeature::AES => self.0.contains(Features::AES),
            CpuidFeature::PCLMULQDQ => self.0.contains(Features::PCLMULQDQ),
            CpuidFeature::SHA => self.0.contains(Features::SHA),
            CpuidFeature::AVX => self.0.contains(Features::AVX),
            CpuidFeature::AVX2 => self.0.contains(Features::AVX2),
            CpuidFeature::FMA => self.0.contains(Features::FMA),
            CpuidFeature::F16C => self.0.contains(Features::F16C),
            CpuidFeature::VAES => self.0.contains(Features::VAES),
            CpuidFeature::VPCLMULQDQ => self.0.contains(Features::VPCLMULQDQ),
            _ => false,
        })
    }
}

/// The features of the x87, MMX, SSE and AVX that guests can be offered on this host, and the bits of XCR0.
///
/// Not among [`Features`], and not to be offered in CPUID: MISALIGNSSE, XSAVES, GFNI, AVX-VNNI, AVX-512, XOP, FMA4,
/// 3DNow!.
pub fn offered() -> (Features, u64) {
    let host = Vector::detect().0;
    let avx = if host.contains(Features::AVX) { xcr0::AVX } else { 0 };
    (EVERYWHERE | host, xcr0::X87 | xcr0::SSE | avx)
}
