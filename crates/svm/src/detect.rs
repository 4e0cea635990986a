//! What the processor can do (APM vol. 3, appendix E; vol. 2, 15.4).
use platform::hardware::Refusal;
use x86::{Features, control::xcr0, msr};

use crate::instructions::Instructions;

/// VM_CR: SVM cannot be switched on.
const SVM_DISABLED: u64 = 1 << 4;

/// CPUID leaf that describes SVM.
const SVM_LEAF: u32 = 0x8000_000a;

/// Features that are worth nothing to a guest here, or that others would have to keep apart: MONITOR always exits.
const NEVER: Features = Features::MONITOR;
/// What goes only where the processor walks the guest's own tables.
const NESTED_ONLY: Features = Features::PCID.union(Features::INVPCID);

/// The processor's abilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Nested paging.
    pub nested_paging: bool,
    /// It tells where an instruction that exits ends.
    pub next_rip: bool,
    /// A part of its cache of the control block can be kept.
    pub clean_bits: bool,
    /// TLB flushes of one address space.
    pub flush_by_asid: bool,
    /// It decodes MOV CR.
    pub decode_assists: bool,
    /// The guest's time-stamp counter may run at another rate.
    pub tsc_ratio: bool,
    /// It notices loops of PAUSE.
    pub pause_filter: bool,
    /// Whether these PAUSEs belong together is decided by their distance.
    pub pause_threshold: bool,
    /// Address-space identifiers, the host's included.
    pub asids: u32,
    /// RDTSCP or RDPID: TSC_AUX exists.
    pub tsc_aux: bool,
    /// XCR0 of the host; 0 without XSAVE.
    pub xcr0: u64,
    /// What guests may be offered.
    pub features: Features,
}

impl Processor {
    /// Looks at the processor that runs this, whose kernel has switched XSAVE on if it has it.
    pub fn detect<I: Instructions>() -> Result<Self, Refusal> {
        let leaf = |leaf: u32| I::cpuid(leaf, 0);
        let highest = leaf(0x8000_0000)[0];
        if highest < SVM_LEAF || leaf(0x8000_0001)[2] & 1 << 2 == 0 {
            return Err(Refusal::NotThere);
        }
        // SAFETY: every processor with SVM has VM_CR.
        if unsafe { I::read_msr(msr::VM_CR) } & SVM_DISABLED != 0 {
            return Err(Refusal::DisabledByFirmware);
        }
        let [_, asids, _, svm] = leaf(SVM_LEAF);
        let has = |bit: u32| svm & 1 << bit != 0;
        // OSXSAVE: the kernel uses it.
        let xsave = leaf(1)[2] & 1 << 27 != 0;
        // SAFETY: OSXSAVE shows CR4's bit.
        let xcr0 = if xsave { unsafe { I::xcr0() } } else { 0 };
        let mut features = hv::backend::features_from_cpuid(I::cpuid).difference(NEVER);
        if xcr0 & xcr0::AVX == 0 {
            features = features.difference(AVX);
        }
        if !xsave {
            features = features.difference(XSAVE);
        }
        Ok(Self {
            nested_paging: has(0),
            next_rip: has(3),
            tsc_ratio: has(4),
            clean_bits: has(5),
            flush_by_asid: has(6),
            decode_assists: has(7),
            pause_filter: has(10),
            pause_threshold: has(12),
            asids,
            tsc_aux: features.intersects(Features::RDTSCP.union(Features::RDPID)),
            xcr0,
            features,
        })
    }

    /// What guests may be offered with or without nested paging.
    pub fn offered(&self, nested: bool) -> Features {
        if nested { self.features } else { self.features.difference(NESTED_ONLY) }
    }
}

const XSAVE: Features =
    Features::XSAVE.union(Features::XSAVEOPT).union(Features::XSAVEC).union(Features::XGETBV1).union(AVX);
const AVX: Features = Features::AVX
    .union(Features::AVX2)
    .union(Features::FMA)
    .union(Features::F16C)
    .union(Features::VAES)
    .union(Features::VPCLMULQDQ);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, script};

    #[test]
    fn a_processor_without_svm_is_refused() {
        script(|s| s.cpuid.remove(&0x8000_0001));
        assert_eq!(Processor::detect::<Recorder>(), Err(Refusal::NotThere));
    }

    #[test]
    fn a_firmware_that_forbids_it_is_named() {
        script(|s| s.msrs.insert(msr::VM_CR, SVM_DISABLED));
        assert_eq!(Processor::detect::<Recorder>(), Err(Refusal::DisabledByFirmware));
    }

    #[test]
    fn abilities_are_read_from_their_bits() {
        let plain = Processor::detect::<Recorder>().unwrap();
        assert!(!plain.nested_paging && !plain.next_rip && !plain.clean_bits && !plain.flush_by_asid);
        script(|s| s.cpuid.insert(SVM_LEAF, [1, 0x8000, 0, 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7]));
        let rich = Processor::detect::<Recorder>().unwrap();
        assert!(rich.nested_paging && rich.next_rip && rich.clean_bits && rich.flush_by_asid && rich.decode_assists);
        assert_eq!(rich.asids, 0x8000);
    }

    #[test]
    fn guests_are_not_offered_what_the_kernel_has_not_switched_on() {
        let with = Processor::detect::<Recorder>().unwrap();
        assert!(with.features.contains(Features::AVX | Features::XSAVE) && with.xcr0 == 7);
        script(|s| s.xcr0 = 3);
        let sse = Processor::detect::<Recorder>().unwrap();
        assert!(sse.features.contains(Features::XSAVE) && !sse.features.contains(Features::AVX));
        script(|s| s.cpuid.get_mut(&1).unwrap()[2] &= !(1 << 27));
        let none = Processor::detect::<Recorder>().unwrap();
        assert!(!none.features.intersects(XSAVE) && none.xcr0 == 0);
    }

    #[test]
    fn pcid_wants_nested_paging() {
        let all = Processor { features: Features::all(), ..Processor::default() };
        assert!(all.offered(true).contains(NESTED_ONLY) && !all.offered(false).intersects(NESTED_ONLY));
    }
}
