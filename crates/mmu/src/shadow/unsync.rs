//! Guest tables of the last level that the guest may write as it likes ("unsync" pages).
//!
//! A write to a table of which only pages of the last level are made is let through: its frame becomes writable, and what was
//! made of it may from then on be what the table said some time ago. That is what a translation cache is, too: a guest
//! has to flush before it relies on a change (SDM vol. 3, 4.10.4). When it does, what its root leads to is brought in step again
//! ([`Shadow::guest_flushed`]): the frames lose write access, processors forget that they had it, and then each entry is held
//! against the table. INVLPG brings one entry in step, and leaves the table writable.
//!
//! Such pages are in a list, whose length is bounded. An entry of theirs may be made by a fault as in any other, because it is as
//! the table is at that moment. But nothing new leads to such a page before it is in step: a processor that could not
//! reach it cannot remember what it said then.
use core::sync::atomic::Ordering::SeqCst;

use platform::{Platform, TablePage};

use super::{
    Shadow, ShadowError,
    arena::Corrupt,
    map::{Stop, index_at},
    page::{Node, PageId},
    spte::is_leaf,
    stats::Counter,
    tables::{Res, Tables},
};
use crate::{AddressSpace, Snapshot};

/// Whether the guest may write the table that a page shadows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    /// No: every entry is what the table says.
    InStep,
    /// Yes: entries are what the table says or said.
    Unsync,
    /// No, once everything up to the page's `readable_after` is flushed; entries have not been held against the table since.
    Closing,
}

/// Most pages that are not in step. All of them are looked at in one stay under the lock.
pub(super) const MOST: usize = 64;
/// Tables that are closed at once when there are too many.
const BATCH: usize = 8;
/// Pages looked at on the way up from one; beyond that it counts as reached.
const WAYS: u32 = 64;

impl<P: Platform> Shadow<P> {
    /// The guest has made vCPU `vcpu` (its reader number too) forget its translations, and its root is loaded: what that leads to is
    /// as the guest's tables are now. `flush` is as for [`Shadow::fulfil`].
    pub fn guest_flushed(
        &self,
        vcpu: usize,
        memory: &AddressSpace<P>,
        mut flush: impl FnMut(),
    ) -> Result<(), ShadowError> {
        if self.open.unsync.load(SeqCst) == 0 {
            return Ok(());
        }
        let (closed, due) = self.locked(|tables| tables.close_under(vcpu));
        self.fulfil(due, &mut flush);
        if !closed.map_err(|_: Corrupt| ShadowError::Dead)? {
            return Ok(());
        }
        let (settled, due) = self.locked(|tables| {
            let view = memory.view(vcpu).ok_or(Corrupt)?;
            match tables.walks(vcpu) {
                Some(root) => tables.settle_under(root, &view),
                None => Ok(()),
            }
        });
        self.fulfil(due, flush);
        settled.map_err(|_: Corrupt| ShadowError::Dead)
    }

    /// The same for the page of `gva` alone (INVLPG).
    pub fn guest_flushed_page(
        &self,
        vcpu: usize,
        gva: u64,
        memory: &AddressSpace<P>,
        flush: impl FnOnce(),
    ) -> Result<(), ShadowError> {
        if self.open.unsync.load(SeqCst) == 0 {
            return Ok(());
        }
        let (result, due) = self.locked(|tables| {
            let view = memory.view(vcpu).ok_or(Corrupt)?;
            tables.settle_address(vcpu, gva, &view)
        });
        self.fulfil(due, flush);
        result.map_err(|_: Corrupt| ShadowError::Dead)
    }
}

impl<P: Platform> Tables<P> {
    /// The page at which the walks of a vCPU begin.
    fn walks(&self, vcpu: usize) -> Option<PageId> {
        self.roots.get(vcpu)?.current.map(|(root, _)| root)
    }

    /// Whether frame `gfn` (no alias) holds a shadowed table that must not be written unseen.
    pub(super) fn is_protected(&self, gfn: u64) -> Res<bool> {
        let mut next = self.next_table(gfn, None)?;
        while let Some(id) = next {
            if self.arena.get(id)?.sync != Sync::Unsync {
                return Ok(true);
            }
            next = self.next_table(gfn, Some(id.slot))?;
        }
        Ok(false)
    }

    /// Lets the guest write the tables in frame `gfn`, if it may and they all are of the last level. False: they stay protected.
    pub(super) fn let_write(&mut self, gfn: u64, slots: &Snapshot<P>) -> Result<bool, Stop> {
        let mut new = 0;
        let mut next = self.next_table(gfn, None)?;
        while let Some(id) = next {
            let page = self.arena.get(id)?;
            if page.role.level != 1 {
                return Ok(false);
            }
            new += usize::from(page.sync == Sync::InStep);
            next = self.next_table(gfn, Some(id.slot))?;
        }
        if new > MOST {
            return Ok(false);
        }
        while self.unsync.len() + new > MOST {
            self.make_room(gfn, slots)?;
        }
        next = self.next_table(gfn, None)?;
        while let Some(id) = next {
            self.enlist(id)?;
            next = self.next_table(gfn, Some(id.slot))?;
        }
        self.open.counters.count(Counter::Opened);
        Ok(true)
    }

    /// Whether a page that is being made for a table of the last level in frame `gfn` may begin as one that the guest can write:
    /// its frame needs no protection then.
    pub(super) fn may_begin_unsync(&self, gfn: u64) -> Res<bool> {
        Ok(self.unsync.len() < MOST && !self.is_protected(gfn)?)
    }

    /// The guest may write the table of a page from now on.
    pub(super) fn enlist(&mut self, id: PageId) -> Res {
        let page = self.arena.get_mut(id)?;
        if core::mem::replace(&mut page.sync, Sync::Unsync) == Sync::InStep {
            if self.unsync.len() >= MOST {
                return Err(Corrupt);
            }
            // There is room: it was made with the tables.
            self.unsync.push(id);
            self.open.unsync.store(self.unsync.len(), SeqCst);
        }
        Ok(())
    }

    /// The page is in step, or goes.
    pub(super) fn delist(&mut self, id: PageId) -> Res {
        let page = self.arena.get_mut(id)?;
        if core::mem::replace(&mut page.sync, Sync::InStep) != Sync::InStep {
            let at = self.unsync.iter().position(|other| *other == id).ok_or(Corrupt)?;
            self.unsync.remove(at);
            self.open.unsync.store(self.unsync.len(), SeqCst);
        }
        Ok(())
    }

    /// Takes write access from frame `gfn`, whose tables can be held against their shadow once what comes back is flushed.
    pub(super) fn close(&mut self, gfn: u64) -> Res<u64> {
        self.protect(gfn..gfn + 1)?;
        // Also what others have taken away, and not flushed yet, may be a way to write this frame.
        let ready = self.open.flushes.needed() + u64::from(self.must_flush);
        let mut next = self.next_table(gfn, None)?;
        while let Some(id) = next {
            let page = self.arena.get_mut(id)?;
            if page.sync == Sync::Unsync {
                (page.sync, page.readable_after) = (Sync::Closing, ready);
            }
            next = self.next_table(gfn, Some(id.slot))?;
        }
        Ok(ready)
    }

    /// Closes the tables that the vCPU's root leads to. False: nothing that it leads to is out of step.
    fn close_under(&mut self, vcpu: usize) -> Res<bool> {
        let Some(root) = self.walks(vcpu) else { return Ok(false) };
        let mut any = false;
        for at in 0..self.unsync.len() {
            let id = *self.unsync.get(at).ok_or(Corrupt)?;
            if !self.leads_to(root, id, &mut WAYS.clone())? {
                continue;
            }
            any = true;
            let page = self.arena.get(id)?;
            if page.sync == Sync::Unsync {
                self.close(page.gfn)?;
            }
        }
        Ok(any)
    }

    /// Brings all that page `from` leads to in step, itself too.
    pub(super) fn settle_under(&mut self, from: PageId, slots: &Snapshot<P>) -> Res {
        let mut at = 0;
        while let Some(&id) = self.unsync.get(at) {
            // If it has left the list, the next one is in its place.
            if !self.leads_to(from, id, &mut WAYS.clone())? || !self.settle_page(id, slots)? {
                at += 1;
            }
        }
        Ok(())
    }

    /// Holds every entry of a page against the guest's table. True if it is in step from now on.
    fn settle_page(&mut self, id: PageId, slots: &Snapshot<P>) -> Res<bool> {
        let place = self.place(id, slots)?;
        let mut from = 0;
        while let Some(index) = self.arena.get(id)?.present.next(from) {
            self.settle(id, index, place, slots)?;
            from = index + 1;
        }
        let page = self.arena.get(id)?;
        let in_step = page.sync == Sync::Closing && self.open.flushes.is_done(page.readable_after);
        if in_step {
            self.delist(id)?;
            self.open.counters.count(Counter::Settled);
        }
        Ok(in_step)
    }

    /// Brings the entry for `gva` in step under the vCPU's root.
    fn settle_address(&mut self, vcpu: usize, gva: u64, slots: &Snapshot<P>) -> Res {
        let Some(mut id) = self.walks(vcpu) else { return Ok(()) };
        loop {
            let page = self.arena.get(id)?;
            let (level, sync) = (page.role.level, page.sync);
            let index = index_at(gva, level);
            let entry = page.table.entry(index).load(SeqCst);
            if entry == 0 {
                return Ok(());
            }
            if is_leaf(level, entry) {
                return if sync == Sync::InStep {
                    Ok(())
                } else {
                    self.settle(id, index, self.place(id, slots)?, slots)
                };
            }
            id = self.link(id, index)?.page();
        }
    }

    /// Whether page `from` leads to page `id`, or may.
    fn leads_to(&self, from: PageId, id: PageId, ways: &mut u32) -> Res<bool> {
        if from == id || *ways == 0 {
            return Ok(true);
        }
        *ways -= 1;
        let mut node = self.arena.get(id)?.parents;
        while let Some((slot, index)) = node.get() {
            // A parent is one level higher, so that this has an end.
            if self.leads_to(from, self.arena.id(slot)?, ways)? {
                return Ok(true);
            }
            node = self.arena.at(slot)?.links.get(index).ok_or(Corrupt)?.next;
        }
        Ok(false)
    }

    /// Whether a vCPU's root leads to a page.
    pub(super) fn is_used(&self, id: PageId) -> Res<bool> {
        for root in self.roots.iter().filter_map(|root| root.current) {
            if self.leads_to(root.0, id, &mut u32::MAX.clone())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes a page from the list, but for those of frame `gfn`: one that nothing leads to, or one that is closed; else closes the
    /// oldest, which takes a flush.
    fn make_room(&mut self, gfn: u64, slots: &Snapshot<P>) -> Result<(), Stop> {
        let mut closed = None;
        for &id in &self.unsync {
            let page = self.arena.get(id)?;
            if page.gfn == gfn {
                continue;
            }
            if page.parents == Node::NONE {
                return Ok(self.zap(id)?);
            }
            if page.sync == Sync::Closing && self.open.flushes.is_done(page.readable_after) {
                closed = Some(id);
            }
        }
        if let Some(id) = closed {
            self.settle_page(id, slots)?;
            return Ok(());
        }
        let mut left = BATCH;
        for at in 0..self.unsync.len() {
            let page = self.arena.get(*self.unsync.get(at).ok_or(Corrupt)?)?;
            if page.gfn != gfn && page.sync == Sync::Unsync && left != 0 {
                left -= 1;
                self.close(page.gfn)?;
            }
        }
        Err(Stop::Again)
    }
}
