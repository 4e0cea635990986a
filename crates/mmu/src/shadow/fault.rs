//! A page fault of the processor: shadow entry missing, guest's own fault, or an access to be emulated.
//!
//! The order matters: read the sequence of the host's invalidations; walk the guest's tables and find the
//! host's frame, without a lock; then take the lock and look whether the sequence, the slots, the root and every guest
//! entry that was used are still what they were; then install from the cache. Whatever does not hold any more starts
//! over, a bounded number of times.
use core::sync::atomic::Ordering::SeqCst;

use platform::{Hva, MaySleep, Memory, OutOfMemory, Platform};
use x86::paging::{self as bits, PAGE_SHIFT, PAGE_SIZE};

use super::{
    Shadow, ShadowError,
    arena::Corrupt,
    cache::Cache,
    expect::{Expected, Kind, expected, leaf},
    life::FlushDue,
    page::PageId,
    role::Role,
    roots::expected_pdpte,
    spte::Leaf,
    stats::Counter,
    tables::Tables,
};
use crate::{
    AddressSpace, Frame, MemoryError, View,
    walk::{Paging, PagingMode, Request, Trace, WalkError, walk_traced},
};

/// How often a fault starts over before the guest is entered again, to fault again.
const ATTEMPTS: u32 = 16;

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The access is possible now, or should be tried again: enter the guest.
    Retry,
    /// #PF with this error code is the guest's.
    Guest(u32),
    /// No memory serves the access (or it is read-only, and this is a write): the instruction is emulated.
    Device {
        /// Its guest-physical address.
        gpa: u64,
    },
    /// A write to a frame that holds a shadowed guest table: the instruction is emulated, and its writes told by
    /// [`Shadow::written`]. If it cannot be emulated, [`Shadow::unprotect`] the frame.
    Table {
        /// Guest-physical address of the write.
        gpa: u64,
    },
    /// A write that is allowed but for which no entry can be made: the instruction is emulated.
    Emulate,
    /// The client took the memory away: EFAULT.
    BadAddress {
        /// Guest-physical address.
        gpa: u64,
    },
}

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

/// An access whose page is to be mapped, as far as it is known without the lock.
struct Access {
    gva: u64,
    request: Request,
    paging: Paging,
    trace: Trace,
    /// For each entry of the trace: where it is, and that its frame cannot be written.
    places: [(Hva, bool); Trace::MOST],
    gpa: u64,
    frame: Frame,
    /// The host's frame.
    hpa: u64,
    host_writable: bool,
    /// The state of the world before it was looked at.
    sequence: u64,
    generation: u64,
}

impl<P: Platform> Shadow<P> {
    /// Handles a fault of vCPU `vcpu` (its reader number too) at `gva`. `paging` is what its registers say; its root was
    /// loaded for the same. `flush` is called as [`Shadow::fulfil`] says, without the lock, perhaps several times.
    #[allow(clippy::too_many_arguments)] // each is another owner's
    pub fn fault(
        &self,
        vcpu: usize,
        gva: u64,
        request: Request,
        paging: &Paging,
        memory: &AddressSpace<P>,
        cache: &mut Cache<P>,
        cx: &MaySleep,
        mut flush: impl FnMut(),
    ) -> Result<Resolved, ShadowError> {
        for _ in 0..ATTEMPTS {
            cache.fill(&self.open, cx)?;
            if self.open.invalidating.load(SeqCst) != 0 {
                P::relax(cx);
                continue;
            }
            let access = match self.look(vcpu, gva, request, paging, memory, cx)? {
                Ok(access) => access,
                Err(resolved) => return Ok(self.counted(resolved)),
            };
            let (result, due) = self.install(vcpu, &access, memory, cache);
            cache.tidy(&self.open);
            self.fulfil(due, &mut flush);
            match result {
                Ok(resolved) => return Ok(self.counted(resolved)),
                Err(Stop::Again) => self.open.counters.count(Counter::Again),
                Err(Stop::Short) => {}
                Err(Stop::Corrupt) => return Err(ShadowError::Dead),
            }
        }
        Ok(Resolved::Retry)
    }

    fn counted(&self, resolved: Resolved) -> Resolved {
        match resolved {
            Resolved::Guest(_) => self.open.counters.count(Counter::Guest),
            Resolved::Device { .. } | Resolved::Table { .. } | Resolved::Emulate => {
                self.open.counters.count(Counter::Emulate);
            }
            Resolved::Retry | Resolved::BadAddress { .. } => {}
        }
        resolved
    }

    /// Everything that is done without the lock. Inner `Err`: the fault is not about a missing entry.
    fn look(
        &self,
        vcpu: usize,
        gva: u64,
        request: Request,
        paging: &Paging,
        memory: &AddressSpace<P>,
        cx: &MaySleep,
    ) -> Result<Result<Access, Resolved>, ShadowError> {
        let sequence = self.open.sequence.load(SeqCst);
        let generation = memory.generation();
        let view = memory.view(vcpu).ok_or(ShadowError::Dead)?;
        let (walked, trace) = walk_traced(&*view, paging, gva, request);
        let translation = match walked {
            Ok(translation) => translation,
            Err(WalkError::Fault(code)) => return Ok(Err(Resolved::Guest(code))),
            Err(WalkError::Contended) => return Ok(Err(Resolved::Retry)),
            Err(WalkError::Memory(MemoryError::BadAddress(gpa))) => return Ok(Err(Resolved::BadAddress { gpa })),
            // Tables where no memory is harm only this guest (row B06): nothing there is present.
            Err(WalkError::Memory(_)) => return Ok(Err(Resolved::Guest(request.fault_code(paging)))),
        };
        let mut places = [(Hva(0), false); Trace::MOST];
        for (place, step) in places.iter_mut().zip(trace.steps()) {
            let Some(frame) = view.resolve(step.gpa >> PAGE_SHIFT) else { return Ok(Err(Resolved::Retry)) };
            *place = (frame.hva.add(step.gpa % PAGE_SIZE), frame.read_only);
        }
        let gpa = translation.gpa;
        let Some(frame) = view.resolve(gpa >> PAGE_SHIFT) else { return Ok(Err(Resolved::Device { gpa })) };
        if frame.read_only && request.is_write() {
            return Ok(Err(Resolved::Device { gpa }));
        }
        drop(view);
        let Ok(host) = P::host_frame(frame.hva, request.is_write(), cx) else {
            return Ok(Err(Resolved::BadAddress { gpa }));
        };
        Ok(Ok(Access {
            gva,
            request,
            paging: *paging,
            trace,
            places,
            gpa,
            frame,
            hpa: host.hpa,
            host_writable: host.writable,
            sequence,
            generation,
        }))
    }

    /// Everything that is done with the lock.
    fn install(
        &self,
        vcpu: usize,
        access: &Access,
        memory: &AddressSpace<P>,
        cache: &mut Cache<P>,
    ) -> (Result<Resolved, Stop>, FlushDue<P>) {
        self.locked(|tables| {
            let view = memory.view(vcpu).ok_or(Corrupt)?;
            if tables.open.sequence.load(SeqCst) != access.sequence
                || tables.open.invalidating.load(SeqCst) != 0
                || memory.generation() != access.generation
            {
                return Err(Stop::Again);
            }
            tables.recheck(access)?;
            let Some(root) = tables.root(vcpu, &access.paging) else {
                // Somebody zapped it: it is loaded again before the next entry.
                return Ok(Resolved::Retry);
            };
            cache.give_room(tables);
            tables.stay_bounded()?;
            tables.map(root, access, &view, cache)
        })
    }
}

impl<P: Platform> Tables<P> {
    /// Whether every guest entry is what it was.
    fn recheck(&self, access: &Access) -> Result<(), Stop> {
        for (step, (hva, _)) in access.trace.steps().iter().zip(&access.places) {
            let now = if access.paging.mode == PagingMode::Bits32 {
                P::Memory::load_atomic::<u32>(*hva).map(u64::from)
            } else {
                P::Memory::load_atomic::<u64>(*hva)
            };
            if now != Ok(step.entry) {
                return Err(Stop::Again);
            }
        }
        Ok(())
    }

    /// What entry `index` of `page` has to be for this access.
    fn wanted(&self, id: PageId, index: usize, access: &Access) -> Result<Expected, Stop> {
        let page = self.arena.get(id)?;
        if page.own_root {
            return Ok(expected_pdpte(&access.paging, index));
        }
        if page.role.direct() {
            return Ok(page.expected_direct(index));
        }
        let at = access.paging.levels.checked_sub(page.role.level.into()).ok_or(Corrupt)? as usize;
        let step = access.trace.steps().get(at).ok_or(Corrupt)?;
        let mut entry = step.entry;
        if access.places.get(at).is_some_and(|(_, read_only)| *read_only) {
            entry |= used_bits(access.request);
        }
        Ok(expected(&page.role, index, entry))
    }

    /// Goes down from the root, makes what is missing, and installs the leaf.
    fn map(
        &mut self,
        root: PageId,
        access: &Access,
        view: &View<'_, P>,
        cache: &mut Cache<P>,
    ) -> Result<Resolved, Stop> {
        let mut id = root;
        loop {
            let page = self.arena.get_mut(id)?;
            page.writes = 0;
            let (level, ready) = (page.role.level, page.readable_after);
            if !self.open.flushes.is_done(ready) {
                // Processors that know the guest's table as ordinary memory may still write it unseen. Whoever gets out
                // of the lock flushes.
                return Err(Stop::Again);
            }
            let index = (access.gva >> (12 + 9 * (u32::from(level) - 1))) as usize & 511;
            match self.wanted(id, index, access)? {
                Expected::Nothing => return Err(Stop::Again),
                Expected::Page { gfn, access: rights } => {
                    debug_assert_eq!(gfn, access.gpa >> PAGE_SHIFT);
                    return self.map_leaf(id, index, rights, access, view);
                }
                Expected::Child { gfn, role } => id = self.child(id, index, gfn, role, view, cache)?,
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
            Some(child) => child,
            None => self.create(cache, gfn, role)?,
        };
        self.add_child(id, index, child)?;
        Ok(child)
    }

    /// Makes the page for (gfn, role). If it shadows a guest table, the frame loses write access everywhere, and the table
    /// is not read before processors know.
    pub(super) fn create(&mut self, cache: &mut Cache<P>, gfn: u64, role: Role) -> Result<PageId, Stop> {
        let id = cache.place(self).ok_or(Stop::Short)?;
        let page = self.arena.get_mut(id)?;
        (page.gfn, page.role) = (gfn, role);
        self.open.counters.count(Counter::Created);
        // In the hash first: writers that do not go through processors look there after they have written.
        self.enter_hash(id)?;
        if !role.direct() {
            self.protect(gfn..gfn + 1)?;
            // Also what others have taken away, and not flushed yet, may be a way to write this frame.
            let flushes = &self.open.flushes;
            self.arena.get_mut(id)?.readable_after = flushes.needed() + u64::from(self.must_flush);
        }
        Ok(id)
    }

    fn map_leaf(
        &mut self,
        id: PageId,
        index: usize,
        rights: super::role::Access,
        access: &Access,
        view: &View<'_, P>,
    ) -> Result<Resolved, Stop> {
        let raw = access.gpa >> PAGE_SHIFT;
        let gfn = view.unalias(raw);
        let role = self.arena.get(id)?.role;
        let write = access.request.is_write();
        let table = self.is_table(gfn)?;
        let writable = access.host_writable
            && !access.frame.read_only
            && !table
            // Until a page is marked in the dirty log, writes have to come here.
            && (write || !access.frame.log_dirty);
        let kind = if write && !access.request.is_user() { Kind::Supervisor } else { Kind::Plain };
        let new = leaf(&role, rights, kind, access.hpa, writable);
        if new.write && access.frame.log_dirty {
            // Under the lock, as the reader of the log takes write access away under it after it has taken the bits.
            view.mark_dirty(raw);
        }
        let old = self.spte(id, index)?;
        if old != 0 && (self.link(id, index)?.gfn() != gfn || Leaf::decode(old).hpa != access.hpa) {
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

impl From<OutOfMemory> for ShadowError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}
