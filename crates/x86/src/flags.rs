//! RFLAGS (SDM vol. 1, 3.4.3).

#[allow(missing_docs)]
mod bits {
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
}
pub use bits::*;

/// CF, PF, AF, ZF, SF and OF.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// Every bit that software can change.
pub const WRITABLE: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;

/// The flags register. Status flags may be held in a form that is cheaper to produce than to read; every
/// reader goes through [`Flags::get`].
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    bits: u64,
}

impl Default for Flags {
    fn default() -> Self {
        Self { bits: FIXED }
    }
}

impl Flags {
    /// The architectural value of RFLAGS.
    #[inline]
    pub fn get(&self) -> u64 {
        self.bits
    }

    /// Sets RFLAGS; reserved bits are forced to their fixed values.
    #[inline]
    pub fn set(&mut self, value: u64) {
        self.bits = value & WRITABLE | FIXED;
    }

    /// Whether any of the non-status bits `mask` (IF, TF, DF, ...) is set; never computes status flags.
    #[inline]
    pub fn control(&self, mask: u64) -> bool {
        self.bits & mask & !STATUS != 0
    }

    /// Changes non-status bits only: those in `mask` take their value from `value`.
    #[inline]
    pub fn set_control(&mut self, mask: u64, value: u64) {
        let mask = mask & WRITABLE & !STATUS;
        self.bits = self.bits & !mask | value & mask;
    }

    /// The I/O privilege level.
    #[inline]
    pub fn iopl(&self) -> u8 {
        (self.bits >> 12 & 3) as u8
    }
}

impl PartialEq for Flags {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}
