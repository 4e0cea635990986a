//! Random numbers that are the same for the same seed.

/// Random numbers (xorshift64*).
pub(super) struct Rng(u64);

impl Rng {
    /// Those of a `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n.max(1)
    }

    /// A number that is often at an edge.
    pub(super) fn value(&mut self) -> u64 {
        let any = self.next();
        match any >> 61 {
            0 => any & 0xf,
            1 => any & 0xffff,
            2 => (any & 0xff).wrapping_neg(),
            3 => 1 << (any & 63),
            4 => (1u64 << (any & 63)).wrapping_sub(1),
            5 => any & 0xffff_ffff,
            6 => any & 0xf_f000,
            _ => any.rotate_left(9),
        }
    }
}
