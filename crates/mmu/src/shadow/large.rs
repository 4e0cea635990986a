//! Leaves of 2 MiB, in nested tables.
//!
//! One is made where a slot and the host's page allow it. It is in the reverse map under its first frame. What concerns a part
//! of it concerns all of it, with one exception: when a page in it is to be written and logged, it is divided into a page of
//! small leaves, from the cache of the fault that needs that. The host's invalidations cannot allocate: they take all of it
//! away, and faults bring back what is left.
use platform::Platform;

use super::{
    Shadow, ShadowError,
    cache::Cache,
    fault::Mapping,
    map::Stop,
    page::PageId,
    role::Role,
    spte::{LARGE_LEVEL, Leaf, is_leaf},
    stats::Counter,
    tables::{Res, Tables},
};
use crate::slots::LARGE_FRAMES;
use core::ops::Range;
use x86::paging::PAGE_SHIFT;

impl<P: Platform> Shadow<P> {
    /// The dirty log of the frames `gfns` (no aliases) has ended: pages of small leaves go, so that large ones can take their
    /// place. `flush` is as for [`Shadow::fulfil`].
    pub fn logging_ended(&self, gfns: Range<u64>, flush: impl FnMut()) -> Result<(), ShadowError> {
        if !self.open.nested {
            return Ok(());
        }
        self.zap_all(|page| page.role.level == 1 && gfns.contains(&page.gfn), flush)
    }
}

impl<P: Platform> Tables<P> {
    /// The large leaf that is entry `index` of a page.
    pub(super) fn large_at(&self, id: PageId, index: usize) -> Res<Option<Leaf>> {
        let (level, entry) = (self.arena.get(id)?.role.level, self.spte(id, index)?);
        Ok((level == LARGE_LEVEL && entry != 0 && is_leaf(level, entry)).then(|| Leaf::decode(entry)))
    }

    /// Whether a large leaf is to be entry `index` of a page, where otherwise a page for (`gfn`, `role`) would be. If that
    /// exists it goes, and every processor forgets it, before a large leaf takes its place.
    pub(super) fn takes_large(
        &mut self,
        id: PageId,
        index: usize,
        (gfn, role): (u64, &Role),
        mapping: &Mapping<'_>,
    ) -> Result<bool, Stop> {
        if !mapping.large {
            return Ok(false);
        }
        if self.large_at(id, index)?.is_some() {
            return Ok(true);
        }
        match self.find(gfn, role)? {
            None => Ok(true),
            // Some of its pages are written, and logged for themselves.
            Some(_) if mapping.frame.log_dirty => Ok(false),
            Some(child) => {
                self.zap(child)?;
                Err(Stop::Again)
            }
        }
    }

    /// Takes `large` away, which is entry `index` of a page, and leaves a page of small leaves to be put in its place, one of
    /// them for the host's page at `hpa`. Every processor forgets the one before it can meet the others.
    pub(super) fn split(
        &mut self,
        id: PageId,
        index: usize,
        large: Leaf,
        role: Role,
        hpa: u64,
        cache: &mut Cache<P>,
    ) -> Result<(), Stop> {
        let gfn = self.link(id, index)?.gfn();
        if hpa & !((LARGE_FRAMES << PAGE_SHIFT) - 1) == large.hpa {
            let child = self.create(cache, gfn, role)?;
            for n in 0..LARGE_FRAMES {
                let leaf = Leaf { hpa: large.hpa + (n << PAGE_SHIFT), large: false, ..large };
                self.add_leaf(child, n as usize, gfn + n, leaf)?;
            }
            self.open.counters.count(Counter::Split);
        }
        self.remove_entry(id, index)?;
        Ok(())
    }
}
