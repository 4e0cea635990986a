//! What is read without the MMU lock.
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst, fence};

use platform::OutOfMemory;

use super::{life::Flushes, page::NO_SLOT, spte::EntryFormat, stats::Counters};

/// Buckets of the hash of pages.
pub(super) const BUCKETS: usize = 4096;

/// Spreads frame numbers over a power of two of buckets.
pub(super) fn hash(gfn: u64, buckets: usize) -> usize {
    // Fibonacci hashing: neighbours end far from each other.
    (gfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (buckets - 1)
}

/// Shared by the tables under their lock and by those who look before they take it.
pub(super) struct Open {
    /// First page of each bucket of the hash by frame, pages that shadow guest tables only. An empty one tells a writer
    /// of guest memory, without the lock, that it wrote no page table.
    heads: Vec<AtomicU32>,
    /// By vCPU: its root was taken away.
    stale_roots: Vec<AtomicBool>,
    pub(super) flushes: Flushes,
    pub(super) counters: Counters,
    /// Counts the host's invalidations, when they begin and when they end. Changed under the lock.
    pub(super) sequence: AtomicU64,
    /// Invalidations that have begun and not ended. Changed under the lock.
    pub(super) invalidating: AtomicU32,
    /// Pages that are not in step with the guest's tables. Changed under the lock.
    pub(super) unsync: AtomicUsize,
    /// Places for pages that whoever fills a cache is asked to bring; 0: there are enough.
    pub(super) places_wanted: AtomicUsize,
    /// An inconsistency was found: the VM is over.
    pub(super) dead: AtomicBool,
    /// The tables are nested ones: they translate guest-physical addresses.
    pub(super) nested: bool,
    /// What they are written for.
    pub(super) format: EntryFormat,
}

impl Open {
    pub(super) fn new(vcpus: usize, nested: Option<EntryFormat>) -> Result<Self, OutOfMemory> {
        let (mut heads, mut stale_roots) = (Vec::new(), Vec::new());
        heads.try_reserve_exact(BUCKETS).map_err(|_| OutOfMemory)?;
        heads.extend((0..BUCKETS).map(|_| AtomicU32::new(NO_SLOT)));
        stale_roots.try_reserve_exact(vcpus).map_err(|_| OutOfMemory)?;
        stale_roots.extend((0..vcpus).map(|_| AtomicBool::new(false)));
        Ok(Self {
            heads,
            stale_roots,
            flushes: Flushes::default(),
            counters: Counters::default(),
            sequence: AtomicU64::new(0),
            invalidating: AtomicU32::new(0),
            unsync: AtomicUsize::new(0),
            places_wanted: AtomicUsize::new(1),
            dead: AtomicBool::new(false),
            nested: nested.is_some(),
            format: nested.unwrap_or(EntryFormat::X86),
        })
    }

    pub(super) fn head(&self, gfn: u64) -> &AtomicU32 {
        // There are BUCKETS heads, and the hash is below that.
        &self.heads[hash(gfn, BUCKETS)]
    }

    pub(super) fn heads(&self) -> impl Iterator<Item = u32> + '_ {
        self.heads.iter().map(|head| head.load(SeqCst))
    }

    /// Whether `gfn` may hold a shadowed table, asked *after* it was written. A page that is made at the same time
    /// is in the hash before its maker reads the table, so that one of the two sees the other.
    pub(super) fn may_be_table(&self, gfn: u64) -> bool {
        fence(SeqCst);
        self.head(gfn).load(SeqCst) != NO_SLOT
    }

    pub(super) fn stale_root(&self, vcpu: usize) -> Option<&AtomicBool> {
        self.stale_roots.get(vcpu)
    }
}
