//! What guests may be offered of the processor's features, whatever its virtualization can do beside.
use x86::{Features, control::xcr0};

use crate::Instructions;

/// Features that are worth nothing to a guest here, or that others would have to keep apart: MONITOR always exits.
const NEVER: Features = Features::MONITOR;
/// What goes only where the processor walks the guest's own tables.
const NESTED_ONLY: Features = Features::PCID.union(Features::INVPCID);

const XSAVE: Features =
    Features::XSAVE.union(Features::XSAVEOPT).union(Features::XSAVEC).union(Features::XGETBV1).union(AVX);
const AVX: Features = Features::AVX
    .union(Features::AVX2)
    .union(Features::FMA)
    .union(Features::F16C)
    .union(Features::VAES)
    .union(Features::VPCLMULQDQ);

/// The processor's, as its kernel uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// RDTSCP or RDPID: TSC_AUX exists.
    pub tsc_aux: bool,
    /// XCR0 of the host; 0 without XSAVE.
    pub xcr0: u64,
    /// What guests may be offered.
    pub features: Features,
    /// REP MOVSB and REP STOSB are fast (CPUID leaf 7 EBX, bit 9).
    pub fast_strings: bool,
}

impl Offer {
    /// Looks at the processor that runs this, whose kernel has switched XSAVE on if it has it.
    pub fn detect<I: Instructions>() -> Self {
        // OSXSAVE: the kernel uses it.
        let xsave = I::cpuid(1, 0)[2] & 1 << 27 != 0;
        // SAFETY: OSXSAVE shows CR4's bit.
        let xcr0 = if xsave { unsafe { I::xcr0() } } else { 0 };
        let mut features = hv::backend::features_from_cpuid(I::cpuid).difference(NEVER);
        if xcr0 & xcr0::AVX == 0 {
            features = features.difference(AVX);
        }
        if !xsave {
            features = features.difference(XSAVE);
        }
        let fast_strings = I::cpuid(0, 0)[0] >= 7 && I::cpuid(7, 0)[1] & 1 << 9 != 0;
        Self { tsc_aux: features.intersects(Features::RDTSCP.union(Features::RDPID)), xcr0, features, fast_strings }
    }

    /// What guests may be offered with or without nested paging.
    pub fn features(&self, nested: bool) -> Features {
        if nested { self.features } else { self.features.difference(NESTED_ONLY) }
    }

    /// XCR0 bits that guests may set.
    pub fn guest_xcr0(&self) -> u64 {
        self.xcr0 & (xcr0::X87 | xcr0::SSE | xcr0::AVX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, script};

    #[test]
    fn guests_are_not_offered_what_the_kernel_has_not_switched_on() {
        let with = Offer::detect::<Recorder>();
        assert!(with.features.contains(Features::AVX | Features::XSAVE) && with.xcr0 == 7);
        script(|s| s.xcr0 = 3);
        let sse = Offer::detect::<Recorder>();
        assert!(sse.features.contains(Features::XSAVE) && !sse.features.contains(Features::AVX));
        script(|s| s.cpuid.get_mut(&1).unwrap()[2] &= !(1 << 27));
        let none = Offer::detect::<Recorder>();
        assert!(!none.features.intersects(XSAVE) && none.xcr0 == 0);
    }

    #[test]
    fn a_processor_whose_strings_are_slow_does_not_have_guests_use_them() {
        script(|s| s.cpuid.insert(7, [0, 1 << 9, 0, 0]));
        for (highest, expected) in [(7, true), (6, false)] {
            script(|s| s.cpuid.entry(0).or_default()[0] = highest);
            assert_eq!(Offer::detect::<Recorder>().fast_strings, expected);
        }
    }

    #[test]
    fn pcid_wants_nested_paging() {
        let all = Offer { features: Features::all(), ..Offer::default() };
        assert!(all.features(true).contains(NESTED_ONLY) && !all.features(false).intersects(NESTED_ONLY));
    }
}
