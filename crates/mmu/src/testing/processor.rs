//! A processor's walk of shadow tables or nested ones, with a TLB that keeps everything.
use alloc::collections::BTreeMap;
use core::sync::atomic::Ordering::SeqCst;

use platform::table::CheckedTablePage;
use x86::{
    exception::pf,
    paging::{A, D, NX, P, PS, U, W},
};

use crate::{
    shadow::{EntryFormat, Root},
    walk::Paging,
};

const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Bits of a PDPTE that are reserved.
const PDPTE_RESERVED: u64 = 0xfff0_0000_0000_01e6;

/// An access as the processor makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Try {
    pub(super) gva: u64,
    pub(super) write: bool,
    pub(super) fetch: bool,
    pub(super) user: bool,
    /// EFLAGS.AC lifts SMAP.
    pub(super) ac: bool,
}

impl Try {
    fn code(self) -> u32 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.write, pf::WRITE) | bit(self.fetch, pf::FETCH) | bit(self.user, pf::USER)
    }
}

/// A translation as the TLB keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) hpa: u64,
    pub(super) write: bool,
    user: bool,
    execute: bool,
    /// 2 MiB from `hpa` on.
    pub(super) large: bool,
}

/// Of EPT: accessed, dirty; what leaves have besides: write-back memory whatever the guest says.
const EPT_A: u64 = 1 << 8;
const EPT_D: u64 = 1 << 9;
const EPT_MEMORY: u64 = 0x70;

/// The part of a vCPU that is the processor's.
#[derive(Debug)]
pub(super) struct Processor {
    /// What it takes the tables for.
    format: EntryFormat,
    /// By page, and for large pages (in `large`) by units of 512.
    pub(super) tlb: BTreeMap<u64, Cached>,
    pub(super) large: BTreeMap<u64, Cached>,
    /// Tables of the last level, below entries that allow everything, by units of 512 pages.
    tables: BTreeMap<u64, u64>,
}

impl Processor {
    /// One that remembers nothing.
    pub(super) fn new(format: EntryFormat) -> Self {
        Self { format, tlb: BTreeMap::new(), large: BTreeMap::new(), tables: BTreeMap::new() }
    }

    /// The host-physical address of the byte at `at.gva`, or the error code of a page fault.
    pub(super) fn translate(&mut self, root: Root, paging: &Paging, at: Try) -> Result<u64, u32> {
        let page = at.gva >> 12;
        let known = [self.tlb.get(&page), self.large.get(&(page >> 9))];
        if let Some(known) = known.into_iter().flatten().find(|known| allows(**known, paging, at)) {
            return Ok(known.at(at.gva));
        }
        if let Some(table) = self.tables.get(&(page >> 9))
            && let Ok(found) = walk(self.format, Root { hpa: *table, levels: 1 }, at, &mut None)
            && allows(found, paging, at)
        {
            self.tlb.insert(page, found);
            return Ok(found.at(at.gva));
        }
        // A fault makes the processor look at the tables again.
        self.tlb.remove(&page);
        self.large.remove(&(page >> 9));
        self.tables.remove(&(page >> 9));
        let mut last = None;
        let found = walk(self.format, root, at, &mut last)?;
        if !allows(found, paging, at) {
            return Err(at.code() | pf::PRESENT);
        }
        if found.large {
            self.large.insert(page >> 9, found);
        } else {
            self.tlb.insert(page, found);
        }
        if let Some(table) = last {
            self.tables.insert(page >> 9, table);
        }
        Ok(found.at(at.gva))
    }

    /// Forgets one page, and all tables that it met on its walks.
    pub(super) fn forget(&mut self, gva: u64) {
        self.tlb.remove(&(gva >> 12));
        self.large.remove(&(gva >> 21));
        self.tables.clear();
    }

    /// Forgets everything.
    pub(super) fn flush(&mut self) {
        *self = Self::new(self.format);
    }
}

impl Cached {
    fn at(self, address: u64) -> u64 {
        self.hpa | address & if self.large { 0x1f_ffff } else { 0xfff }
    }
}

fn allows(page: Cached, paging: &Paging, at: Try) -> bool {
    if at.fetch {
        return page.execute && if at.user { page.user } else { !(paging.smep && page.user) };
    }
    let prevented = if at.user { !page.user } else { paging.smap && page.user && !at.ac };
    !prevented && (!at.write || page.write)
}

/// Walks as a processor with CR0.WP and EFER.NXE does, and sets accessed and dirty bits. `last` is the table of the last
/// level, if what is above it allows everything.
fn walk(format: EntryFormat, root: Root, at: Try, last: &mut Option<u64>) -> Result<Cached, u32> {
    let mut table = root.hpa;
    let (mut write, mut user, mut execute) = (true, true, true);
    for level in (1..=u32::from(root.levels)).rev() {
        let index = (at.gva >> (12 + 9 * (level - 1))) as usize & if level == 3 && root.levels == 3 { 3 } else { 511 };
        let entry = CheckedTablePage::live_entry(table, index);
        let value = entry.load(SeqCst);
        if value & P == 0 {
            assert_eq!(value, 0, "an entry that is not present is zero");
            return Err(at.code());
        }
        if level == 1 && write && user && execute {
            *last = Some(table);
        }
        let leaf = level == 1 || level == 2 && value & PS != 0;
        if level == 3 && root.levels == 3 {
            assert_eq!(value & PDPTE_RESERVED, 0, "PDPTE {value:#x}");
        } else {
            let (large, within) = if leaf && level == 2 { (PS, 0x1f_f000) } else { (0, 0) };
            let (accessed, dirty) = if format == EntryFormat::Ept { (EPT_A, EPT_D) } else { (A, D) };
            let mut known = FRAME & !within | P | W | U | accessed | dirty | large;
            if format == EntryFormat::X86 {
                known |= NX;
            } else {
                // Another memory type would be a misconfiguration, or another memory.
                known |= EPT_MEMORY;
                assert_eq!(value & EPT_MEMORY, if leaf { EPT_MEMORY } else { 0 }, "entry {value:#x}");
            }
            assert_eq!(value & !known, 0, "entry {value:#x} at level {level}");
            write &= value & W != 0;
            user &= value & U != 0;
            execute &= value & NX == 0;
            entry.fetch_or(if leaf && at.write && write { accessed | dirty } else { accessed }, SeqCst);
        }
        table = value & FRAME;
        if leaf {
            return Ok(Cached { hpa: table, write, user, execute, large: level == 2 });
        }
    }
    Err(at.code())
}
