//! Which guest-physical memory holds decoded code, for all vCPUs of a VM.
//!
//! A vCPU that decodes a block marks the 64-byte granules that the block was read from in its page's
//! [`PageRecord`]. Stores to a page with marks take the slow path of every vCPU's TLB; one that hits a marked granule
//! raises the page's `version`, and blocks of an older version compare their source bytes with memory before
//! they run again.
//!
//! A page that is marked for the first time may still be in the write TLB of other vCPUs. Marking it raises
//! the map's *epoch*; each vCPU looks at the epoch at every block boundary, drops its write translations when it has
//! changed, and acknowledges it. Until all vCPUs inside the guest have acknowledged the epoch of a mark, blocks of that
//! page are compared with memory each time they are entered ([`CodeMap::settled`]).
use std::sync::{Mutex, PoisonError};

use core::{
    ptr,
    sync::atomic::{
        AtomicPtr, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, SeqCst},
        fence,
    },
};

use platform::{OutOfMemory, fallible::try_box};

/// The most vCPUs that a VM can have here.
pub const MAX_VCPUS: usize = 1024;

/// log2 of the bytes in a granule: 64 granules make a page.
const GRANULE_SHIFT: u32 = 6;

/// What is known about one guest frame as a source of code.
#[derive(Debug, Default)]
pub struct PageRecord {
    /// Granules that blocks were decoded from.
    granules: AtomicU64,
    /// The epoch that the first of them was marked in.
    marked: AtomicU64,
    /// Raised by each store to a marked granule.
    version: AtomicU32,
}

impl PageRecord {
    /// The current version: blocks decoded under another one have to be compared with memory.
    #[inline]
    pub fn version(&self) -> u32 {
        self.version.load(Acquire)
    }

    /// Whether stores to this page have to go through [`CodeMap::written`].
    #[inline]
    pub fn holds_code(&self) -> bool {
        self.granules.load(SeqCst) != 0
    }
}

/// The granules that `bytes` bytes at `offset` within a page touch.
fn granules(offset: u64, bytes: u64) -> u64 {
    let first = (offset & 0xfff) >> GRANULE_SHIFT;
    let last = ((offset & 0xfff) + bytes.max(1) - 1).min(0xfff) >> GRANULE_SHIFT;
    (u64::MAX >> (63 - (last - first))) << first
}

const LEAF_BITS: u32 = 9;
const NODE_BITS: u32 = 11;
/// 9 + 3 * 11 = 42 bits of frame number: more than the 40 that exist.
const LEVELS: u32 = 3;

struct Leaf([PageRecord; 1 << LEAF_BITS]);

/// Pointers to `Node`s, or to `Leaf`s at the last level.
struct Node([AtomicPtr<()>; 1 << NODE_BITS]);

/// On a cache line of its own: the epoch that a vCPU has acknowledged, 0 while it is outside of the guest.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Seen(AtomicU64);

/// The records of a VM's frames, in a radix tree that only grows, and the epoch.
pub struct CodeMap {
    epoch: AtomicU64,
    /// Held while marks are set or cleared, both rare: the first marks of a page always get an epoch of their own.
    marking: Mutex<()>,
    root: AtomicPtr<()>,
    seen: Vec<Seen>,
    vcpus: AtomicUsize,
}

impl core::fmt::Debug for CodeMap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CodeMap").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl CodeMap {
    /// An empty map.
    pub fn new() -> Result<Self, OutOfMemory> {
        let mut seen = Vec::new();
        seen.try_reserve_exact(MAX_VCPUS).map_err(|_| OutOfMemory)?;
        seen.resize_with(MAX_VCPUS, Seen::default);
        Ok(Self {
            epoch: AtomicU64::new(1),
            marking: Mutex::new(()),
            root: AtomicPtr::new(ptr::null_mut()),
            seen,
            vcpus: AtomicUsize::new(0),
        })
    }

    /// Says that vCPU `index` exists.
    pub fn add_vcpu(&self, index: usize) -> Result<(), OutOfMemory> {
        if index >= MAX_VCPUS {
            return Err(OutOfMemory);
        }
        self.vcpus.fetch_max(index + 1, SeqCst);
        Ok(())
    }

    /// The current epoch. A vCPU that finds it changed drops its write translations and says so with
    /// [`CodeMap::acknowledge`]; on entry too, where it then looks at the epoch once more.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// The vCPU `index` is in the guest without write translations from before `epoch`.
    pub fn acknowledge(&self, index: usize, epoch: u64) {
        if let Some(seen) = self.seen.get(index) {
            seen.0.store(epoch, SeqCst);
        }
    }

    /// The vCPU `index` has left the guest.
    pub fn leave(&self, index: usize) {
        if let Some(seen) = self.seen.get(index) {
            seen.0.store(0, SeqCst);
        }
    }

    /// Whether no vCPU can still hold a write translation that is older than the marks of `page`. A block is safe from
    /// unseen stores only if this held *before* it was compared with memory.
    pub fn settled(&self, page: &PageRecord) -> bool {
        let marked = page.marked.load(SeqCst);
        let vcpus = self.vcpus.load(SeqCst);
        self.seen.iter().take(vcpus).all(|seen| {
            let seen = seen.0.load(SeqCst);
            seen == 0 || seen >= marked
        })
    }

    /// Marks `bytes` bytes at `offset` of `page` as code, and returns the version that they have now: the caller compares
    /// its copy of the bytes with memory after this. The epoch besides if this raised it because the page held no code
    /// before: the caller drops its own write translations of the page.
    pub fn mark(&self, page: &PageRecord, offset: u64, bytes: u64) -> (u32, Option<u64>) {
        let want = granules(offset, bytes);
        let _marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut raised = None;
        if page.granules.load(SeqCst) == 0 {
            // Nobody may take the page for settled before it has its epoch, and the epoch must not be acknowledged by
            // somebody who has not seen the marks.
            page.marked.store(u64::MAX, SeqCst);
            page.granules.store(want, SeqCst);
            let epoch = self.epoch.fetch_add(1, SeqCst) + 1;
            page.marked.store(epoch, SeqCst);
            raised = Some(epoch);
        } else {
            page.granules.fetch_or(want, SeqCst);
        }
        (page.version.load(SeqCst), raised)
    }

    /// To be called after a store of `bytes` bytes at `offset` of `page`. The epoch that this raised if it changed code: the
    /// caller stops its block behind the current instruction, and looks its blocks up again.
    pub fn written(&self, page: &PageRecord, offset: u64, bytes: u64) -> Option<u64> {
        // The store comes before the look at the marks, as marking comes before the look at the bytes.
        fence(SeqCst);
        if page.granules.load(SeqCst) & granules(offset, bytes) == 0 {
            return None;
        }
        let _marking = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        // The page starts anew: blocks that are found unchanged mark their granules again.
        page.granules.store(0, SeqCst);
        page.version.fetch_add(1, SeqCst);
        // Makes the other vCPUs look their blocks up again.
        Some(self.epoch.fetch_add(1, SeqCst) + 1)
    }

    /// The record of frame `gfn`, if one was made.
    pub fn get(&self, gfn: u64) -> Option<&PageRecord> {
        let mut slot = &self.root;
        for level in 0..LEVELS {
            let node = slot.load(Acquire).cast::<Node>();
            if node.is_null() {
                return None;
            }
            // SAFETY: non-null pointers of these levels come from `child::<Node>` and live as long as `self`.
            slot = unsafe { &(*node).0[Self::index(gfn, level)] };
        }
        let leaf = slot.load(Acquire).cast::<Leaf>();
        // SAFETY: pointers of the last level are null or come from `child::<Leaf>`, and live as long as `self`.
        unsafe { leaf.as_ref() }.map(|leaf| &leaf.0[gfn as usize & ((1 << LEAF_BITS) - 1)])
    }

    /// The record of frame `gfn`, made if there is none.
    pub fn get_or_make(&self, gfn: u64) -> Result<&PageRecord, OutOfMemory> {
        let mut slot = &self.root;
        for level in 0..LEVELS {
            let node = Self::child(slot, || Node([const { AtomicPtr::new(ptr::null_mut()) }; 1 << NODE_BITS]))?;
            slot = &node.0[Self::index(gfn, level)];
        }
        let leaf = Self::child(slot, || Leaf(core::array::from_fn(|_| PageRecord::default())))?;
        Ok(&leaf.0[gfn as usize & ((1 << LEAF_BITS) - 1)])
    }

    fn index(gfn: u64, level: u32) -> usize {
        (gfn >> (LEAF_BITS + NODE_BITS * (LEVELS - 1 - level))) as usize & ((1 << NODE_BITS) - 1)
    }

    /// What `slot` points to; made by `make` if it is null. A slot has one type for its whole life.
    fn child<T>(slot: &AtomicPtr<()>, make: impl FnOnce() -> T) -> Result<&T, OutOfMemory> {
        let mut found = slot.load(Acquire);
        if found.is_null() {
            let new = Box::into_raw(try_box(make())?).cast::<()>();
            match slot.compare_exchange(ptr::null_mut(), new, SeqCst, SeqCst) {
                Ok(_) => found = new,
                Err(theirs) => {
                    // SAFETY: `new` came from Box::into_raw and nobody else has seen it.
                    drop(unsafe { Box::from_raw(new.cast::<T>()) });
                    found = theirs;
                }
            }
        }
        // SAFETY: a slot's pointer comes from this function with the same T, and is freed only in drop.
        Ok(unsafe { &*found.cast::<T>() })
    }

    fn free(slot: &mut AtomicPtr<()>, level: u32) {
        let found = *slot.get_mut();
        if found.is_null() {
            return;
        }
        if level == LEVELS {
            // SAFETY: pointers of the last level are leaves from `child`, and `self` is being dropped.
            drop(unsafe { Box::from_raw(found.cast::<Leaf>()) });
        } else {
            // SAFETY: pointers of the upper levels are nodes from `child`, and `self` is being dropped.
            let mut node = unsafe { Box::from_raw(found.cast::<Node>()) };
            for slot in &mut node.0 {
                Self::free(slot, level + 1);
            }
        }
    }
}

impl Drop for CodeMap {
    fn drop(&mut self) {
        Self::free(&mut self.root, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_cover_what_is_touched() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(0xfff, 1), 1 << 63);
        assert_eq!(granules(0, 4096), u64::MAX);
        assert_eq!(granules(0xfc0, 100), 1 << 63);
        assert_eq!(granules(0x1040, 64), 2);
    }

    #[test]
    fn records_are_found_where_they_were_made() {
        let map = CodeMap::new().unwrap();
        assert!(map.get(5).is_none());
        for gfn in [0, 5, 511, 512, 1 << 20, (1 << 40) - 1] {
            map.mark(map.get_or_make(gfn).unwrap(), 64, 1);
        }
        assert!(map.get(5).unwrap().holds_code());
        assert!(!map.get(6).unwrap().holds_code());
        assert!(map.get((1 << 40) - 1).unwrap().holds_code());
        assert!(map.get(1 << 30).is_none());
    }

    #[test]
    fn a_store_beside_code_changes_no_version() {
        let map = CodeMap::new().unwrap();
        let page = map.get_or_make(1).unwrap();
        assert_eq!(map.mark(page, 0x100, 8).1, Some(map.epoch()));
        assert_eq!(map.mark(page, 0x140, 8).1, None, "the page held code already");
        assert_eq!(map.written(page, 0x180, 8), None);
        let before = page.version();
        assert!(map.written(page, 0x13f, 2).is_some());
        assert_ne!(page.version(), before);
        assert!(!page.holds_code());
    }

    #[test]
    fn marks_after_a_store_have_an_epoch_of_their_own() {
        let map = CodeMap::new().unwrap();
        let page = map.get_or_make(1).unwrap();
        let first = map.mark(page, 0, 8).1.unwrap();
        let store = map.written(page, 0, 8).unwrap();
        let second = map.mark(page, 0x40, 8).1.unwrap();
        assert!(first < store && store < second);
    }

    #[test]
    fn a_mark_settles_when_every_vcpu_in_the_guest_has_seen_it() {
        let map = CodeMap::new().unwrap();
        map.add_vcpu(0).unwrap();
        map.add_vcpu(1).unwrap();
        map.acknowledge(0, map.epoch());
        map.acknowledge(1, map.epoch());
        let page = map.get_or_make(1).unwrap();
        map.mark(page, 0, 8);
        assert!(!map.settled(page));
        map.acknowledge(1, map.epoch());
        assert!(!map.settled(page), "who marked it has to drop its own translations too");
        map.acknowledge(0, map.epoch());
        assert!(map.settled(page));
        map.mark(map.get_or_make(2).unwrap(), 0, 8);
        map.leave(1);
        map.acknowledge(0, map.epoch());
        assert!(map.settled(map.get(2).unwrap()));
        assert!(map.add_vcpu(MAX_VCPUS).is_err());
    }
}
