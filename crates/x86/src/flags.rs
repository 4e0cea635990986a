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

/// The flags register. Status flags are held in a form that is cheaper to produce than to read: instructions
/// leave the result and the carries of their arithmetic, and each flag is computed when something asks for it.
///
/// - ZF is `result == 0`; SF is bit 63 and PF the parity of the low byte of `result ^ delta`.
/// - CF is bit 63 of `carries`, OF whether its bits 63 and 62 differ (the carries out of and into the sign bit).
/// - AF is the bit of `carries` whose number is in bits 8 to 13 of `delta`.
///
/// `delta` is what makes every combination of flags expressible (POPF, SAHF): arithmetic leaves only AF's place there.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// The bits that are not status flags.
    control: u64,
    result: u64,
    carries: u64,
    delta: u64,
}

impl Default for Flags {
    fn default() -> Self {
        Self { control: FIXED, result: 1, carries: 0, delta: 0 }
    }
}

impl Flags {
    /// The architectural value of RFLAGS.
    pub fn get(&self) -> u64 {
        self.control | self.status()
    }

    /// Sets RFLAGS; reserved bits are forced to their fixed values.
    #[inline]
    pub fn set(&mut self, value: u64) {
        self.set_others(value);
        self.set_status(value);
    }

    /// The bits that are not status flags.
    #[inline]
    pub fn others(&self) -> u64 {
        self.control
    }

    /// Sets those bits from `value`; reserved ones are forced to their fixed values.
    #[inline]
    pub fn set_others(&mut self, value: u64) {
        self.control = value & WRITABLE & !STATUS | FIXED;
    }

    /// The status flags' bits.
    pub fn status(&self) -> u64 {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        flag(self.cf(), CF)
            | flag(self.pf(), PF)
            | flag(self.af(), AF)
            | flag(self.zf(), ZF)
            | flag(self.sf(), SF)
            | flag(self.of(), OF)
    }

    /// Sets the status flags from their bits in `value`.
    pub fn set_status(&mut self, value: u64) {
        let bit = |mask: u64| (value & mask != 0) as u64;
        self.result = bit(ZF) ^ 1;
        // A result of 0 has even parity, 1 odd: `delta` turns either into what PF says.
        let parity = bit(PF) ^ bit(ZF);
        self.carries = bit(CF) << 63 | (bit(CF) ^ bit(OF)) << 62 | bit(AF);
        self.delta = bit(SF) << 63 | parity;
    }

    /// Sets those status flags that are in `mask` from their bits in `value`, and keeps the others.
    pub fn merge_status(&mut self, mask: u64, value: u64) {
        self.set_status(self.status() & !mask | value & mask);
    }

    /// Leaves the outcome of arithmetic: `result`, sign-extended to 64 bits, and the carry out of every bit
    /// position, shifted so that the sign bit's is bit 63. AF is bit `af` (0 to 63) of `carries`.
    #[inline(always)]
    pub fn set_arithmetic(&mut self, result: u64, carries: u64, af: u32) {
        self.result = result;
        self.carries = carries;
        self.delta = (af as u64) << 8;
    }

    /// Leaves the outcome of a logical operation: CF, OF and AF are clear. `result` is sign-extended to 64 bits.
    #[inline(always)]
    pub fn set_logical(&mut self, result: u64) {
        self.set_arithmetic(result, 0, 0);
    }

    /// Sets CF, OF and AF and leaves the others to be computed from `result`, sign-extended to 64 bits.
    #[inline(always)]
    pub fn set_result(&mut self, result: u64, cf: bool, of: bool, af: bool) {
        self.set_arithmetic(result, (cf as u64) << 63 | ((cf ^ of) as u64) << 62 | af as u64, 0);
    }

    /// Sets CF alone.
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        let flip = ((self.carries >> 63) ^ cf as u64) * (3 << 62);
        // AF may share these two bits only if its place is there, which arithmetic of 64 bits and fewer never
        // chooses: AF is the carry out of bit 3, or bit 4.
        self.carries ^= flip;
    }

    /// Sets CF and OF alone.
    #[inline(always)]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.carries = self.carries & !(3 << 62) | (cf as u64) << 63 | ((cf ^ of) as u64) << 62;
    }

    /// Carry.
    #[inline(always)]
    pub fn cf(&self) -> bool {
        (self.carries as i64) < 0
    }

    /// Parity of the low byte: even.
    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.result ^ self.delta) as u8).count_ones() & 1 == 0
    }

    /// Carry out of bit 3.
    #[inline(always)]
    pub fn af(&self) -> bool {
        self.carries >> (self.delta >> 8 & 63) & 1 != 0
    }

    /// Zero.
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.result == 0
    }

    /// Sign.
    #[inline(always)]
    pub fn sf(&self) -> bool {
        ((self.result ^ self.delta) as i64) < 0
    }

    /// Signed overflow.
    #[inline(always)]
    pub fn of(&self) -> bool {
        ((self.carries ^ self.carries << 1) as i64) < 0
    }

    /// Signed less: SF differs from OF.
    #[inline(always)]
    pub fn less(&self) -> bool {
        ((self.result ^ self.delta ^ self.carries ^ self.carries << 1) as i64) < 0
    }

    /// Whether any of the non-status bits `mask` (IF, TF, DF, ...) is set; never computes status flags.
    #[inline(always)]
    pub fn control(&self, mask: u64) -> bool {
        self.control & mask & !STATUS != 0
    }

    /// Changes non-status bits only: those in `mask` take their value from `value`.
    #[inline]
    pub fn set_control(&mut self, mask: u64, value: u64) {
        let mask = mask & WRITABLE & !STATUS;
        self.control = self.control & !mask | value & mask;
    }

    /// The I/O privilege level.
    #[inline]
    pub fn iopl(&self) -> u8 {
        (self.control >> 12 & 3) as u8
    }
}

impl PartialEq for Flags {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_status_flags_can_be_held() {
        for value in (0..=STATUS).filter(|v| v & !STATUS == 0) {
            let mut f = Flags::default();
            f.set(value | IF);
            assert_eq!(f.get(), value | IF | FIXED);
            assert_eq!(f.less(), f.sf() != f.of());
            for cf in [false, true] {
                for of in [false, true] {
                    let mut g = f;
                    g.set_cf(cf);
                    assert_eq!(g.get() & !CF, f.get() & !CF);
                    assert_eq!(g.cf(), cf);
                    g.set_cf_of(!cf, of);
                    assert_eq!(g.get() & !(CF | OF), f.get() & !(CF | OF));
                    assert_eq!((g.cf(), g.of()), (!cf, of));
                }
            }
        }
    }

    #[test]
    fn arithmetic_leaves_its_flags() {
        let mut f = Flags::default();
        // 0x80 + 0x80 in 8 bits: carries out of bit 7 only.
        f.set_arithmetic(0, 0x80 << 56, 59);
        assert_eq!(f.status(), CF | OF | ZF | PF);
        f.set_logical(u64::MAX);
        assert_eq!(f.status(), SF | PF);
        f.set_result(2, true, false, true);
        assert_eq!(f.status(), CF | AF);
        f.merge_status(ZF, ZF);
        assert_eq!(f.status(), CF | AF | ZF);
    }
}
