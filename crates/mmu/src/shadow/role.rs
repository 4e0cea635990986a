//! What a shadow page is for. Two walks share a page only if its role is the same for both, to the last bit.
use core::ops::BitAnd;

use x86::paging::PAGE_SIZE;

use crate::walk::{Paging, PagingMode};

/// What may be done through a shadow page, combined over the guest's entries that lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// Writes by whoever may read. In a direct page it includes that the guest's large page is dirty.
    pub const WRITE: Self = Self(1);
    /// User-mode accesses.
    pub const USER: Self = Self(2);
    /// Instruction fetches.
    pub const EXECUTE: Self = Self(4);
    /// Writes by the supervisor to a dirty page that is read-only, with CR0.WP clear. Only below guest leaves.
    pub const SUPERVISOR_WRITE: Self = Self(8);
    /// What the top of a guest's tables allows.
    pub const ALL: Self = Self(7);

    /// Whether all of `other` is allowed.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// `self`, and `other` too if `on`.
    #[must_use]
    pub const fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }
}

impl BitAnd for Access {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// How the guest's table that a page shadows is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// No guest table: the page maps consecutive frames (paging off, a part of a large guest page, or nested tables).
    Direct,
    /// 4-byte entries; `pse`: CR4.PSE, 4 MiB pages.
    Bits32 {
        /// CR4.PSE.
        pse: bool,
    },
    /// 8-byte entries below PDPTE registers.
    Pae,
    /// 8-byte entries in four levels.
    Long {
        /// 1 GiB pages.
        gigabyte: bool,
        /// The global bit is reserved where an entry of level 3 or 4 leads to a table (AMD).
        global_reserved: bool,
    },
}

/// Everything that decides what is in a shadow page, apart from the frame that it shadows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// Level of the shadow table: 1 maps 4 KiB pages.
    pub level: u8,
    /// Combined rights of the guest's entries above.
    pub access: Access,
    /// Format of the guest's table.
    pub format: Format,
    /// Which part of a guest table of 4-byte entries: half of a page table, quarter of a page directory.
    pub quadrant: u8,
    /// EFER.NXE: bit 63 of a guest entry is NX, else reserved.
    pub nx: bool,
    /// CR0.WP. If it is clear, the next two tell pages apart that are the same otherwise.
    pub wp: bool,
    /// CR4.SMEP with CR0.WP clear: a read-only user page that the supervisor writes is not executable for it.
    pub smep: bool,
    /// CR4.SMAP with CR0.WP clear: such pages are not made; their writes are emulated.
    pub smap: bool,
}

impl Role {
    /// The role of the highest shadow page that is not the vCPU's own root page: level 4 for long mode, else level 2
    /// below PDPTE `quadrant`.
    pub(super) fn top(paging: &Paging, quadrant: u8) -> Self {
        let (level, format) = match paging.mode {
            PagingMode::Off => (2, Format::Direct),
            PagingMode::Bits32 => (2, Format::Bits32 { pse: paging.large_pages & 1 << 2 != 0 }),
            PagingMode::Pae => (2, Format::Pae),
            PagingMode::Long4 | PagingMode::Long5 => (
                4,
                Format::Long {
                    gigabyte: paging.large_pages & 1 << 3 != 0,
                    global_reserved: paging.reserved(4, false) & x86::paging::G != 0,
                },
            ),
        };
        let wp = paging.write_protect || format == Format::Direct;
        Self {
            level,
            access: Access::ALL,
            format,
            quadrant: if matches!(format, Format::Bits32 { .. }) { quadrant } else { 0 },
            nx: paging.nx,
            wp,
            smep: !wp && paging.smep,
            smap: !wp && paging.smap,
        }
    }

    /// Of a page that is not for anything yet.
    pub(super) const NONE: Self = Self { level: 0, ..Self::nested() };

    /// The role of the root page of nested tables, which map guest-physical memory as it is.
    pub(super) const fn nested() -> Self {
        let (nx, wp, smep, smap) = (false, true, false, false);
        Self { level: 4, access: Access::ALL, format: Format::Direct, quadrant: 0, nx, wp, smep, smap }
    }

    /// The role of a vCPU's own root page, whose entries are PDPTEs.
    pub(super) fn pae_root(paging: &Paging) -> Self {
        Self { level: 3, quadrant: 0, ..Self::top(paging, 0) }
    }

    /// Whether the page maps consecutive frames instead of what a guest table says.
    pub const fn direct(&self) -> bool {
        matches!(self.format, Format::Direct)
    }

    /// The role of a page one level down that shadows another guest table.
    pub(super) fn table_below(&self, index: usize, access: Access) -> Self {
        let quadrant = if matches!(self.format, Format::Bits32 { .. }) { (index & 1) as u8 } else { 0 };
        Self { level: self.level - 1, access, quadrant, ..*self }
    }

    /// The role of a page one level down that maps consecutive frames.
    pub(super) fn direct_below(&self, access: Access) -> Self {
        Self { level: self.level - 1, access, format: Format::Direct, quadrant: 0, nx: false, ..*self }
    }

    /// Bytes of a guest entry.
    pub(super) const fn entry_bytes(&self) -> u64 {
        if matches!(self.format, Format::Bits32 { .. }) { 4 } else { 8 }
    }

    /// Where in the guest's table the entry is that shadow entry `index` is made of.
    pub(super) const fn guest_offset(&self, index: usize) -> u64 {
        let (index, quadrant) = (index as u64, self.quadrant as u64);
        match (self.format, self.level) {
            (Format::Bits32 { .. }, 1) => (quadrant * 512 + index) * 4,
            (Format::Bits32 { .. }, _) => (quadrant * 256 + index / 2) * 4,
            _ => index * 8,
        }
    }

    /// The shadow entries that are made of the guest entry which holds byte `offset` of the guest's table.
    pub(super) fn entries_at(&self, offset: u64) -> core::ops::Range<usize> {
        let offset = offset % PAGE_SIZE;
        let (entry, quadrant) = ((offset / self.entry_bytes()) as usize, usize::from(self.quadrant));
        match (self.format, self.level) {
            (Format::Bits32 { .. }, 1) if entry / 512 == quadrant => entry % 512..entry % 512 + 1,
            (Format::Bits32 { .. }, 2) if entry / 256 == quadrant => 2 * (entry % 256)..2 * (entry % 256) + 2,
            (Format::Bits32 { .. }, _) => 0..0,
            _ => entry..entry + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn bits32(level: u8, quadrant: u8) -> Role {
        let format = Format::Bits32 { pse: true };
        Role { level, access: Access::ALL, format, quadrant, nx: false, wp: true, smep: false, smap: false }
    }

    #[test]
    fn entries_and_offsets_are_each_others_inverse() {
        let long = Role { format: Format::Pae, ..bits32(1, 0) };
        let roles = [long, bits32(1, 0), bits32(1, 1), bits32(2, 0), bits32(2, 1), bits32(2, 2), bits32(2, 3)];
        for role in roles {
            for index in 0..512 {
                let offset = role.guest_offset(index);
                assert!(offset < PAGE_SIZE && role.entries_at(offset).contains(&index), "{role:?} {index}");
                let found: Vec<_> = (0..PAGE_SIZE).filter(|at| role.entries_at(*at).contains(&index)).collect();
                let expected: Vec<_> = (offset..offset + role.entry_bytes()).collect();
                assert_eq!(found, expected, "{role:?} {index}");
            }
        }
    }
}
