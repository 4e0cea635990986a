//! A guest's memory before the guest runs: pages that were written, everything else zero.
use std::collections::BTreeMap;

/// Bytes by guest-physical address.
#[derive(Clone, Default)]
pub struct Image {
    pages: BTreeMap<u64, Box<[u8; 4096]>>,
}

impl Image {
    /// Writes bytes, over page boundaries too.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            self.pages.entry(at & !0xfff).or_insert_with(|| Box::new([0; 4096]))[(at & 0xfff) as usize] = *byte;
        }
    }

    /// Writes a little-endian dword.
    pub fn write32(&mut self, gpa: u64, value: u32) {
        self.write(gpa, &value.to_le_bytes());
    }

    /// Writes a little-endian quadword.
    pub fn write64(&mut self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    /// Reads `N` bytes.
    pub fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        std::array::from_fn(|i| {
            let at = gpa + i as u64;
            self.pages.get(&(at & !0xfff)).map_or(0, |page| page[(at & 0xfff) as usize])
        })
    }

    /// Reads a little-endian quadword.
    pub fn read64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa))
    }

    /// The pages that were written, with their addresses.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(gpa, page)| (*gpa, &page[..]))
    }
}
