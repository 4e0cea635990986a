//! The bound on shadow pages (row B11): KVM_SET_NR_MMU_PAGES, or a share of the guest's memory; pages that were not used
//! for long go first, and the host may ask for some back.
use platform::Platform;

use super::{
    Shadow, ShadowError,
    arena::Corrupt,
    life::FlushDue,
    page::{MAX_SLOTS, NO_SLOT},
    stats::Counter,
    tables::{Res, Tables},
};

/// The fewest pages that a guest can work with.
pub const LEAST_PAGES: usize = 64;
/// The most: the other places are for what is not counted, vCPUs' own roots and roots that were zapped.
const MOST_PAGES: usize = MAX_SLOTS as usize - 4096;
/// Of a thousand pages of the guest, so many may be shadow pages, as on Linux.
const SHARE: u64 = 20;
/// Pages that one fault may make.
const PER_FAULT: usize = 4;
/// Pages taken back beyond what is wanted at once, so that not each fault has to.
const BATCH: usize = 16;

/// The bound for a guest of `pages` pages, unless its client sets one.
pub fn default_limit(pages: u64) -> usize {
    usize::try_from(pages.saturating_mul(SHARE) / 1000).unwrap_or(usize::MAX).clamp(LEAST_PAGES, MOST_PAGES)
}

impl<P: Platform> Shadow<P> {
    /// KVM_SET_NR_MMU_PAGES: at most `pages` shadow pages from now on. Fewer than [`LEAST_PAGES`] count as that, more than
    /// there are places for as these, and the path to one page for each root in use is always allowed.
    pub fn set_limit(&self, pages: usize) -> (Result<(), ShadowError>, FlushDue<P>) {
        let (result, due) = self.locked(|tables| {
            (tables.limit, tables.limit_is_default) = (pages.clamp(LEAST_PAGES, MOST_PAGES), false);
            let excess = tables.pages.saturating_sub(tables.bound());
            tables.recycle(excess).map(|_| ())
        });
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }

    /// The bound, and how many pages there are.
    pub fn usage(&self) -> (usize, usize) {
        let mut usage = (0, 0);
        let (_, due) = self.locked(|tables| {
            usage = (tables.limit, tables.pages);
            Ok::<_, Corrupt>(())
        });
        due.abandon();
        usage
    }

    /// The host is short of memory: gives up to `pages` shadow pages back; how many. Does not sleep.
    pub fn shrink(&self, pages: usize) -> (Result<usize, ShadowError>, FlushDue<P>) {
        let (result, due) = self.locked(|tables| tables.recycle(pages));
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }
}

impl<P: Platform> Tables<P> {
    /// The guest has `pages` pages of memory: the bound follows unless the client has set it.
    pub(super) fn guest_pages(&mut self, pages: u64) {
        if self.limit_is_default {
            self.limit = default_limit(pages);
        }
    }

    /// What cannot be gone below: the paths of the vCPUs.
    fn bound(&self) -> usize {
        let roots = self.roots.iter().filter(|root| root.current.is_some()).count();
        self.limit.max(2 * PER_FAULT * roots)
    }

    /// Makes room for the pages of one fault.
    pub(super) fn stay_bounded(&mut self) -> Res {
        let wanted = self.pages + PER_FAULT;
        if wanted <= self.limit {
            return Ok(());
        }
        let bound = self.bound();
        if wanted > bound {
            self.recycle(wanted - bound + BATCH.min(bound / 4))?;
        }
        Ok(())
    }

    /// Zaps up to `count` pages, the oldest first. One that was used since it was last looked at is spared once; roots in
    /// use are spared.
    fn recycle(&mut self, count: usize) -> Res<usize> {
        let mut done = 0;
        // Twice around at most: the second time nothing is spared for its accessed bit.
        let mut looks = 2 * self.pages;
        while done < count && looks > 0 && self.oldest != NO_SLOT {
            looks -= 1;
            let id = self.arena.id(self.oldest)?;
            if self.arena.get(id)?.roots != 0 || self.take_accessed(id)? {
                self.rejuvenate(id)?;
                continue;
            }
            self.zap(id)?;
            self.open.counters.count(Counter::Recycled);
            done += 1;
        }
        Ok(done)
    }
}
