//! What the control registers say about translation, in the form that the walk uses.
use x86::{CpuState, Cr0, Cr4, Efer, Features, paging as bits};

use crate::{MemoryError, TableMemory, shadow::Root};

/// The format of the guest's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingMode {
    /// CR0.PG is clear.
    Off,
    /// Two levels of 4-byte entries.
    Bits32,
    /// Two levels of 8-byte entries below four PDPTE registers.
    Pae,
    /// Four levels.
    Long4,
    /// Five levels.
    Long5,
}

/// Everything that a walk needs to know besides address and access. Recomputed when CR0, CR3, CR4, EFER, the PDPTEs or
/// the guest's CPUID change.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// Table format.
    pub mode: PagingMode,
    /// CR0.WP.
    pub write_protect: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// CR4.PGE.
    pub global_pages: bool,
    /// EFER.NXE, in a mode whose entries have the bit.
    pub nx: bool,
    /// Guest-physical address of the top table (not in PAE mode).
    pub(crate) root: u64,
    pub(crate) pdptes: [u64; 4],
    /// Levels in memory.
    pub(crate) levels: u32,
    /// Bit n: an entry of level n may map a large page.
    pub(crate) large_pages: u32,
    /// Address bits of an entry that leads to a table or a small page.
    pub(crate) frame_mask: u64,
    /// Reserved bits of entries that lead to a table, by level (index 0 is unused).
    table_reserved: [u64; 6],
    /// Reserved bits of entries that map a page, by level.
    leaf_reserved: [u64; 6],
    /// Bits 39:32 of a 4 MiB page's address that exist (PSE-36).
    pse36_mask: u64,
}

/// Written out, because each fault of shadow paging asks: what has no say in a mode is left out, and the rest is few words.
impl PartialEq for Paging {
    fn eq(&self, other: &Self) -> bool {
        let flags = |p: &Self| (p.mode, p.write_protect, p.smep, p.smap, p.global_pages, p.nx);
        let words = |p: &Self| [p.root, p.levels.into(), p.large_pages.into(), p.frame_mask, p.pse36_mask];
        let differ = |one: &[u64], other: &[u64]| one.iter().zip(other).fold(0, |all, (a, b)| all | a ^ b) != 0;
        flags(self) == flags(other)
            && !differ(&words(self), &words(other))
            && !differ(&self.table_reserved, &other.table_reserved)
            && !differ(&self.leaf_reserved, &other.leaf_reserved)
            && (self.mode != PagingMode::Pae || !differ(&self.pdptes, &other.pdptes))
    }
}

impl Eq for Paging {}

/// Bits `low` to `high`, both included.
const fn span(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

impl Paging {
    /// From the registers, the guest's CPUID features and its number of physical-address bits (MAXPHYADDR,
    /// taken into 32 to 52).
    pub fn new(state: &CpuState, features: Features, physical_bits: u32) -> Self {
        let cr4 = Cr4::from_bits_retain(state.cr4);
        let mode = if state.cr0 & Cr0::PG.bits() == 0 {
            PagingMode::Off
        } else if state.efer & Efer::LMA.bits() != 0 {
            if cr4.contains(Cr4::LA57) { PagingMode::Long5 } else { PagingMode::Long4 }
        } else if cr4.contains(Cr4::PAE) {
            PagingMode::Pae
        } else {
            PagingMode::Bits32
        };
        let physical_bits = physical_bits.clamp(32, 52);
        let wide = !matches!(mode, PagingMode::Off | PagingMode::Bits32);
        let mut paging = Self {
            mode,
            write_protect: state.cr0 & Cr0::WP.bits() != 0,
            smep: mode != PagingMode::Off && cr4.contains(Cr4::SMEP),
            smap: mode != PagingMode::Off && cr4.contains(Cr4::SMAP),
            global_pages: cr4.contains(Cr4::PGE),
            nx: wide && state.efer & Efer::NXE.bits() != 0,
            root: 0,
            pdptes: state.pdptr,
            levels: 0,
            large_pages: 0,
            frame_mask: span(51, 12),
            table_reserved: [0; 6],
            leaf_reserved: [0; 6],
            pse36_mask: 0,
        };
        match mode {
            PagingMode::Off => {}
            PagingMode::Bits32 => paging.set_bits32(state, features, physical_bits),
            PagingMode::Pae => paging.set_wide(2, 1 << 2, features, physical_bits),
            PagingMode::Long4 | PagingMode::Long5 => {
                let levels = if mode == PagingMode::Long5 { 5 } else { 4 };
                let huge = if features.contains(Features::GBPAGES) { 1 << 3 } else { 0 };
                paging.set_wide(levels, 1 << 2 | huge, features, physical_bits);
                paging.root = state.cr3 & span(51, 12) & span(physical_bits - 1, 0);
            }
        }
        paging
    }

    /// The same processor on shadow tables: host-physical addresses and formats from `root` on, with write protection and NX
    /// on whatever the guest has there, and no global pages. `pdptes` are the root's entries if it has three levels.
    pub fn shadowed(&self, root: Root, pdptes: [u64; 4]) -> Self {
        let long = root.levels == 4;
        let mut paging = Self {
            mode: if long { PagingMode::Long4 } else { PagingMode::Pae },
            write_protect: true,
            global_pages: false,
            nx: true,
            root: root.hpa,
            pdptes,
            frame_mask: span(51, 12),
            table_reserved: [0; 6],
            leaf_reserved: [0; 6],
            pse36_mask: 0,
            ..*self
        };
        let (levels, large_pages) = if long { (4, 1 << 2 | 1 << 3) } else { (2, 1 << 2) };
        paging.set_wide(levels, large_pages, Features::empty(), 52);
        paging
    }

    /// The same for a walk that begins at a table of the last level, as one from a paging-structure cache does.
    pub fn last_level(&self, table: u64) -> Self {
        Self { mode: PagingMode::Long4, levels: 1, large_pages: 0, root: table, ..*self }
    }

    fn set_bits32(&mut self, state: &CpuState, features: Features, physical_bits: u32) {
        self.levels = 2;
        self.frame_mask = span(31, 12);
        self.root = state.cr3 & span(31, 12);
        if state.cr4 & Cr4::PSE.bits() != 0 {
            self.large_pages = 1 << 2;
            // A 4 MiB page's bits 20:13 are bits 39:32 of its address, as far as the processor has them.
            let high = if features.contains(Features::PSE36) { physical_bits.min(40) - 32 } else { 0 };
            self.pse36_mask = (1 << high) - 1;
            self.leaf_reserved[2] = span(21, 13) & !(self.pse36_mask << 13);
        }
    }

    fn set_wide(&mut self, levels: u32, large_pages: u32, features: Features, physical_bits: u32) {
        self.levels = levels;
        self.large_pages = large_pages;
        // Long mode ignores bits 62:52, PAE reserves them.
        let top = if self.mode == PagingMode::Pae { 62 } else { 51 };
        let mut reserved = if physical_bits > top { 0 } else { span(top, physical_bits) };
        if !self.nx {
            reserved |= bits::NX;
        }
        for (level, (table, leaf)) in self.table_reserved.iter_mut().zip(&mut self.leaf_reserved).enumerate().skip(1) {
            *table = reserved;
            *leaf = reserved;
            if level >= 3 && large_pages & 1 << level == 0 {
                *table |= bits::PS;
            }
            // AMD reserves the global bit in entries above the page directory that lead to a table.
            if level >= 3 && features.contains(Features::AMD) {
                *table |= bits::G;
            }
            if level == 2 || level == 3 {
                *leaf |= span(11 + 9 * (level as u32 - 1), 13);
            }
        }
    }

    #[inline]
    pub(crate) fn reserved(&self, level: u32, leaf: bool) -> u64 {
        let masks = if leaf { &self.leaf_reserved } else { &self.table_reserved };
        masks.get(level as usize).copied().unwrap_or(0)
    }

    /// The first guest-physical address of the page of `1 << shift` bytes that a leaf entry maps.
    #[inline]
    pub(super) fn leaf_base(&self, entry: u64, shift: u32) -> u64 {
        let base = entry & self.frame_mask & (u64::MAX << shift);
        if self.pse36_mask != 0 && shift == 22 { base | (entry >> 13 & self.pse36_mask) << 32 } else { base }
    }
}

/// Reads the four PDPTEs that a load of CR3 with PAE paging loads (SDM vol. 3, 4.4.1). Inner None: a present one has a
/// reserved bit set, which is #GP.
pub fn load_pdptes<M: TableMemory>(memory: &M, cr3: u64, physical_bits: u32) -> Result<Option<[u64; 4]>, MemoryError> {
    let reserved = span(63, physical_bits.clamp(32, 52)) | span(8, 5) | span(2, 1);
    let pdptes = read_pdptes(memory, cr3)?;
    let fine = pdptes.iter().all(|pdpte| pdpte & bits::P == 0 || pdpte & reserved == 0);
    Ok(fine.then_some(pdptes))
}

/// Reads the four PDPTEs as they are, for a processor that uses them so.
pub fn read_pdptes<M: TableMemory>(memory: &M, cr3: u64) -> Result<[u64; 4], MemoryError> {
    let base = cr3 & span(31, 5);
    let mut pdptes = [0; 4];
    for (n, pdpte) in pdptes.iter_mut().enumerate() {
        *pdpte = memory.load_entry::<u64>(base + 8 * n as u64)?;
    }
    Ok(pdptes)
}
