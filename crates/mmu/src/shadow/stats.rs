//! What shadow paging counts, by the names that Linux has for the same where it has them.
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $counter:ident = $text:literal,)*) => {
        /// A counter of a VM's shadow paging.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $counter,)* }

        impl Counter {
            /// The names under which they are read, in the order of the values.
            pub const NAMES: &'static [&'static str] = &[$($text,)*];
        }
    };
}

counters! {
    /// Faults that made or changed a leaf.
    Fixed = "pf_fixed",
    /// Faults that mapped 2 MiB at once.
    Large = "pf_large",
    /// Leaves that were made before their first use.
    Ahead = "pf_ahead",
    /// Faults that were the guest's own.
    Guest = "pf_guest",
    /// Faults whose instruction is emulated: device memory, page tables.
    Emulate = "pf_emulate",
    /// Faults that found everything in its place.
    Spurious = "pf_spurious",
    /// Faults that had to start over, because something changed or was to be flushed first.
    Again = "pf_again",
    /// Shadow pages made.
    Created = "mmu_cache_miss",
    /// Shadow pages zapped.
    Zapped = "mmu_shadow_zapped",
    /// Writes to shadowed guest tables.
    Written = "mmu_pte_write",
    /// Entries that such writes took away.
    Updated = "mmu_pte_updated",
    /// Times that the guest was let write tables of the last level without an exit.
    Opened = "mmu_opened",
    /// Such tables that were brought in step again.
    Settled = "mmu_settled",
    /// Guest tables that were written so often without being used that they are no longer shadowed.
    Flooded = "mmu_flooded",
    /// Frames that stopped being protected because the write to them could not be emulated.
    Unprotected = "mmu_unprotected",
    /// Shadow pages taken back to stay within the bound.
    Recycled = "mmu_recycled",
    /// Large pages that were divided into small ones, because writes to them are to be logged.
    Split = "mmu_large_split",
    /// Invalidations by the host.
    Invalidated = "mmu_invalidated",
    /// Times that frames lost write access, as page tables or for the dirty log.
    Protected = "mmu_protected",
}

const COUNT: usize = Counter::NAMES.len();

/// The counters of one VM.
#[derive(Debug)]
pub(super) struct Counters([AtomicU64; COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNT])
    }
}

impl Counters {
    pub(super) fn count(&self, counter: Counter) {
        if let Some(value) = self.0.get(counter as usize) {
            value.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn get(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |value| value.load(Relaxed))
    }
}
