//! Operands that find differences.

/// xorshift64*.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 8) % n
    }
    pub fn coin(&mut self) -> bool {
        self.next() >> 40 & 1 != 0
    }

    fn f32(&mut self) -> u32 {
        let sign = (self.next() as u32) & 0x8000_0000;
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
            10 => self.next() as u32 & 0x007f_ffff,
            11 => 0x4f00_0000 - self.below(2) as u32,
            _ => self.next() as u32 & 0x7fff_ffff,
        };
        bits | sign
    }

    fn f64(&mut self) -> u64 {
        let sign = self.next() & 1 << 63;
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
            10 => self.next() & 0x000f_ffff_ffff_ffff,
            11 => 0x41e0_0000_0000_0000 - self.below(2),
            12 => f64::from(f32::from_bits(self.f32())).to_bits() & !(1 << 63),
            _ => self.next() & !(1 << 63),
        };
        bits | sign
    }

    /// An x87 register: all classes, the unsupported ones too.
    pub fn f80(&mut self) -> [u8; 16] {
        let mantissa = match self.below(6) {
            0 => 0,
            1 => 1 << 63,
            2 => u64::MAX,
            3 => 3 << 62 | 1,
            4 => self.next() >> self.below(63),
            _ => self.next() | 1 << 63,
        };
        let exponent = match self.below(9) {
            0 => 0,
            1 => 1,
            2 => 0x7fff,
            3 => 0x7ffe,
            4 => 0x3fff,
            5 | 6 => 0x3fff - 70 + self.below(140) as u16,
            _ => self.next() as u16 & 0x7fff,
        };
        let sign = (self.next() as u16) & 0x8000;
        (mantissa as u128 | ((exponent | sign) as u128) << 64).to_le_bytes()
    }

    /// 16 bytes of floats, small integers or noise.
    pub fn vector(&mut self) -> [u8; 16] {
        let mut words = [0u64; 2];
        let kind = self.below(5);
        for word in &mut words {
            *word = match kind {
                0 | 1 => self.f32() as u64 | (self.f32() as u64) << 32,
                2 | 3 => self.f64(),
                _ => match self.below(3) {
                    0 => self.below(16) * 0x0101_0101_0101_0101,
                    1 => self.next() & self.next() & self.next(),
                    _ => self.next(),
                },
            };
        }
        (words[0] as u128 | (words[1] as u128) << 64).to_le_bytes()
    }
}
