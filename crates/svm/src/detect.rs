//! What the processor can do (APM vol. 3, appendix E; vol. 2, 15.4).
use hardware::features::Offer;
use platform::hardware::Refusal;
use x86::msr;

use crate::instructions::Instructions;

/// VM_CR: SVM cannot be switched on.
const SVM_DISABLED: u64 = 1 << 4;

/// CPUID leaf that describes SVM.
const SVM_LEAF: u32 = 0x8000_000a;

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
    /// What it has beside virtualization.
    pub offer: Offer,
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
            offer: Offer::detect::<I>(),
        })
    }
}

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
}
