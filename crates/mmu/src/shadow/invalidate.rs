//! The host takes pages away, or asks whether they are in use (row B12); the dirty log and slot changes take rights away.
use core::{ops::Range, sync::atomic::Ordering::SeqCst};

use platform::{Hva, MaySleep, OutOfMemory, Platform};

use super::{
    Shadow, ShadowError,
    arena::Corrupt,
    life::FlushDue,
    page::{Node, ShadowPage},
    rmap::{self, overlap},
    stats::Counter,
    tables::{Res, Tables},
};
use crate::AddressSpace;

/// Places looked at between two moments at which others can take the lock.
const BATCH: u32 = 64;

impl<P: Platform> Shadow<P> {
    /// The host's pages behind `range` of the client are about to change: no translation leads to them when what comes back
    /// has been fulfilled, and none is made until [`Self::invalidate_end`]. Neither sleeps nor allocates.
    pub fn invalidate_begin(
        &self,
        range: Range<Hva>,
        memory: &AddressSpace<P>,
    ) -> (Result<(), ShadowError>, FlushDue<P>) {
        let (result, due) = self.locked(|tables| {
            tables.open.invalidating.fetch_add(1, SeqCst);
            tables.invalidate(range, memory)
        });
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }

    /// The pages have changed; the counterpart of each [`Self::invalidate_begin`].
    pub fn invalidate_end(&self) {
        let (_, due) = self.locked(|tables| {
            tables.open.sequence.fetch_add(1, SeqCst);
            tables.open.invalidating.fetch_sub(1, SeqCst);
            Ok::<_, Corrupt>(())
        });
        due.abandon();
    }

    /// Both at once, for pages that change while this runs.
    pub fn invalidate(&self, range: Range<Hva>, memory: &AddressSpace<P>) -> (Result<(), ShadowError>, FlushDue<P>) {
        let (result, due) = self.locked(|tables| tables.invalidate(range, memory));
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }

    /// Whether a page of `range` was used since this was last asked; if `take` is not set, the next one who asks hears of
    /// it too.
    pub fn young(&self, range: Range<Hva>, memory: &AddressSpace<P>, take: bool) -> Result<bool, ShadowError> {
        let (result, due) = self.locked(|tables| {
            let mut any = false;
            tables.for_leaves_of(&range, memory, |tables, node| {
                any |= tables.young_leaf(node, take)?;
                Ok(())
            })?;
            Ok(any)
        });
        due.abandon();
        result.map_err(|_: Corrupt| ShadowError::Dead)
    }

    /// The frames `gfns` (no aliases) lose write access, so that the next write to each is seen: their dirty log begins.
    pub fn log_writes(&self, gfns: Range<u64>) -> (Result<(), ShadowError>, FlushDue<P>) {
        let (result, due) = self.locked(|tables| tables.protect(gfns).map(|_| ()));
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }

    /// The bits of 64 pages from `first` on have been taken from a dirty log: those that were set lose write access. Called
    /// after the bits were taken.
    pub fn pages_cleaned(&self, first: u64, bits: u64) -> (Result<(), ShadowError>, FlushDue<P>) {
        let (result, due) = self.locked(|tables| {
            for bit in (0..64).filter(|bit| bits >> bit & 1 != 0) {
                tables.protect(first + bit..first + bit + 1)?;
            }
            Ok(())
        });
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }

    /// The slots are about to change. Until [`Self::slots_changed`] what is mapped is not all in the published slots.
    pub fn slots_change(&self) {
        let (_, due) = self.locked(|tables| {
            tables.changing += 1;
            Ok::<_, Corrupt>(())
        });
        due.abandon();
    }

    /// The counterpart of [`Self::slots_change`], after new slots have been published, or nothing was. If `stale`, whatever
    /// was mapped by the old ones goes. `pages` is how many pages the guest has now.
    pub fn slots_changed(
        &self,
        stale: bool,
        pages: u64,
        _cx: &MaySleep,
        mut flush: impl FnMut(),
    ) -> Result<(), ShadowError> {
        let mut result = if stale { self.zap_all(|_| true, &mut flush) } else { Ok(()) };
        let grown = rmap::buckets(pages).map_err(|_: OutOfMemory| ());
        let (ended, due) = self.locked(|tables| {
            tables.changing -= 1;
            tables.guest_pages(pages);
            // Without more buckets the reverse map is only slower.
            match grown {
                Ok(buckets) => tables.rehash(buckets).map(Some),
                Err(()) => Ok(None),
            }
        });
        due.abandon();
        if ended.is_err() {
            result = Err(ShadowError::Dead);
        }
        result
    }

    /// Zaps every page that exists now and that `which` names, letting others in now and then.
    pub(super) fn zap_all(
        &self,
        which: impl Fn(&ShadowPage<P>) -> bool,
        mut flush: impl FnMut(),
    ) -> Result<(), ShadowError> {
        let (born, due) = self.locked(|tables| Ok::<_, Corrupt>(tables.births));
        due.abandon();
        let born = born.map_err(|_| ShadowError::Dead)?;
        let mut from = 0;
        loop {
            let (result, due) = self.locked(|tables| tables.zap_older(born, from, &which));
            self.fulfil(due, &mut flush);
            match result.map_err(|_: Corrupt| ShadowError::Dead)? {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }
}

impl<P: Platform> Tables<P> {
    fn invalidate(&mut self, range: Range<Hva>, memory: &AddressSpace<P>) -> Res {
        self.open.sequence.fetch_add(1, SeqCst);
        self.open.counters.count(Counter::Invalidated);
        self.for_leaves_of(&range, memory, Self::drop_leaf)
    }

    /// Calls `each` with the leaves that lead, or may lead, to `range` of the client.
    fn for_leaves_of(
        &mut self,
        range: &Range<Hva>,
        memory: &AddressSpace<P>,
        mut each: impl FnMut(&mut Self, Node) -> Res,
    ) -> Res {
        if self.changing != 0 {
            return self.for_leaves_where(|_| true, each);
        }
        let view = memory.notifier_view().ok_or(Corrupt)?;
        let parts = || view.slots().iter().filter_map(|slot| slot.frames_at(range));
        let frames = parts().fold(0u64, |sum, part| sum.saturating_add(part.end - part.start));
        if frames > self.leaves as u64 {
            // Once for all slots: thousands of them may be the same memory of the client.
            let here = |leaf: &Range<u64>| {
                let slot = view.resolve_unaliased(leaf.start).map(|(slot, _)| slot);
                slot.and_then(|slot| slot.frames_at(range)).is_some_and(|part| overlap(leaf, &part))
            };
            return self.for_leaves_where(here, each);
        }
        parts().try_for_each(|part| self.for_leaves(part, &mut each))
    }

    /// Zaps those of the pages up to number `born` in some places from `from` on that `which` names. The place to go on at,
    /// unless that was all.
    fn zap_older(&mut self, born: u64, from: u32, which: &impl Fn(&ShadowPage<P>) -> bool) -> Res<Option<u32>> {
        let end = from.saturating_add(BATCH).min(self.arena.slots().end);
        for slot in from..end {
            if self.arena.at(slot).is_ok_and(|page| page.hashed && page.born <= born && which(page)) {
                let id = self.arena.id(slot)?;
                self.zap(id)?;
            }
        }
        Ok((end < self.arena.slots().end).then_some(end))
    }
}
