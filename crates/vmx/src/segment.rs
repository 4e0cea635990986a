//! Segment registers between the canonical form and the control structure's (SDM vol. 3, table 24-2): the same bits, with four
//! reserved ones in the middle, and "unusable" is bit 16.
//!
//! The processor refuses to enter a guest with segments that no instruction could have loaded. What clients and AMD's form leave
//! open is made good here; what would be another segment then is refused by `guest_state`, or by the processor.
use x86::{Attr, Segment};

/// Bit 16 of the access rights.
const UNUSABLE: u32 = 1 << 16;
/// Bits above the reserved ones.
const HIGH: u32 = 0xf000;

/// Access rights of an attribute.
const fn rights(attr: Attr) -> u32 {
    let bits = attr.0 as u32;
    bits & 0xff | bits << 4 & HIGH | if attr.unusable() { UNUSABLE } else { 0 }
}

/// The attribute of access rights.
pub const fn attr(rights: u32) -> Attr {
    let bits = rights & 0xff | (rights & HIGH) >> 4;
    Attr(bits as u16 | if rights & UNUSABLE != 0 { Attr::UNUSABLE } else { 0 })
}

/// Granularity as the limit wants it: set for one that does not fit 20 bits, clear for one that is no whole number of pages.
fn with_granularity(segment: &Segment) -> Attr {
    let attr = segment.attr;
    if segment.limit > 0xf_ffff {
        Attr(attr.0 | Attr::G)
    } else if segment.limit & 0xfff != 0xfff {
        Attr(attr.0 & !Attr::G)
    } else {
        attr
    }
}

/// A data or code segment that is not present is none.
fn usable(attr: Attr) -> Attr {
    if attr.present() { attr } else { Attr(attr.0 | Attr::UNUSABLE) }
}

/// Access rights of ES, SS, DS, FS, GS. Whatever has been loaded has been accessed.
pub fn data_rights(segment: &Segment) -> u32 {
    let attr = usable(with_granularity(segment));
    rights(if attr.unusable() { attr } else { Attr(attr.0 | 1) })
}

/// Access rights of CS, which is always usable.
pub fn code_rights(segment: &Segment) -> u32 {
    rights(Attr((with_granularity(segment).0 | 1) & !Attr::UNUSABLE))
}

/// Access rights of TR, which is always usable and busy.
pub fn task_rights(segment: &Segment) -> u32 {
    let attr = with_granularity(segment);
    let typ = if attr.unusable() || !attr.present() { 11 } else { attr.typ() | 2 };
    rights(Attr((attr.with_type(typ).0 | Attr::P) & !(Attr::S | Attr::UNUSABLE)))
}

/// Access rights of LDTR.
pub fn table_rights(segment: &Segment) -> u32 {
    rights(usable(with_granularity(segment)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::CpuState;

    #[test]
    fn segments_of_reset_round_trip() {
        let state = CpuState::reset(0);
        for segment in &state.seg {
            assert_eq!(attr(data_rights(segment)), segment.attr);
        }
        assert_eq!(attr(code_rights(&state.seg[1])), state.seg[1].attr);
        assert_eq!(attr(task_rights(&state.tr)), state.tr.attr);
        assert_eq!(attr(table_rights(&state.ldtr)), state.ldtr.attr);
    }

    #[test]
    fn flat_code_has_the_bits_of_its_descriptor() {
        let long = Segment::from_descriptor(0x10, 0x00af_9b00_0000_ffff);
        assert_eq!(code_rights(&long), 0xa09b);
        assert_eq!(attr(0xa09b), long.attr);
        let user = Segment::from_descriptor(0x2b, 0x00cf_f300_0000_ffff);
        assert_eq!(data_rights(&user), 0xc0f3);
    }

    #[test]
    fn a_segment_that_is_not_there_cannot_be_used() {
        let null = Segment { attr: Attr(Attr::UNUSABLE), ..Segment::default() };
        assert_eq!(data_rights(&null), 0x1_0000);
        assert!(attr(0x1_0000).unusable());
        // AMD's form of it.
        assert_eq!(data_rights(&Segment::default()), 0x1_0000);
        assert_eq!(table_rights(&Segment::default()), 0x1_0000);
    }

    #[test]
    fn what_no_instruction_could_load_is_made_good() {
        let data = Segment { attr: Attr(Attr::P | Attr::S | 2), limit: u32::MAX, ..Segment::default() };
        assert_eq!(data_rights(&data), 0x8093);
        let small = Segment { attr: Attr(Attr::P | Attr::S | Attr::G | 3), limit: 0x1234, ..Segment::default() };
        assert_eq!(data_rights(&small), 0x93);
        let idle = Segment { attr: Attr(Attr::P | 9), limit: 0x67, ..Segment::default() };
        assert_eq!(task_rights(&idle), 0x8b);
        assert_eq!(task_rights(&Segment::default()), 0x8b);
    }
}
