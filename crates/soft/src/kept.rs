//! What the adversarial TLB keeps: every translation that the processor has made, until the architecture lets the guest
//! drop it or the core asks for a flush. The small arrays of [`crate::tlb`] forget for many reasons of their own; this is
//! looked at when they miss, before tables are walked, so that whoever relied on their forgetting gets a stale answer.
//!
//! What is kept, as by a processor with nested paging (SDM vol. 3, 30.4.1):
//! - *linear* ones ([`Known`]), with the rights that the tables gave, by address space. They are judged again at each use by
//!   the registers of that moment. The guest's flushes drop those of their tag: a PCID, or all global pages.
//! - on shadow tables, *tables of the last level* by what they map (a paging-structure cache, SDM vol. 3, 4.10.3): who frees a
//!   table, or leads to another one, without a flush has it walked all the same.
//! - *guest-physical* ones ([`Frames`]): what the memory slots said of a frame, or how nested tables mapped it. No instruction
//!   of the guest drops them.
//!
//! A page fault drops the translations of its page, as on a processor (SDM vol. 3, 4.10.4.1): else a guest could not
//! make a page present, or copy it, without an INVLPG.
//!
//! Forgetting is always allowed, so a table that is full or finds no memory is emptied.
use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
};

use emulate::Flush;
use mmu::{Frame, PhysMem, Rights, View};
use platform::{Hva, Platform};

/// The most translations of each kind that are kept: more than guests of this mode ever make between two flushes of
/// everything, and about 100 MiB.
pub(crate) const LIMIT: usize = 1 << 20;

/// A hash of numbers that nobody needs to defend: a guest that makes them collide slows its own test down.
#[derive(Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// Puts an entry in; false if there is no memory for it.
fn put<K: Eq + Hash, V>(map: &mut Map<K, V>, key: K, value: V) -> bool {
    let room = map.try_reserve(1).is_ok();
    if room {
        map.insert(key, value);
    }
    room
}

/// A translation of a page of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The page in this process.
    pub(crate) hva: Hva,
    /// What tells the page from others as a place of code: its guest-physical address.
    pub(crate) gpa: u64,
    /// What the tables allow.
    pub(crate) rights: Rights,
    /// Nothing outside of the tables has to learn of writes.
    pub(crate) writable: bool,
    /// log2 of the size of the page that this is a piece of.
    pub(crate) shift: u32,
}

/// Whose translations: a PCID, or everybody's.
type Tag = u32;
const GLOBAL: Tag = u32::MAX;

/// Sizes of large pages: 2, 4 MiB, 1 GiB.
const LARGE: [u32; 3] = [21, 22, 30];

/// The translations of one tag.
#[derive(Debug, Default)]
struct Space {
    /// By linear page: those made for data, and for instructions.
    pages: [Map<u64, Known>; 2],
    /// The pieces of each large page, by its size and number.
    pieces: Map<(u32, u64), Vec<u64>>,
}

impl Space {
    fn len(&self) -> usize {
        self.pages.iter().map(Map::len).sum()
    }

    fn put(&mut self, linear: u64, code: bool, known: Known) -> bool {
        let page = linear >> 12;
        let listed = self.pages[usize::from(code)].get(&page).is_some_and(|old| old.shift == known.shift);
        if LARGE.contains(&known.shift) && !listed {
            let key = (known.shift, linear >> known.shift);
            if self.pieces.try_reserve(1).is_err() {
                return false;
            }
            let pieces = self.pieces.entry(key).or_default();
            if pieces.try_reserve(1).is_err() {
                return false;
            }
            pieces.push(page);
        }
        put(&mut self.pages[usize::from(code)], page, known)
    }

    fn drop_page(&mut self, linear: u64) {
        for shift in LARGE {
            for page in self.pieces.remove(&(shift, linear >> shift)).unwrap_or_default() {
                self.pages.iter_mut().for_each(|pages| _ = pages.remove(&page));
            }
        }
        self.pages.iter_mut().for_each(|pages| _ = pages.remove(&(linear >> 12)));
    }
}

/// What is kept for one vCPU.
#[derive(Debug)]
pub(crate) struct Kept {
    spaces: Map<Tag, Space>,
    /// At least as many translations as there are.
    most: usize,
    limit: usize,
    /// Host-physical addresses of shadow tables, by linear address in units of what a table maps. All are of one tag: a
    /// processor that walks shadow tables has no PCIDs.
    tables: Map<u64, u64>,
    pub(crate) frames: Frames,
}

/// log2 of what a table of the last level maps.
const TABLE_SHIFT: u32 = 21;

impl Kept {
    /// Nothing yet; at most `limit` translations of each kind.
    pub(crate) fn new(limit: usize) -> Self {
        let frames = Frames { known: RefCell::default(), limit };
        Self { spaces: Map::default(), most: 0, limit, tables: Map::default(), frames }
    }

    /// A translation of `linear` in the address space `pcid` that `allowed` accepts; those for the same kind of access come
    /// first.
    pub(crate) fn find(&self, linear: u64, pcid: u16, code: bool, allowed: impl Fn(&Known) -> bool) -> Option<Known> {
        let spaces = [pcid.into(), GLOBAL].map(|tag| self.spaces.get(&tag));
        [code, !code].into_iter().find_map(|code| {
            let mut all = spaces.iter().flatten().filter_map(|s| s.pages[usize::from(code)].get(&(linear >> 12)));
            all.find(|known| allowed(known)).copied()
        })
    }

    /// Keeps a translation.
    pub(crate) fn keep(&mut self, linear: u64, pcid: u16, code: bool, known: Known) {
        let tag = if known.rights.global() { GLOBAL } else { pcid.into() };
        if self.most >= self.limit {
            self.most = self.spaces.values().map(Space::len).sum();
            if self.most >= self.limit {
                self.spaces.clear();
                self.most = 0;
            }
        }
        self.most += 1;
        let room = self.spaces.try_reserve(1).is_ok();
        if !(room && self.spaces.entry(tag).or_default().put(linear, code, known)) {
            self.spaces.clear();
        }
    }

    /// The shadow table of the last level that maps `linear`.
    pub(crate) fn table(&self, linear: u64) -> Option<u64> {
        self.tables.get(&(linear >> TABLE_SHIFT)).copied()
    }

    /// Keeps a table.
    pub(crate) fn keep_table(&mut self, linear: u64, hpa: u64) {
        if self.tables.len() >= self.limit || !put(&mut self.tables, linear >> TABLE_SHIFT, hpa) {
            self.tables.clear();
        }
    }

    /// The guest's flush; `pcid` is the address space that it is in now.
    pub(crate) fn flush(&mut self, what: Flush, pcid: u16) {
        if !matches!(what, Flush::Cr3 { keep: true } | Flush::Rights) {
            // INVLPG of any page too.
            self.tables.clear();
        }
        match what {
            Flush::Page(linear) => self.drop_page(linear, pcid),
            Flush::PcidPage { pcid, linear } => {
                if let Some(space) = self.spaces.get_mut(&pcid.into()) {
                    space.drop_page(linear);
                }
            }
            Flush::Pcid(pcid) => drop(self.spaces.remove(&pcid.into())),
            Flush::Cr3 { keep: false } => drop(self.spaces.remove(&pcid.into())),
            Flush::NonGlobal => self.spaces.retain(|tag, _| *tag == GLOBAL),
            Flush::All => self.spaces.clear(),
            Flush::Cr3 { keep: true } | Flush::Rights => {}
        }
    }

    /// Drops what INVLPG and a page fault drop: the page of `linear` in this address space and among the global ones.
    pub(crate) fn drop_page(&mut self, linear: u64, pcid: u16) {
        self.tables.remove(&(linear >> TABLE_SHIFT));
        for tag in [pcid.into(), GLOBAL] {
            if let Some(space) = self.spaces.get_mut(&tag) {
                space.drop_page(linear);
            }
        }
    }
}

/// A frame as the slots showed it, or as nested tables mapped it.
#[derive(Clone, Copy, Debug)]
struct KnownFrame {
    frame: Frame,
    /// What tells it from others as a place of code: the frame that an alias leads to; with nested tables the host's.
    gfn: u64,
}

/// Guest-physical translations.
#[derive(Debug)]
pub(crate) struct Frames {
    known: RefCell<Map<u64, KnownFrame>>,
    limit: usize,
}

impl Frames {
    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.known.borrow_mut().clear();
    }

    /// What is known of a frame, and the number that its code has.
    pub(crate) fn find(&self, gfn: u64) -> Option<(Frame, u64)> {
        self.known.borrow().get(&gfn).map(|found| (found.frame, found.gfn))
    }

    /// Keeps a frame.
    pub(crate) fn keep(&self, gfn: u64, frame: Frame, code: u64) {
        let mut known = self.known.borrow_mut();
        if known.len() >= self.limit || !put(&mut known, gfn, KnownFrame { frame, gfn: code }) {
            known.clear();
        }
    }

    /// Forgets one frame.
    pub(crate) fn drop_frame(&self, gfn: u64) {
        self.known.borrow_mut().remove(&gfn);
    }
}

/// Guest-physical memory as a vCPU sees it: the slots, behind what it keeps of them.
pub(crate) struct Physical<'a, P: Platform> {
    pub(crate) view: &'a View<'a, P>,
    pub(crate) frames: &'a Frames,
}

impl<P: Platform> Physical<'_, P> {
    /// The frame `gfn`, and its number without aliases.
    pub(crate) fn resolve(&self, gfn: u64) -> Option<(Frame, u64)> {
        if let Some(found) = self.frames.find(gfn) {
            return Some(found);
        }
        let (frame, number) = (self.view.resolve(gfn)?, self.view.unalias(gfn));
        self.frames.keep(gfn, frame, number);
        Some((frame, number))
    }
}

impl<P: Platform> PhysMem for Physical<'_, P> {
    type Memory = P::Memory;

    fn frame(&self, gfn: u64) -> Option<Frame> {
        Some(self.resolve(gfn)?.0)
    }

    fn mark(&self, gfn: u64) {
        self.view.mark_dirty(gfn);
        // A processor that has set the dirty bit does so only once.
        if let Some(known) = self.frames.known.borrow_mut().get_mut(&gfn) {
            known.frame.log_dirty = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(gpa: u64, shift: u32) -> Known {
        // What paging that is off allows: everything, globally.
        struct Nothing;
        impl mmu::TableMemory for Nothing {
            fn load_entry<W: platform::Word>(&self, gpa: u64) -> Result<W, mmu::MemoryError> {
                Err(mmu::MemoryError::NoMemory(gpa))
            }
            fn exchange_entry<W: platform::Word>(&self, gpa: u64, _: W, _: W) -> Result<W, mmu::MemoryError> {
                Err(mmu::MemoryError::NoMemory(gpa))
            }
        }
        let paging = mmu::Paging::new(&x86::CpuState::reset(0), x86::Features::empty(), 40);
        let rights = mmu::walk(&Nothing, &paging, gpa, mmu::Request::READ).unwrap().rights;
        Known { hva: Hva(gpa), gpa, rights, writable: true, shift }
    }

    #[test]
    fn a_full_table_is_emptied() {
        let mut kept = Kept::new(8);
        for page in 0..100u64 {
            kept.keep(page << 12, 0, false, known(page << 12, 12));
            assert!(kept.spaces.values().map(Space::len).sum::<usize>() <= 8);
            assert!(kept.find(page << 12, 0, false, |_| true).is_some());
        }
    }

    #[test]
    fn what_is_replaced_does_not_fill_it() {
        let mut kept = Kept::new(8);
        kept.keep(0x1000, 0, true, known(0x1000, 21));
        for _ in 0..100 {
            kept.keep(0x2000, 0, false, known(0x2000, 21));
        }
        assert!(kept.find(0x1000, 0, true, |_| true).is_some());
        assert_eq!(kept.spaces[&GLOBAL].pieces[&(21, 0)].len(), 2);
        kept.drop_page(0x1f_f000, 7);
        assert_eq!(kept.spaces[&GLOBAL].len(), 0);
    }

    #[test]
    fn data_and_code_know_of_each_other() {
        let mut kept = Kept::new(8);
        kept.keep(0x1000, 0, false, known(0x5000, 12));
        assert_eq!(kept.find(0x1000, 3, true, |_| true).map(|k| k.gpa), Some(0x5000));
        kept.keep(0x1000, 0, true, known(0x6000, 12));
        assert_eq!(kept.find(0x1000, 3, true, |_| true).map(|k| k.gpa), Some(0x6000));
        assert_eq!(kept.find(0x1000, 3, true, |k| k.gpa == 0x5000).map(|k| k.gpa), Some(0x5000));
        assert_eq!(kept.find(0x2000, 3, true, |_| true), None);
    }
}
