//! Exceptions and their vectors (SDM vol. 3, 6.3 and 6.15).

/// An exception or interrupt vector, 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vector(pub u8);

#[allow(missing_docs)]
impl Vector {
    pub const DE: Self = Self(0);
    pub const DB: Self = Self(1);
    pub const NMI: Self = Self(2);
    pub const BP: Self = Self(3);
    pub const OF: Self = Self(4);
    pub const BR: Self = Self(5);
    pub const UD: Self = Self(6);
    pub const NM: Self = Self(7);
    pub const DF: Self = Self(8);
    pub const TS: Self = Self(10);
    pub const NP: Self = Self(11);
    pub const SS: Self = Self(12);
    pub const GP: Self = Self(13);
    pub const PF: Self = Self(14);
    pub const MF: Self = Self(16);
    pub const AC: Self = Self(17);
    pub const MC: Self = Self(18);
    pub const XM: Self = Self(19);
    pub const VE: Self = Self(20);
    pub const CP: Self = Self(21);

    /// Whether delivery of this exception pushes an error code.
    pub const fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21)
    }
}

/// An exception on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: Vector,
    /// The error code, for vectors that have one; also present (0) in real mode, where it is not pushed.
    pub code: Option<u32>,
    /// What delivery writes besides: CR2 for #PF, the bits to set in DR6 for #DB, 0 for others.
    pub payload: u64,
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: Vector) -> Self {
        Self { vector, code: None, payload: 0 }
    }

    /// An exception with an error code.
    pub const fn with_code(vector: Vector, code: u32) -> Self {
        Self { vector, code: Some(code), payload: 0 }
    }

    /// #PF at the linear address `gva`; `code` as in [`pf`].
    pub const fn page_fault(gva: u64, code: u32) -> Self {
        Self { vector: Vector::PF, code: Some(code), payload: gva }
    }

    /// #DB that sets the bits `dr6` of DR6.
    pub const fn debug(dr6: u64) -> Self {
        Self { vector: Vector::DB, code: None, payload: dr6 }
    }

    /// Whether another exception met while this one is delivered makes #DF: contributory exceptions and #PF
    /// (SDM vol. 3, table 6-5).
    pub const fn is_contributory(self) -> bool {
        matches!(self.vector.0, 0 | 10..=13)
    }
}

/// Bits of the page-fault error code (SDM vol. 3, 4.7).
pub mod pf {
    /// The translation exists; the access violates its rights.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit is set in a paging entry.
    pub const RSVD: u32 = 1 << 3;
    /// The access was an instruction fetch (with NX or SMEP).
    pub const FETCH: u32 = 1 << 4;
    /// A protection key forbids it.
    pub const PK: u32 = 1 << 5;
}
