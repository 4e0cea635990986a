//! Descriptors and gates as bytes, and segment registers as the interface gives them.
use abi::KvmSegment;
use x86::Segment;

/// Access byte and flags of a descriptor with base 0 and the largest limit.
pub mod flat {
    /// 32-bit code, readable, level 0.
    pub const CODE32: u64 = 0x00cf_9b00_0000_ffff;
    /// 64-bit code, readable, level 0.
    pub const CODE64: u64 = 0x00af_9b00_0000_ffff;
    /// 16-bit code with a limit of 64 KiB, level 0.
    pub const CODE16: u64 = 0x0000_9b00_0000_ffff;
    /// 32-bit data, writable, level 0.
    pub const DATA: u64 = 0x00cf_9300_0000_ffff;
    /// 16-bit data with a limit of 64 KiB, level 0.
    pub const DATA16: u64 = 0x0000_9300_0000_ffff;
    /// Descriptor privilege level 3, to be joined to one of the others.
    pub const DPL3: u64 = 3 << 45;
}

/// An 8-byte descriptor of a segment in memory: `access` is its byte 5 (P, DPL, S, type), `flags` the upper half of
/// byte 6 (G, D/B, L, AVL). `limit` is the raw 20 bits.
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (limit & 0xf_0000) << 32
        | (base & 0xff_ffff) << 16
        | (base & 0xff00_0000) << 32
        | u64::from(access) << 40
        | u64::from(flags) << 52
}

/// An 8-byte gate (SDM vol. 3, figure 6-2): `access` is P, DPL and type; `count` the parameter count of a call gate.
pub fn gate(selector: u16, offset: u64, access: u8, count: u8) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(count) << 32
        | u64::from(access) << 40
        | (offset & 0xffff_0000) << 32
}

/// The form in which `KVM_GET_SREGS` and `KVM_SET_SREGS` hold a segment register.
pub fn segment(selector: u16, descriptor: u64) -> KvmSegment {
    let s = Segment::from_descriptor(selector, descriptor);
    KvmSegment {
        base: s.base,
        limit: s.limit,
        selector,
        type_: s.attr.typ(),
        present: s.attr.present().into(),
        dpl: s.attr.dpl(),
        db: s.attr.big().into(),
        s: s.attr.is_code_or_data().into(),
        l: s.attr.long().into(),
        g: s.attr.granular().into(),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// A segment register that holds no segment.
pub fn null_segment() -> KvmSegment {
    KvmSegment { unusable: 1, ..KvmSegment::default() }
}

/// A segment register as real mode loads it.
pub fn real_segment(selector: u16, code: bool) -> KvmSegment {
    KvmSegment {
        base: u64::from(selector) << 4,
        limit: 0xffff,
        selector,
        type_: if code { 11 } else { 3 },
        present: 1,
        s: 1,
        ..KvmSegment::default()
    }
}
