//! Entries of shadow tables, bit by bit. They are what an x86-64 processor reads, so the bits are `x86::paging`'s; none
//! is invented here:
//!
//! | bits | name | in a leaf | in an entry that leads to a table |
//! |---|---|---|---|
//! | 0 | P | set in everything that is not zero | same |
//! | 1 | W | writes are allowed *now*: the guest's entries say so and its page is dirty, the frame holds no shadowed table, its slot is writable, and its dirty log has the page marked | set: rights are the leaf's business |
//! | 2 | U | user mode may use the page; always set in nested tables, which a processor walks as user mode | set |
//! | 3, 4 | PWT, PCD | clear: guest memory is write-back | clear |
//! | 5 | A | set when made; cleared by aging, set again by the processor | set by the processor; cleared when reclaim looks for pages in use |
//! | 6 | D | set by the processor, not used | ignored |
//! | 7 | PAT, PS | at level 1 clear; set at level 2 of nested tables: it maps 2 MiB | clear |
//! | 8 | G | clear: entries of different address spaces differ | ignored |
//! | 9-11, 52-62 | | clear | clear |
//! | 12-51 | frame | host-physical | host-physical |
//! | 63 | NX | execution is not allowed; never set in nested tables | clear |
//!
//! A PDPTE of a PAE root page has P and the frame only.
//!
//! Nested tables for Intel's processors ([`EntryFormat::Ept`], SDM vol. 3, 29.3.2) say the same with nearly the same bits: 0 to 2
//! are read, write and execute, which are P, W and U of an entry above; so are the frame's and bit 7. A is bit 8 and D bit 9, and
//! leaves name their memory type: write-back (6 in bits 3 to 5) whatever the guest's own tables say (bit 6). A processor
//! without accessed bits ignores them: a page then counts as used once.
use x86::paging::{A, D, NX, P, PS, U, W};

/// What nested tables are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFormat {
    /// Ordinary entries of x86-64, as AMD's processors and the software CPU walk.
    X86,
    /// Entries of Intel's extended page tables.
    Ept,
}

/// EPT: accessed, dirty; memory type write-back, in spite of the guest.
const EPT_A: u64 = 1 << 8;
const EPT_D: u64 = 1 << 9;
const EPT_WRITE_BACK: u64 = 6 << 3 | 1 << 6;

impl EntryFormat {
    /// The accessed bit.
    pub(super) const fn accessed(self) -> u64 {
        match self {
            Self::X86 => A,
            Self::Ept => EPT_A,
        }
    }

    /// The bits that a processor sets.
    pub(super) const fn processors(self) -> u64 {
        match self {
            Self::X86 => A | D,
            Self::Ept => EPT_A | EPT_D,
        }
    }

    /// What every leaf has.
    const fn leaf(self) -> u64 {
        match self {
            Self::X86 => P | A,
            Self::Ept => P | EPT_A | EPT_WRITE_BACK,
        }
    }
}

/// The frame's bits.
pub(super) const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// An entry that leads to the table at `hpa`.
pub(super) const fn table(hpa: u64) -> u64 {
    hpa & FRAME | P | W | U
}

/// A PDPTE that leads to the table at `hpa`.
pub(super) const fn pdpte(hpa: u64) -> u64 {
    hpa & FRAME | P
}

/// The level above leaves of 4 KiB, at which a leaf maps 2 MiB.
pub(super) const LARGE_LEVEL: u8 = 2;

/// Whether an entry that is present, in a table of this level, maps a page.
pub(super) const fn is_leaf(level: u8, spte: u64) -> bool {
    level == 1 || spte & PS != 0
}

/// What a leaf allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) hpa: u64,
    pub(super) write: bool,
    pub(super) user: bool,
    pub(super) execute: bool,
    /// It maps 2 MiB.
    pub(super) large: bool,
}

impl Leaf {
    pub(super) const fn encode(self, format: EntryFormat) -> u64 {
        let mut spte = self.hpa & FRAME | format.leaf();
        if self.write {
            spte |= W;
        }
        if self.user {
            spte |= U;
        }
        if !self.execute {
            spte |= NX;
        }
        if self.large {
            spte |= PS;
        }
        spte
    }

    /// The same for both formats.
    pub(super) const fn decode(spte: u64) -> Self {
        let (write, user) = (spte & W != 0, spte & U != 0);
        Self { hpa: spte & FRAME, write, user, execute: spte & NX == 0, large: spte & PS != 0 }
    }

    /// Whether everything that `other` allows is allowed.
    pub(super) const fn covers(self, other: Self) -> bool {
        self.hpa == other.hpa
            && self.large == other.large
            && (self.write || !other.write)
            && (self.user || !other.user)
            && (self.execute || !other.execute)
    }
}

const _: () = assert!(table(0x1234_5fff) == 0x1234_5007 && pdpte(u64::MAX) == FRAME | 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_have_the_bits_of_their_format() {
        let leaf = Leaf { hpa: 0x1234_5000, write: true, user: true, execute: true, large: false };
        assert_eq!(leaf.encode(EntryFormat::X86), 0x1234_5027);
        assert_eq!(leaf.encode(EntryFormat::Ept), 0x1234_5177);
        let read_only = Leaf { hpa: 0x20_0000, write: false, large: true, ..leaf };
        assert_eq!(read_only.encode(EntryFormat::X86), 0x20_00a5);
        assert_eq!(read_only.encode(EntryFormat::Ept), 0x20_01f5);
        for format in [EntryFormat::X86, EntryFormat::Ept] {
            for leaf in [leaf, read_only] {
                let spte = leaf.encode(format);
                assert_eq!(Leaf::decode(spte | format.processors()), leaf);
                assert!(is_leaf(if leaf.large { 2 } else { 1 }, spte) && spte & format.accessed() != 0);
            }
        }
        assert_eq!(table(0x1234_5000) & EntryFormat::Ept.processors(), 0);
    }
}
