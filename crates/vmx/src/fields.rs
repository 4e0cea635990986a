//! Fields of the virtual-machine control structure (SDM vol. 3, appendix B). A field's encoding says how wide it is, and so does
//! its type here.
use core::{fmt, marker::PhantomData};

/// How wide a field is.
pub trait Width {
    /// What it holds.
    type Value: Copy + PartialEq + fmt::Debug;
    /// Bits 14:13 of the encoding.
    const CODE: u32;
    /// As VMWRITE takes it.
    fn raw(value: Self::Value) -> u64;
    /// As VMREAD gives it.
    fn value(raw: u64) -> Self::Value;
}

macro_rules! widths {
    ($($(#[$meta:meta])* $name:ident $value:ty, $code:literal;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {}
        impl Width for $name {
            type Value = $value;
            const CODE: u32 = $code;
            fn raw(value: $value) -> u64 {
                value.into()
            }
            fn value(raw: u64) -> $value {
                raw as $value
            }
        }
    )*};
}

widths! {
    /// 16 bits.
    Bits16 u16, 0;
    /// 64 bits.
    Bits64 u64, 1;
    /// 32 bits.
    Bits32 u32, 2;
    /// As wide as the processor's registers.
    Natural u64, 3;
}

/// A field.
pub struct Field<W> {
    encoding: u32,
    width: PhantomData<fn() -> W>,
}

impl<W> Clone for Field<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Field<W> {}

impl<W> fmt::Debug for Field<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Field({:#x})", self.encoding)
    }
}

impl<W: Width> Field<W> {
    /// The field with this encoding, which is of this width.
    pub const fn new(encoding: u32) -> Self {
        assert!(encoding >> 13 & 3 == W::CODE && encoding & 1 == 0, "not a field of this width");
        Self { encoding, width: PhantomData }
    }

    /// Its encoding.
    pub const fn encoding(self) -> u32 {
        self.encoding
    }

    /// The field `n` places further: segments follow each other in the order ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub const fn nth(self, n: u32) -> Self {
        Self::new(self.encoding + 2 * n)
    }
}

macro_rules! fields {
    ($($width:ident { $($name:ident = $encoding:literal,)* })*) => {$($(
        #[allow(missing_docs)]
        pub const $name: Field<$width> = Field::new($encoding);
    )*)*};
}

fields! {
    Bits16 {
        VPID = 0x0000,
        GUEST_SELECTORS = 0x0800,
        HOST_ES = 0x0c00,
        HOST_CS = 0x0c02,
        HOST_SS = 0x0c04,
        HOST_DS = 0x0c06,
        HOST_FS = 0x0c08,
        HOST_GS = 0x0c0a,
        HOST_TR = 0x0c0c,
    }
    Bits64 {
        MSR_BITMAP = 0x2004,
        TSC_OFFSET = 0x2010,
        VIRTUAL_APIC = 0x2012,
        EPT_POINTER = 0x201a,
        TSC_MULTIPLIER = 0x2032,
        GUEST_PHYSICAL = 0x2400,
        LINK_POINTER = 0x2800,
        GUEST_DEBUGCTL = 0x2802,
        GUEST_EFER = 0x2806,
        GUEST_PDPTES = 0x280a,
        HOST_EFER = 0x2c02,
    }
    Bits32 {
        PIN_CONTROLS = 0x4000,
        PRIMARY_CONTROLS = 0x4002,
        EXCEPTIONS = 0x4004,
        PAGE_FAULT_MASK = 0x4006,
        PAGE_FAULT_MATCH = 0x4008,
        CR3_TARGETS = 0x400a,
        EXIT_CONTROLS = 0x400c,
        EXIT_MSR_STORES = 0x400e,
        EXIT_MSR_LOADS = 0x4010,
        ENTRY_CONTROLS = 0x4012,
        ENTRY_MSR_LOADS = 0x4014,
        ENTRY_EVENT = 0x4016,
        ENTRY_ERROR_CODE = 0x4018,
        ENTRY_LENGTH = 0x401a,
        TPR_THRESHOLD = 0x401c,
        SECONDARY_CONTROLS = 0x401e,
        PAUSE_GAP = 0x4020,
        PAUSE_WINDOW = 0x4022,
        INSTRUCTION_ERROR = 0x4400,
        EXIT_REASON = 0x4402,
        EXIT_EVENT = 0x4404,
        EXIT_ERROR_CODE = 0x4406,
        VECTORING_EVENT = 0x4408,
        VECTORING_ERROR_CODE = 0x440a,
        EXIT_LENGTH = 0x440c,
        GUEST_LIMITS = 0x4800,
        GUEST_GDTR_LIMIT = 0x4810,
        GUEST_IDTR_LIMIT = 0x4812,
        GUEST_RIGHTS = 0x4814,
        GUEST_INTERRUPTIBILITY = 0x4824,
        GUEST_ACTIVITY = 0x4826,
        GUEST_SYSENTER_CS = 0x482a,
        HOST_SYSENTER_CS = 0x4c00,
    }
    Natural {
        CR0_MASK = 0x6000,
        CR4_MASK = 0x6002,
        CR0_SHADOW = 0x6004,
        CR4_SHADOW = 0x6006,
        QUALIFICATION = 0x6400,
        GUEST_CR0 = 0x6800,
        GUEST_CR3 = 0x6802,
        GUEST_CR4 = 0x6804,
        GUEST_BASES = 0x6806,
        GUEST_GDTR_BASE = 0x6816,
        GUEST_IDTR_BASE = 0x6818,
        GUEST_DR7 = 0x681a,
        GUEST_RSP = 0x681c,
        GUEST_RIP = 0x681e,
        GUEST_RFLAGS = 0x6820,
        GUEST_PENDING_DEBUG = 0x6822,
        GUEST_SYSENTER_ESP = 0x6824,
        GUEST_SYSENTER_EIP = 0x6826,
        HOST_CR0 = 0x6c00,
        HOST_CR3 = 0x6c02,
        HOST_CR4 = 0x6c04,
        HOST_FS_BASE = 0x6c06,
        HOST_GS_BASE = 0x6c08,
        HOST_TR_BASE = 0x6c0a,
        HOST_GDTR_BASE = 0x6c0c,
        HOST_IDTR_BASE = 0x6c0e,
        HOST_SYSENTER_ESP = 0x6c10,
        HOST_SYSENTER_EIP = 0x6c12,
        HOST_RSP = 0x6c14,
        HOST_RIP = 0x6c16,
    }
}

/// Places of LDTR and TR among the segments.
pub const LDTR: u32 = 6;
/// See [`LDTR`].
pub const TR: u32 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_each_other() {
        assert_eq!(GUEST_SELECTORS.nth(TR).encoding(), 0x80e);
        assert_eq!(GUEST_LIMITS.nth(LDTR).encoding(), 0x480c);
        assert_eq!(GUEST_RIGHTS.nth(1).encoding(), 0x4816);
        assert_eq!(GUEST_BASES.nth(5).encoding(), 0x6810);
        assert_eq!(GUEST_PDPTES.nth(3).encoding(), 0x2810);
    }
}
