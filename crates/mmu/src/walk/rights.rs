//! Accesses, and what a page allows (SDM vol. 3, 4.6).
use x86::{exception::pf, paging as bits};

use super::Paging;

/// One access to a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(u32);

impl Request {
    /// Set if SMAP does not apply; above the bits of the error code.
    const SMAP_LIFTED: u32 = 1 << 31;

    /// A supervisor's data read to which SMAP applies.
    pub const READ: Self = Self(0);
    /// A supervisor's data write (or read-modify-write) to which SMAP applies.
    pub const WRITE: Self = Self(pf::WRITE);
    /// A supervisor's instruction fetch.
    pub const FETCH: Self = Self(pf::FETCH);

    /// The same as a user-mode access: made at CPL 3 and not by the processor itself (descriptor tables, TSS).
    #[inline]
    #[must_use]
    pub const fn user(self) -> Self {
        Self(self.0 | pf::USER)
    }

    /// The same with SMAP lifted: an explicit access below CPL 3 with EFLAGS.AC set.
    #[inline]
    #[must_use]
    pub const fn lift_smap(self) -> Self {
        Self(self.0 | Self::SMAP_LIFTED)
    }

    /// Whether it writes.
    #[inline]
    pub const fn is_write(self) -> bool {
        self.0 & pf::WRITE != 0
    }

    #[inline]
    pub(crate) const fn is_user(self) -> bool {
        self.0 & pf::USER != 0
    }

    #[inline]
    pub(crate) const fn is_fetch(self) -> bool {
        self.0 & pf::FETCH != 0
    }

    /// The error code's part that the access alone decides. A fetch shows only where fetches can be forbidden.
    #[inline]
    pub(crate) const fn fault_code(self, paging: &Paging) -> u32 {
        let shown = if paging.nx || paging.smep { pf::WRITE | pf::USER | pf::FETCH } else { pf::WRITE | pf::USER };
        self.0 & shown
    }
}

/// What a page allows, combined over all levels of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    const WRITE: u8 = 1;
    const USER: u8 = 2;
    const EXECUTE: u8 = 4;
    const GLOBAL: u8 = 8;
    const DIRTY: u8 = 16;

    /// No paging.
    pub(super) const ALL: Self = Self(Self::WRITE | Self::USER | Self::EXECUTE | Self::GLOBAL | Self::DIRTY);

    /// `and` and `or` combine the entries of all levels.
    #[inline]
    pub(super) const fn from_bits(and: u64, or: u64, leaf: u64, paging: &Paging) -> Self {
        let mut rights = 0;
        if and & bits::W != 0 {
            rights |= Self::WRITE;
        }
        if and & bits::U != 0 {
            rights |= Self::USER;
        }
        if or & bits::NX == 0 {
            rights |= Self::EXECUTE;
        }
        if leaf & bits::G != 0 && paging.global_pages {
            rights |= Self::GLOBAL;
        }
        if leaf & bits::D != 0 {
            rights |= Self::DIRTY;
        }
        Self(rights)
    }

    #[inline]
    pub(super) const fn with_dirty(self, dirty: bool) -> Self {
        if dirty { Self(self.0 | Self::DIRTY) } else { self }
    }

    /// The read/write flag is set at every level.
    #[inline]
    pub const fn writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// The user flag is set at every level.
    #[inline]
    pub const fn user(self) -> bool {
        self.0 & Self::USER != 0
    }

    /// No level forbids execution.
    #[inline]
    pub const fn executable(self) -> bool {
        self.0 & Self::EXECUTE != 0
    }

    /// The page is the same in every address space (CR4.PGE obeyed).
    #[inline]
    pub const fn global(self) -> bool {
        self.0 & Self::GLOBAL != 0
    }

    /// The leaf's dirty bit is set. While it is not, a write needs another walk, which sets it.
    #[inline]
    pub const fn dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    /// Whether `request` may be made, the dirty bit apart.
    #[inline]
    pub const fn allow(self, request: Request, paging: &Paging) -> bool {
        if request.is_user() {
            self.user() && (!request.is_write() || self.writable()) && (!request.is_fetch() || self.executable())
        } else if request.is_fetch() {
            self.executable() && !(paging.smep && self.user())
        } else {
            let read_only = paging.write_protect && !self.writable();
            let prevented = paging.smap && self.user() && request.0 & Request::SMAP_LIFTED == 0;
            !(request.is_write() && read_only || prevented)
        }
    }
}
