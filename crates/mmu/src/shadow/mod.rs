//! Shadow paging: tables for the processor to walk, made of the guest's tables, page fault by page fault; and nested paging,
//! which is the same without tables of the guest.
//!
//! The processor must not use the guest's own tables, as they speak of guest-physical memory. It walks *shadow pages*
//! instead (`page`). Each stands for one table of the guest, seen in one `role`, and is found by the table's frame
//! and that role, so that it serves every address space that uses the table and is still there when one comes back. A
//! shadow entry (`spte`) is made when the processor faults for want of it (`fault`), of the guest's entry (`expect`).
//! From then on the guest must not change an entry that leads to a table unseen: the frames of those tables are write-protected, by way of
//! the reverse map (`rmap`) from each frame to all entries that map it, and writes to them are emulated and
//! applied here (`write`). Tables of the last level it may write as it likes, until it flushes (`unsync`). The host may take pages back (`invalidate`); the number of shadow pages is bounded (`reclaim`).
//! Guests with paging off and nested paging use the same pages in a direct role, which has no guest table (`nested`, `large`).
//!
//! # Locking
//! Everything is under the MMU lock of the VM (`tables`), which is held for moments, never over a sleep, an allocation or
//! a wait. What is read without it is in `Open`. Memory comes from a [`Cache`] that was filled before.
//!
//! # Flushing
//! Processors remember translations. Whatever takes one away returns a [`FlushDue`], to be fulfilled after the
//! lock has been given back and before anybody relies on the change; a shadow page is freed only then (`life`). Before a page counts as
//! in step with its guest table, every processor has forgotten that it could write there.
//!
//! # If something is wrong
//! Pages refer to each other by places and generations, not by pointers. A reference that finds nothing, or an entry that
//! is not what its neighbours say, ends the VM ([`ShadowError::Dead`], EIO); it cannot harm the host. `audit`
//! looks whether everything agrees.
mod ahead;
mod arena;
mod audit;
#[cfg(test)]
mod audit_tests;
mod cache;
mod expect;
mod fault;
mod invalidate;
mod large;
mod life;
mod map;
mod nested;
mod open;
mod page;
mod present;
mod reclaim;
mod rmap;
mod role;
mod root;
mod roots;
mod spte;
mod stats;
mod tables;
mod unsync;
mod write;

use core::{fmt, sync::atomic::Ordering::SeqCst};

use platform::{MaySleep, OutOfMemory, Platform, Shared, SpinLock, lock::rank};

use crate::{AddressSpace, walk::Paging};
use arena::Corrupt;
use fault::ATTEMPTS;
use map::Stop;
use open::Open;
use tables::Tables;

pub use audit::{AuditError, Finding, Report, Rule};
pub use cache::Cache;
pub use fault::Resolved;
pub use life::FlushDue;
pub use reclaim::{LEAST_PAGES, default_limit};
pub use root::Root;
pub use spte::EntryFormat;
pub use stats::Counter;
pub use write::Written;

/// Why shadow paging cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowError {
    /// No memory for shadow pages: ENOMEM. Nothing has changed.
    OutOfMemory,
    /// The tables were found in disorder: the VM is over, EIO.
    Dead,
}

impl fmt::Display for ShadowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "out of memory for shadow pages",
            Self::Dead => "shadow tables in disorder: the virtual machine is stopped",
        })
    }
}

/// The shadow tables of a VM.
pub struct Shadow<P: Platform> {
    tables: SpinLock<P, Tables<P>>,
    open: Shared<Open>,
}

impl<P: Platform> fmt::Debug for Shadow<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow").finish_non_exhaustive()
    }
}

impl<P: Platform> Shadow<P> {
    /// Empty shadow tables for vCPUs 0 to `vcpus - 1`.
    pub fn new(vcpus: usize, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Self::build(vcpus, None, cx)
    }

    fn build(vcpus: usize, nested: Option<EntryFormat>, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let open = Shared::try_new(Open::new(vcpus, nested)?)?;
        let tables = Tables::new(open.clone(), vcpus, LEAST_PAGES)?;
        Ok(Self { tables: SpinLock::<P, _>::new(rank::MMU, tables)?, open })
    }

    /// Runs `f` with the lock held. What is due for what it did comes back beside its result, also if it failed. A
    /// failure for disorder is the VM's last.
    fn locked<R, E: From<Corrupt> + PartialEq>(
        &self,
        f: impl FnOnce(&mut Tables<P>) -> Result<R, E>,
    ) -> (Result<R, E>, FlushDue<P>) {
        let mut tables = self.tables.lock();
        if self.open.dead.load(SeqCst) {
            return (Err(Corrupt.into()), tables.take_due());
        }
        let result = f(&mut tables);
        if result.as_ref().err() == Some(&E::from(Corrupt)) {
            self.open.dead.store(true, SeqCst);
        }
        (result, tables.take_due())
    }

    /// Does what is due after a change, without the MMU lock. `flush` makes every vCPU of the VM forget its translations, and
    /// returns when each has done so or is outside the guest and will before it enters. It is not called if
    /// somebody else's flush has come late enough.
    pub fn fulfil(&self, due: FlushDue<P>, flush: impl FnOnce()) {
        due.fulfil(&self.open.flushes, None, flush);
    }

    /// The same by a vCPU, whose cache may keep what would be given back.
    pub fn fulfil_into(&self, cache: &mut Cache<P>, due: FlushDue<P>, flush: impl FnOnce()) {
        due.fulfil(&self.open.flushes, Some(cache), flush);
    }

    /// Whether nothing is due: [`Self::fulfil`] would neither flush nor free.
    pub fn is_nothing(&self, due: &FlushDue<P>) -> bool {
        due.is_nothing(&self.open.flushes)
    }

    /// The root that vCPU `vcpu` (its reader number too) has to walk while its registers say `paging`. If it is another one
    /// than before, the vCPU flushes its own translations before it enters. `flush` is as for [`Self::fulfil`].
    pub fn load_root(
        &self,
        vcpu: usize,
        paging: &Paging,
        memory: &AddressSpace<P>,
        cache: &mut Cache<P>,
        cx: &MaySleep,
        flush: impl FnMut(),
    ) -> Result<Root, ShadowError> {
        self.load_root_of(vcpu, Some(paging), memory, cache, cx, flush)
    }

    fn load_root_of(
        &self,
        vcpu: usize,
        paging: Option<&Paging>,
        memory: &AddressSpace<P>,
        cache: &mut Cache<P>,
        cx: &MaySleep,
        mut flush: impl FnMut(),
    ) -> Result<Root, ShadowError> {
        for _ in 0..ATTEMPTS {
            cache.fill(&self.open, cx)?;
            let (result, due) = self.locked(|tables| {
                cache.give_room(tables);
                tables.stay_bounded()?;
                let view = memory.view(vcpu).ok_or(Corrupt)?;
                tables.load_root(vcpu, paging, cache, |gfn| view.unalias(gfn))
            });
            cache.tidy(&self.open);
            self.fulfil_into(cache, due, &mut flush);
            match result {
                Ok(root) => return Ok(root),
                Err(Stop::Short | Stop::Again) => {}
                Err(Stop::Corrupt) => return Err(ShadowError::Dead),
            }
        }
        // Others have taken every place each time.
        Err(ShadowError::OutOfMemory)
    }

    /// Whether vCPU `vcpu` has to load its root again, although its registers have not changed. Without a lock; asked
    /// after "in the guest" has been published, so that a root that goes away later makes the vCPU leave again.
    pub fn root_is_stale(&self, vcpu: usize) -> bool {
        self.open.stale_root(vcpu).is_some_and(|stale| stale.load(SeqCst))
    }

    /// The vCPU walks nothing any more.
    pub fn unload_root(&self, vcpu: usize) -> FlushDue<P> {
        self.locked(|tables| tables.unload_root(vcpu)).1
    }

    /// Whether frame `gfn` (no alias) holds a shadowed guest table that the guest must not write unseen.
    #[cfg(feature = "testing")]
    pub fn is_protected(&self, gfn: u64) -> bool {
        let (result, due) = self.locked(|tables| tables.is_protected(gfn));
        due.abandon();
        result.unwrap_or(true)
    }

    /// The values of [`Counter`], in order.
    pub fn counter(&self, index: usize) -> u64 {
        self.open.counters.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use life::UnlinkedPages;
    use page::{PageId, ShadowPage};
    use platform::testing::Test;
    use role::Role;

    const CX: MaySleep = MaySleep::at_entry();

    fn page(tables: &mut Tables<Test>) -> PageId {
        let room = arena::Room::new(16).unwrap();
        let _ = tables.arena.grow(room);
        tables.arena.insert(ShadowPage::new(false, &CX).unwrap()).ok().unwrap()
    }

    #[test]
    fn a_stale_handle_ends_the_vm_and_harms_nobody() {
        let shadow = Shadow::<Test>::new(1, &CX).unwrap();
        let (stale, due) = shadow.locked(|tables| {
            let id = page(tables);
            let unlinked = tables.arena.remove(id)?;
            tables.unlinked.push(unlinked);
            // The place is used again, by another page.
            let next = page(tables);
            assert_eq!((next.slot, next == id), (id.slot, false));
            Ok::<_, Corrupt>(id)
        });
        shadow.fulfil(due, || {});
        let stale = stale.unwrap();
        let (result, due) = shadow.locked(|tables| tables.zap(stale));
        shadow.fulfil(due, || {});
        assert_eq!(result, Err(Corrupt));
        // From now on nothing works any more.
        assert_eq!(shadow.check_alive(), Err(ShadowError::Dead));
        let memory = AddressSpace::<Test>::new(1, &CX).unwrap();
        let state = x86::CpuState::reset(0);
        let paging = Paging::new(&state, x86::Features::all(), 40);
        let mut cache = Cache::default();
        let root = shadow.load_root(0, &paging, &memory, &mut cache, &CX, || {});
        assert_eq!(root, Err(ShadowError::Dead));
    }

    #[test]
    fn a_page_that_something_leads_to_is_not_unlinked() {
        let shadow = Shadow::<Test>::new(1, &CX).unwrap();
        let mut tables = shadow.tables.lock();
        let (parent, child) = (page(&mut tables), page(&mut tables));
        let role = Role { level: 2, ..tables.arena.get(parent).unwrap().role };
        tables.arena.get_mut(parent).unwrap().role = role;
        tables.arena.get_mut(child).unwrap().role = role.direct_below(role.access);
        tables.add_child(parent, 7, child).unwrap();
        assert_eq!(tables.arena.remove(child).err(), Some(Corrupt), "it has a parent");
        assert_eq!(tables.arena.remove(parent).err(), Some(Corrupt), "it has an entry");
        tables.remove_entry(parent, 7).unwrap();
        tables.arena.get_mut(child).unwrap().roots = 1;
        assert_eq!(tables.arena.remove(child).err(), Some(Corrupt), "it is a root");
        tables.arena.get_mut(child).unwrap().roots = 0;
        let page = tables.arena.remove(child).unwrap();
        tables.unlinked.push(page);
        let due = tables.take_due();
        assert!(!due.is_nothing(&tables.open.flushes));
        drop(tables);
        let mut flushed = 0;
        shadow.fulfil(due, || flushed += 1);
        assert_eq!(flushed, 1);
    }

    #[test]
    fn a_cache_makes_more_room_than_it_has_if_others_were_faster() {
        let shadow = Shadow::<Test>::new(1, &CX).unwrap();
        let mut tables = shadow.tables.lock();
        let (mut slow, mut fast) = (Cache::default(), Cache::default());
        slow.fill(&shadow.open, &CX).unwrap();
        fast.fill(&shadow.open, &CX).unwrap();
        fast.give_room(&mut tables);
        fast.tidy(&shadow.open);
        // All that there is now is used before the slow one comes.
        while fast.place(&mut tables).is_some() {
            fast.fill(&shadow.open, &CX).unwrap();
        }
        slow.give_room(&mut tables);
        slow.tidy(&shadow.open);
        assert!(slow.place(&mut tables).is_none(), "its room is of no use");
        slow.fill(&shadow.open, &CX).unwrap();
        slow.give_room(&mut tables);
        assert!(slow.place(&mut tables).is_some());
    }

    #[test]
    fn there_are_no_more_pages_than_places() {
        let shadow = Shadow::<Test>::new(1, &CX).unwrap();
        let (result, due) = shadow.set_limit(usize::MAX);
        due.abandon();
        assert_eq!(result, Ok(()));
        assert!(shadow.usage().0 < page::MAX_SLOTS as usize && default_limit(u64::MAX) < page::MAX_SLOTS as usize);
    }

    #[test]
    fn a_flush_serves_everything_that_was_due_before_it() {
        let flushes = life::Flushes::default();
        let due = |number| FlushDue::<Test>::new(number, UnlinkedPages::new());
        let (first, second) = (flushes.need(), flushes.need());
        let mut flushed = 0;
        due(second).fulfil(&flushes, None, || flushed += 1);
        due(first).fulfil(&flushes, None, || flushed += 1);
        assert_eq!(flushed, 1);
        let third = flushes.need();
        // What became due while another flush ran is not served by it.
        let mut fourth = 0;
        due(third).fulfil(&flushes, None, || fourth = flushes.need());
        assert!(flushes.is_done(third) && !flushes.is_done(fourth));
        assert!(due(fourth).and(due(first)).number() == fourth);
    }
}
