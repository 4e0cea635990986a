//! Numbers that find differences.

/// xorshift64*: fast, and the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for one purpose: `parts` are mixed into its seed.
    pub fn new(parts: &[u64]) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for &part in parts {
            // splitmix64
            state = state.wrapping_add(part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            state ^= state >> 31;
        }
        Self(state | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((self.bits() >> 32) * n) >> 32
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`, which are not empty.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An integer, often at a boundary.
    pub fn value(&mut self) -> u64 {
        let r = self.bits();
        match self.below(8) {
            0 => self.of(&[
                0,
                1,
                0x7f,
                0x80,
                0xff,
                0x7fff,
                0x8000,
                0xffff,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
                i64::MAX as u64,
                1 << 63,
                !0,
            ]),
            1 => r & 0xff,
            2 => r & 0x3f,
            3 => (r as i8) as u64,
            4 => 1 << (r & 63),
            5 => r as u32 as u64,
            _ => r,
        }
    }

    fn f32(&mut self) -> u32 {
        let sign = (self.bits() as u32) & 0x8000_0000;
        let bits = match self.below(14) {
            0 => 0,
            1 => 1,
            2 => 0x007f_ffff,
            3 => 0x0080_0000,
            4 => 0x7f7f_ffff,
            5 => 0x7f80_0000,
            6 => 0x7fc0_0001,
            7 => 0x7f80_0001,
            8 => 0x3f80_0000,
            9 => (self.below(100) as f32).to_bits(),
            10 => self.bits() as u32 & 0x007f_ffff,
            11 => 0x4f00_0000 - self.below(2) as u32,
            _ => self.bits() as u32 & 0x7fff_ffff,
        };
        bits | sign
    }

    fn f64(&mut self) -> u64 {
        let sign = self.bits() & 1 << 63;
        let bits = match self.below(15) {
            0 => 0,
            1 => 1,
            2 => 0x000f_ffff_ffff_ffff,
            3 => 0x0010_0000_0000_0000,
            4 => 0x7fef_ffff_ffff_ffff,
            5 => 0x7ff0_0000_0000_0000,
            6 => 0x7ff8_0000_0000_0001,
            7 => 0x7ff0_0000_0000_0001,
            8 => 1f64.to_bits(),
            9 => (self.below(100) as f64).to_bits(),
            10 => self.bits() & 0x000f_ffff_ffff_ffff,
            11 => 0x41e0_0000_0000_0000 - self.below(2),
            12 => f64::from(f32::from_bits(self.f32())).to_bits() & !(1 << 63),
            _ => self.bits() & !(1 << 63),
        };
        bits | sign
    }

    /// An x87 register, 10 bytes: all classes, the unsupported ones too.
    pub fn f80(&mut self) -> u128 {
        let mantissa = match self.below(6) {
            0 => 0,
            1 => 1 << 63,
            2 => u64::MAX,
            3 => 3 << 62 | 1,
            4 => self.bits() >> self.below(63),
            _ => self.bits() | 1 << 63,
        };
        let exponent = match self.below(9) {
            0 => 0,
            1 => 1,
            2 => 0x7fff,
            3 => 0x7ffe,
            4 => 0x3fff,
            5 | 6 => 0x3fff - 70 + self.below(140) as u16,
            _ => self.bits() as u16 & 0x7fff,
        };
        let sign = (self.bits() as u16) & 0x8000;
        mantissa as u128 | ((exponent | sign) as u128) << 64
    }

    /// 16 bytes of floats, integers or noise.
    pub fn vector(&mut self) -> u128 {
        let kind = self.below(6);
        let word = |r: &mut Self| match kind {
            0 | 1 => r.f32() as u64 | (r.f32() as u64) << 32,
            2 | 3 => r.f64(),
            4 => r.value(),
            _ => r.bits(),
        };
        let low = word(self);
        let high = word(self);
        low as u128 | (high as u128) << 64
    }
}
