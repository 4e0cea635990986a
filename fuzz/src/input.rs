//! Reading a fuzzer's bytes. Bytes that have run out read as 0, so that every input means something.

/// The rest of an input.
#[derive(Clone, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    pub const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `n` bytes, or as many as there are.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now
    }

    fn number(&mut self, n: usize) -> u64 {
        self.bytes(n).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// Two bytes, little-endian as all that follow.
    pub fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        self.number(8)
    }

    /// A number of few bytes that is often at an edge: small, negative, a power of two and its neighbours, an address in
    /// the upper half, or anything.
    pub fn value(&mut self) -> u64 {
        let kind = self.u8();
        let small = |input: &mut Self| u64::from(input.u16());
        match kind >> 5 {
            0 => u64::from(kind & 31),
            1 => small(self),
            2 => small(self).wrapping_neg(),
            3 => (1u64 << (2 * (kind & 31))).wrapping_add_signed(i64::from(self.u8() as i8)),
            4 => small(self) << (kind & 31),
            5 => 0xffff_8000_0000_0000 | small(self),
            6 => u64::from(self.u32()),
            _ => self.u64(),
        }
    }
}
