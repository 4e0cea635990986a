//! Page tables in the three formats, built in an [`Image`].
use x86::paging::{P, PS, U, W};

use super::image::Image;

/// Format of a guest's page tables (SDM vol. 3, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// No paging.
    Off,
    /// Two levels of 4-byte entries, 4 MiB large pages.
    Legacy,
    /// Three levels of 8-byte entries, 2 MiB large pages.
    Pae,
    /// Four levels of 8-byte entries, 2 MiB and 1 GiB large pages.
    Long,
}

impl Paging {
    /// The three formats that are page tables.
    pub const ALL: [Self; 3] = [Self::Legacy, Self::Pae, Self::Long];

    /// Levels of a walk.
    pub fn levels(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Legacy => 2,
            Self::Pae => 3,
            Self::Long => 4,
        }
    }

    /// Bytes of an entry.
    pub fn entry_bytes(self) -> u64 {
        if self == Self::Legacy { 4 } else { 8 }
    }

    fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * if self == Self::Legacy { 10 } else { 9 }
    }

    /// Bytes that an entry of `level` (1 is the leaf table) maps.
    pub fn span(self, level: u32) -> u64 {
        1 << self.shift(level)
    }

    /// Index of `gva` in its table of `level`.
    pub fn index(self, gva: u64, level: u32) -> u64 {
        let bits = match (self, level) {
            (Self::Legacy, _) => 10,
            (Self::Pae, 3) => 2,
            _ => 9,
        };
        gva >> self.shift(level) & ((1 << bits) - 1)
    }
}

/// Where new tables come from, and which format they have.
#[derive(Clone, Debug)]
pub struct Tables {
    paging: Paging,
    next: u64,
}

impl Tables {
    /// Tables are made from `next` upwards.
    pub fn new(paging: Paging, next: u64) -> Self {
        Self { paging, next }
    }

    /// A new, empty table.
    pub fn table(&mut self) -> u64 {
        let at = self.next;
        self.next += 4096;
        at
    }

    /// Address of the entry of `level` that translates `gva` under `root`. The tables above must exist.
    pub fn entry(&self, image: &Image, root: u64, gva: u64, level: u32) -> u64 {
        let mut table = root;
        let mut at = self.paging.levels();
        loop {
            let entry = table + self.paging.index(gva, at) * self.paging.entry_bytes();
            if at == level {
                return entry;
            }
            let value = self.load(image, entry);
            assert!(value & (P | PS) == P, "no table of level {} above {gva:#x}", at - 1);
            table = value & 0x000f_ffff_ffff_f000;
            at -= 1;
        }
    }

    fn load(&self, image: &Image, entry: u64) -> u64 {
        let value = image.read64(entry);
        if self.paging == Paging::Legacy { value & 0xffff_ffff } else { value }
    }

    /// Writes an entry in the format's width.
    pub fn store(&self, image: &mut Image, entry: u64, value: u64) {
        if self.paging == Paging::Legacy {
            image.write32(entry, value as u32);
        } else {
            image.write64(entry, value);
        }
    }

    /// Makes the tables above the entry of `level` for `gva`, with all rights, and writes `value` there. `value` holds
    /// the frame and the flags; a large page's PS is the caller's.
    pub fn map(&mut self, image: &mut Image, root: u64, gva: u64, level: u32, value: u64) {
        let mut table = root;
        for at in (level + 1..=self.paging.levels()).rev() {
            let entry = table + self.paging.index(gva, at) * self.paging.entry_bytes();
            let mut next = self.load(image, entry);
            if next & P == 0 {
                // A PAE page-directory pointer has no rights: those bits are reserved.
                let rights = if self.paging == Paging::Pae && at == 3 { P } else { P | W | U };
                next = self.table() | rights;
                self.store(image, entry, next);
            }
            table = next & 0x000f_ffff_ffff_f000;
        }
        let entry = table + self.paging.index(gva, level) * self.paging.entry_bytes();
        self.store(image, entry, value);
    }
}
