//! Paging-structure entries (SDM vol. 3, 4.3 to 4.5). The bits are the same in all formats; 32-bit entries lack NX.

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const W: u64 = 1 << 1;
/// User-accessible.
pub const U: u64 = 1 << 2;
/// Write-through.
pub const PWT: u64 = 1 << 3;
/// Cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Page size: the entry maps a large page.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execute.
pub const NX: u64 = 1 << 63;

/// Bytes in a small page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// log2 of the bytes in a large page that an 8-byte entry of level 2 maps.
pub const LARGE_PAGE_SHIFT: u32 = 21;

/// Whether `addr` is canonical for `bits` of linear address (48 or 57).
pub const fn canonical(addr: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    ((addr << shift) as i64 >> shift) as u64 == addr
}
