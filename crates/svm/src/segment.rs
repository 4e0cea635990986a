//! Segment registers between the canonical form and the control block's.
//!
//! AMD's processors have no "unusable" bit: a segment that is not present cannot be used, and that is all. They also keep some
//! attributes loosely, which the canonical form does not (APM vol. 2, 15.5.1 and table 4-6).
use x86::{Attr, Segment};

use crate::vmcb::VmcbSegment;

/// Into the control block.
pub fn to_vmcb(segment: &Segment) -> VmcbSegment {
    let Segment { selector, attr, limit, base } = *segment;
    VmcbSegment { selector, attributes: attr.stored(), limit, base }
}

/// From the control block.
fn from_vmcb(segment: &VmcbSegment) -> Segment {
    let mut attr = Attr::from_stored(segment.attributes);
    // The processor need not keep G, which the limit shows.
    attr.0 |= if segment.limit > 0xf_ffff { Attr::G } else { 0 };
    Segment { selector: segment.selector, attr, limit: segment.limit, base: segment.base }
}

/// A data or code segment register from the control block.
pub fn code_or_data(segment: &VmcbSegment) -> Segment {
    let mut segment = from_vmcb(segment);
    if !segment.attr.unusable() {
        // Whatever has been loaded has been accessed.
        segment.attr.0 |= 1;
    }
    segment
}

/// SS from the control block: its privilege level is the current one.
pub fn stack(segment: &VmcbSegment, cpl: u8) -> Segment {
    let mut segment = code_or_data(segment);
    if segment.attr.unusable() {
        segment.attr.0 &= !Attr::DB;
    }
    segment.attr = segment.attr.with_dpl(cpl);
    segment
}

/// TR from the control block: a loaded TSS is busy.
pub fn task(segment: &VmcbSegment) -> Segment {
    let mut segment = from_vmcb(segment);
    segment.attr.0 |= 2;
    segment
}

/// LDTR from the control block.
pub fn local_table(segment: &VmcbSegment) -> Segment {
    from_vmcb(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::CpuState;

    #[test]
    fn segments_of_reset_round_trip() {
        let state = CpuState::reset(0);
        for segment in &state.seg {
            assert_eq!(code_or_data(&to_vmcb(segment)), *segment);
        }
        assert_eq!(stack(&to_vmcb(&state.seg[2]), 0), state.seg[2]);
        assert_eq!(task(&to_vmcb(&state.tr)), state.tr);
        assert_eq!(local_table(&to_vmcb(&state.ldtr)), state.ldtr);
    }

    #[test]
    fn flat_code_has_the_bits_of_its_descriptor() {
        let long = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
        let stored = to_vmcb(&long);
        assert_eq!((stored.attributes, stored.limit), (0xa9b, u32::MAX));
        assert_eq!(code_or_data(&stored), long);
    }

    #[test]
    fn an_unusable_segment_is_not_present() {
        let null = Segment { attr: Attr(Attr::UNUSABLE | Attr::P | Attr::S | 3), ..Segment::default() };
        let stored = to_vmcb(&null);
        assert_eq!(stored.attributes & Attr::P, 0);
        assert!(code_or_data(&stored).attr.unusable());
        // SS shows the privilege level all the same.
        assert_eq!(stack(&stored, 3).attr.dpl(), 3);
    }

    #[test]
    fn what_the_processor_keeps_loosely_is_made_good() {
        let stored = VmcbSegment { attributes: Attr::P | Attr::S | 2, limit: u32::MAX, ..VmcbSegment::default() };
        let data = code_or_data(&stored);
        assert!(data.attr.granular() && data.attr.typ() == 3);
        let idle = VmcbSegment { attributes: Attr::P | 9, limit: 0x67, ..VmcbSegment::default() };
        assert_eq!(task(&idle).attr.typ(), 11);
    }
}
