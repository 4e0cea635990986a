//! Putting entries in place, with the lock held: down from the root to the leaf, making the pages that are missing. What
//! has to go first goes, is flushed outside of the lock, and the fault starts over.
use core::sync::atomic::Ordering::SeqCst;

use platform::{Platform, TablePage, table::TABLE_ENTRIES};
use x86::paging::{self as bits, PAGE_SHIFT};

use super::{
    ahead::Ahead,
    arena::Corrupt,
    cache::Cache,
    expect::{Expected, Kind, expected, leaf},
    fault::{Access, Mapping, Resolved},
    page::{PageId, ShadowPage},
    role::{self, Role},
    roots::expected_pdpte,
    spte::{LARGE_LEVEL, Leaf, is_leaf},
    stats::Counter,
    tables::Tables,
    unsync::Sync,
};
use crate::{View, slots::LARGE_FRAMES, walk::Request};

/// Why something under the lock did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Something changed, or a flush has to come first: from the beginning.
    Again,
    /// The cache has to be filled first.
    Short,
    /// The tables are in disorder.
    Corrupt,
}

impl From<Corrupt> for Stop {
    fn from(_: Corrupt) -> Self {
        Self::Corrupt
    }
}

/// Which entry of a table of `level` translates `at`.
pub(super) fn index_at(at: u64, level: u8) -> usize {
    (at >> (PAGE_SHIFT + 9 * u32::from(level.saturating_sub(1)))) as usize & (TABLE_ENTRIES - 1)
}

impl<P: Platform> Tables<P> {
    /// What entry `index` of `page` has to be for this access.
    fn wanted(page: &ShadowPage<P>, index: usize, access: &Access<'_>) -> Result<Expected, Stop> {
        if page.role.direct() && !page.own_root {
            return Ok(page.expected_direct(index));
        }
        let paging = access.paging.ok_or(Corrupt)?;
        if page.own_root {
            return Ok(expected_pdpte(paging, index));
        }
        let at = paging.levels.checked_sub(page.role.level.into()).ok_or(Corrupt)? as usize;
        let step = access.trace.steps().get(at).ok_or(Corrupt)?;
        let mut entry = step.entry;
        if access.places.get(at).is_some_and(|(_, read_only)| *read_only) {
            entry |= used_bits(access.request);
        }
        Ok(expected(&page.role, index, entry))
    }

    /// Goes down a direct tree as far as it is there, to a table of the last two levels at most: what an entry above leads to
    /// follows from its place alone.
    fn descend(&self, root: PageId, at: u64) -> Result<PageId, Stop> {
        let mut id = root;
        loop {
            let page = self.arena.get(id)?;
            let level = page.role.level;
            if !page.role.direct() || page.own_root || level <= LARGE_LEVEL {
                return Ok(id);
            }
            let index = index_at(at, level);
            if page.table.entry(index).load(SeqCst) == 0 {
                return Ok(id);
            }
            id = page.links.get(index).ok_or(Corrupt)?.page();
        }
    }

    /// Goes down from the root, makes what is missing, and installs the leaf.
    pub(super) fn map(
        &mut self,
        root: PageId,
        mapping: &Mapping<'_>,
        ahead: Option<&Ahead>,
        view: &View<'_, P>,
        cache: &mut Cache<P>,
    ) -> Result<Resolved, Stop> {
        let access = mapping.access;
        let mut id = self.descend(root, access.at)?;
        loop {
            let page = self.arena.get_mut(id)?;
            page.writes = 0;
            let (level, ready) = (page.role.level, page.readable_after);
            if page.sync == Sync::InStep && !self.open.flushes.is_done(ready) {
                // Processors that know the guest's table as ordinary memory may still write it unseen. Whoever gets out
                // of the lock flushes.
                return Err(Stop::Again);
            }
            let index = index_at(access.at, level);
            let (entry, link) = (page.table.entry(index).load(SeqCst), page.links.get(index).copied());
            let wanted = Self::wanted(page, index, access)?;
            if let Expected::Child { gfn, role } = &wanted
                && entry != 0
                && !(level == LARGE_LEVEL && (mapping.large || is_leaf(level, entry)))
            {
                // The usual case: it leads there already.
                let (child, direct) = (link.ok_or(Corrupt)?.page(), role.direct());
                let page = self.arena.get(child)?;
                if page.role == *role && page.gfn == if direct { *gfn } else { view.unalias(*gfn) } {
                    id = child;
                    continue;
                }
            }
            match wanted {
                Expected::Nothing => return Err(Stop::Again),
                Expected::Page { gfn, access: rights } => {
                    debug_assert_eq!(gfn, access.gpa >> PAGE_SHIFT);
                    let resolved = self.map_leaf(id, index, rights, mapping, view)?;
                    if let Some(ahead) = ahead {
                        self.map_ahead(id, index, ahead)?;
                    }
                    return Ok(resolved);
                }
                Expected::Child { gfn, role }
                    if level == LARGE_LEVEL && self.takes_large(id, index, (gfn, &role), mapping)? =>
                {
                    return self.map_leaf(id, index, role.access, mapping, view);
                }
                Expected::Child { gfn, role } => {
                    if let Some(large) = self.large_at(id, index)? {
                        self.split(id, index, large, role, mapping.hpa, cache)?;
                        return Err(Stop::Again);
                    }
                    id = self.child(id, index, gfn, role, view, cache)?;
                }
            }
        }
    }

    /// The page that entry `index` has to lead to; made, and linked, if it does not.
    fn child(
        &mut self,
        id: PageId,
        index: usize,
        gfn: u64,
        role: Role,
        view: &View<'_, P>,
        cache: &mut Cache<P>,
    ) -> Result<PageId, Stop> {
        let gfn = if role.direct() { gfn } else { view.unalias(gfn) };
        if self.spte(id, index)? != 0 {
            let child = self.link(id, index)?.page();
            let page = self.arena.get(child)?;
            if page.gfn == gfn && page.role == role {
                return Ok(child);
            }
            // It was for another frame or another role (CVE-2026-53359): it goes, and every processor forgets it,
            // before another one takes its place.
            self.remove_entry(id, index)?;
            return Err(Stop::Again);
        }
        let child = match self.find(gfn, &role)? {
            Some(child) => {
                // Who could not reach it remembers nothing of it.
                self.settle_under(child, view)?;
                child
            }
            None => self.create(cache, gfn, role)?,
        };
        self.add_child(id, index, child)?;
        Ok(child)
    }

    /// Makes the page for (gfn, role). If it shadows a guest table, and the guest may not write that, the frame loses write access
    /// everywhere, and the table is not read before processors know.
    pub(super) fn create(&mut self, cache: &mut Cache<P>, gfn: u64, role: Role) -> Result<PageId, Stop> {
        let id = cache.place(self).ok_or(Stop::Short)?;
        let page = self.arena.get_mut(id)?;
        (page.gfn, page.role) = (gfn, role);
        self.open.counters.count(Counter::Created);
        let unsync = !role.direct() && role.level == 1 && self.may_begin_unsync(gfn)?;
        // In the hash first: writers that do not go through processors look there after they have written.
        self.enter_hash(id)?;
        if unsync {
            self.enlist(id)?;
        } else if !role.direct() {
            self.arena.get_mut(id)?.readable_after = self.close(gfn)?;
        }
        Ok(id)
    }

    fn map_leaf(
        &mut self,
        id: PageId,
        index: usize,
        rights: role::Access,
        mapping: &Mapping<'_>,
        view: &View<'_, P>,
    ) -> Result<Resolved, Stop> {
        let access = mapping.access;
        let role = self.arena.get(id)?.role;
        let large = role.level == LARGE_LEVEL;
        let within = if large { LARGE_FRAMES - 1 } else { 0 };
        let (raw, hpa) = (access.gpa >> PAGE_SHIFT & !within, mapping.hpa & !(within << PAGE_SHIFT));
        let gfn = view.unalias(raw);
        let write = access.request.is_write();
        let may_write = mapping.host_writable && !mapping.frame.read_only;
        let mut table = self.is_protected(gfn)?;
        if table && write && may_write {
            table = !self.let_write(gfn, view)?;
        }
        let writable = may_write
            && !table
            // Until a page is marked in the dirty log, writes have to come here. Code marks its page, as on Linux's KVM.
            && (write || access.request.is_fetch() || !mapping.frame.log_dirty);
        let kind = if write && !access.request.is_user() { Kind::Supervisor } else { Kind::Plain };
        let new = Leaf { large, ..leaf(&role, rights, kind, hpa, writable) };
        if new.write && mapping.frame.log_dirty {
            // Under the lock, as the reader of the log takes write access away under it after it has taken the bits.
            view.mark_dirty(raw);
        }
        let old = self.spte(id, index)?;
        if old != 0 && (self.link(id, index)?.gfn() != gfn || Leaf::decode(old).hpa != hpa) {
            // Another page: every processor forgets it before this one takes its place.
            self.remove_entry(id, index)?;
            return Err(Stop::Again);
        }
        let changed = if old == 0 {
            self.add_leaf(id, index, gfn, new)?;
            true
        } else if Leaf::decode(old) != new && (write || !Leaf::decode(old).covers(new)) {
            self.change_leaf(id, index, new)?;
            true
        } else {
            false
        };
        if write && table {
            return Ok(Resolved::Table { gpa: access.gpa });
        }
        if write && !new.write {
            // CR0.WP is clear and SMAP is set: a page of the supervisor's would let everything through.
            return Ok(Resolved::Emulate);
        }
        self.open.counters.count(if changed { Counter::Fixed } else { Counter::Spurious });
        if changed && large {
            self.open.counters.count(Counter::Large);
        }
        Ok(Resolved::Retry)
    }
}

/// Bits that a processor sets in the entries that it uses; a table in read-only memory counts as if they were there.
const fn used_bits(request: Request) -> u64 {
    if request.is_write() { bits::A | bits::D } else { bits::A }
}

impl<P: Platform> super::page::ShadowPage<P> {
    /// What entry `index` of a direct page has to be.
    pub(super) fn expected_direct(&self, index: usize) -> Expected {
        let gfn = self.direct_gfn(index);
        if self.role.level == 1 {
            Expected::Page { gfn, access: self.role.access }
        } else {
            Expected::Child { gfn, role: self.role.direct_below(self.role.access) }
        }
    }
}
