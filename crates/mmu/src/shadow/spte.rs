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
use x86::paging::{A, NX, P, PS, U, W};

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
    pub(super) const fn encode(self) -> u64 {
        let mut spte = self.hpa & FRAME | P | A;
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
