//! Segment registers and descriptor-table registers in one canonical form (SDM vol. 3, 3.4 and 3.5).

/// Attributes of a segment: bits 0 to 3 type, 4 S, 5-6 DPL, 7 P, 8 AVL, 9 L, 10 D/B, 11 G, 12 unusable.
///
/// It is the descriptor's second dword shifted right by 8 with the limit nibble squeezed out; back ends
/// translate to and from what their processor stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Attr(pub u16);

#[allow(missing_docs)]
impl Attr {
    pub const S: u16 = 1 << 4;
    pub const P: u16 = 1 << 7;
    pub const AVL: u16 = 1 << 8;
    pub const L: u16 = 1 << 9;
    pub const DB: u16 = 1 << 10;
    pub const G: u16 = 1 << 11;
    /// The register holds no segment (null selector loaded in protected mode).
    pub const UNUSABLE: u16 = 1 << 12;

    pub const fn typ(self) -> u8 {
        (self.0 & 15) as u8
    }
    pub const fn is_code_or_data(self) -> bool {
        self.0 & Self::S != 0
    }
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    pub const fn present(self) -> bool {
        self.0 & Self::P != 0
    }
    pub const fn long(self) -> bool {
        self.0 & Self::L != 0
    }
    pub const fn big(self) -> bool {
        self.0 & Self::DB != 0
    }
    pub const fn granular(self) -> bool {
        self.0 & Self::G != 0
    }
    pub const fn unusable(self) -> bool {
        self.0 & Self::UNUSABLE != 0
    }
    /// A code segment (S set, type bit 3).
    pub const fn is_code(self) -> bool {
        self.is_code_or_data() && self.0 & 8 != 0
    }
    /// A data segment that can be written, or a code segment that can be read.
    pub const fn type_bit1(self) -> bool {
        self.0 & 2 != 0
    }
    /// Conforming code or expand-down data.
    pub const fn type_bit2(self) -> bool {
        self.0 & 4 != 0
    }
    /// As AMD's processors and the state save area have it: there is no bit for "unusable", such a segment is not present.
    pub const fn stored(self) -> u16 {
        (if self.unusable() { self.0 & !Self::P } else { self.0 }) & (Self::UNUSABLE - 1)
    }
    /// Back from there.
    pub const fn from_stored(stored: u16) -> Self {
        Self(stored & (Self::UNUSABLE - 1) | if stored & Self::P == 0 { Self::UNUSABLE } else { 0 })
    }
    pub const fn with_dpl(self, dpl: u8) -> Self {
        Self(self.0 & !(3 << 5) | ((dpl & 3) as u16) << 5)
    }
    pub const fn with_type(self, typ: u8) -> Self {
        Self(self.0 & !15 | (typ & 15) as u16)
    }
}

/// Types of system descriptors (S clear), SDM vol. 3 table 3-2.
#[allow(missing_docs)]
pub mod system_type {
    pub const TSS16_AVAILABLE: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    pub const TSS_AVAILABLE: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL_GATE: u8 = 12;
    pub const INTERRUPT_GATE: u8 = 14;
    pub const TRAP_GATE: u8 = 15;
}

/// A segment register with its hidden part. `limit` is in bytes, granularity already applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Attributes.
    pub attr: Attr,
    /// Highest valid offset (lowest invalid one, for expand-down).
    pub limit: u32,
    /// Linear base address.
    pub base: u64,
}

impl Segment {
    /// The form after a load in real or virtual-8086 mode: base is selector * 16, limit 64 KiB, read-write data
    /// with the given DPL.
    pub const fn real(selector: u16, dpl: u8) -> Self {
        Self { selector, attr: Attr(Attr::P | Attr::S | 3).with_dpl(dpl), limit: 0xffff, base: (selector as u64) << 4 }
    }

    /// Parses an 8-byte code, data or system descriptor (SDM vol. 3, figure 3-8).
    pub const fn from_descriptor(selector: u16, d: u64) -> Self {
        let attr = (d >> 40 & 0xff) as u16 | ((d >> 52 & 0xf) as u16) << 8;
        let raw = (d & 0xffff) as u32 | (d >> 32 & 0xf_0000) as u32;
        let limit = if attr & Attr::G != 0 { raw << 12 | 0xfff } else { raw };
        let base = d >> 16 & 0xff_ffff | d >> 32 & 0xff00_0000;
        Self { selector, attr: Attr(attr), limit, base }
    }

    /// The 8-byte descriptor that this segment would be loaded from.
    pub const fn to_descriptor(&self) -> u64 {
        let raw = if self.attr.granular() { self.limit >> 12 } else { self.limit } as u64;
        raw & 0xffff
            | (raw & 0xf_0000) << 32
            | (self.base & 0xff_ffff) << 16
            | (self.base & 0xff00_0000) << 32
            | (self.attr.0 as u64 & 0xff) << 40
            | (self.attr.0 as u64 >> 8 & 0xf) << 52
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Table {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_round_trip() {
        for d in [0x00cf_9b00_0000_ffff_u64, 0x00af_9b00_0000_ffff, 0xf040_f312_3456_789a, 0x0000_8b00_1000_0067] {
            assert_eq!(Segment::from_descriptor(8, d).to_descriptor(), d, "{d:#x}");
        }
        let flat = Segment::from_descriptor(8, 0x00cf_9b00_0000_ffff);
        assert_eq!((flat.base, flat.limit, flat.attr.big(), flat.attr.is_code()), (0, u32::MAX, true, true));
    }
}
