//! A page fault of the processor: shadow entry missing, guest's own fault, or an access to be emulated.
//!
//! The order matters: read the sequence of the host's invalidations; walk the guest's tables and find the
//! host's frame, without a lock; then take the lock and look whether the sequence, the slots, the root and every guest
//! entry that was used are still what they were; then install from the cache (`map`). Whatever does not hold any more
//! starts over, a bounded number of times. Faults on nested tables go the same way, without a walk (`nested`).
use core::sync::atomic::Ordering::SeqCst;

use platform::{Hva, MaySleep, Memory, OutOfMemory, Platform};
use x86::paging::{LARGE_PAGE_SHIFT, PAGE_SHIFT, PAGE_SIZE};

use super::{
    Shadow, ShadowError, ahead::Ahead, arena::Corrupt, cache::Cache, life::FlushDue, map::Stop, stats::Counter,
    tables::Tables,
};
use crate::{
    AddressSpace, Frame, MemoryError, View,
    slots::LARGE_FRAMES,
    walk::{Paging, PagingMode, Request, Trace, WalkError, walk_traced},
};

/// How often a fault starts over before the guest is entered again, to fault again.
pub(super) const ATTEMPTS: u32 = 16;

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The access is possible now, or should be tried again: enter the guest.
    Retry,
    /// #PF with this error code is the guest's. Not of nested tables.
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

/// Where an access leads in guest-physical memory, and what that was learnt from. It is large, and stays where it is made.
pub(super) struct Access<'a> {
    /// What the tables translate: a linear address, or a guest-physical one.
    pub(super) at: u64,
    pub(super) request: Request,
    /// What the guest's registers say of linear addresses; None: it is a guest-physical address, of nested tables.
    pub(super) paging: Option<&'a Paging>,
    pub(super) trace: Trace,
    /// For each entry of the trace: where it is, and that its frame cannot be written.
    pub(super) places: [(Hva, bool); Trace::MOST],
    pub(super) gpa: u64,
    /// How many pages follow in the guest's page, if that is a large one.
    pub(super) rest: u64,
}

impl<'a> Access<'a> {
    /// Nothing is known yet, but where it leads without tables of the guest's.
    pub(super) fn new(at: u64, request: Request, paging: Option<&'a Paging>) -> Self {
        let (trace, places) = (Trace::default(), [(Hva(0), false); Trace::MOST]);
        Self { at, request, paging, trace, places, gpa: at, rest: 0 }
    }
}

/// An access whose page is to be mapped, as far as it is known without the lock.
pub(super) struct Mapping<'a> {
    pub(super) access: &'a Access<'a>,
    pub(super) frame: Frame,
    /// The host's frame.
    pub(super) hpa: u64,
    pub(super) host_writable: bool,
    /// Nothing had to be waited for.
    pub(super) there: bool,
    /// The 2 MiB around it can be mapped at once.
    pub(super) large: bool,
    seen: Seen,
}

/// The state of the world before it was looked at.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    sequence: u64,
    generation: u64,
}

/// No entry is to be made.
pub(super) enum Otherwise {
    /// The fault is not about a missing one.
    Resolved(Resolved),
    /// The VM has come to its end.
    Dead,
}

impl From<Resolved> for Otherwise {
    fn from(resolved: Resolved) -> Self {
        Self::Resolved(resolved)
    }
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
        flush: impl FnMut(),
    ) -> Result<Resolved, ShadowError> {
        self.resolve(vcpu, Access::new(gva, request, Some(paging)), memory, cache, cx, flush)
    }

    /// Looks and installs until that has an end.
    pub(super) fn resolve(
        &self,
        vcpu: usize,
        mut access: Access<'_>,
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
            let mut ahead = None;
            let mapping = match self.look(vcpu, &mut access, &mut ahead, memory, cx) {
                Ok(mapping) => mapping,
                Err(Otherwise::Resolved(resolved)) => return Ok(self.counted(resolved)),
                Err(Otherwise::Dead) => return Err(ShadowError::Dead),
            };
            let (result, due) = self.install(vcpu, &mapping, ahead.as_ref(), memory, cache);
            cache.tidy(&self.open);
            self.fulfil_into(cache, due, &mut flush);
            match result {
                Ok(resolved) => return Ok(self.counted(resolved)),
                Err(Stop::Again) => self.open.counters.count(Counter::Again),
                Err(Stop::Short) => {}
                Err(Stop::Corrupt) => return Err(ShadowError::Dead),
            }
        }
        Ok(Resolved::Retry)
    }

    /// Everything that is done without the lock.
    fn look<'a>(
        &self,
        vcpu: usize,
        access: &'a mut Access<'_>,
        ahead: &mut Option<Ahead>,
        memory: &AddressSpace<P>,
        cx: &MaySleep,
    ) -> Result<Mapping<'a>, Otherwise> {
        // Asked before anything is looked at.
        let seen = Seen { sequence: self.open.sequence.load(SeqCst), generation: memory.generation() };
        let view = memory.view(vcpu).ok_or(Otherwise::Dead)?;
        if let Some(paging) = access.paging {
            Self::walk(&view, access, paging)?;
        }
        let mapping = Self::find(view, access, seen, cx)?;
        if mapping.there && mapping.access.rest != 0 {
            // Where one had to be brought in, others are not there.
            let view = memory.view(vcpu).ok_or(Otherwise::Dead)?;
            *ahead = Ahead::of(&view, &mapping, cx);
        }
        Ok(mapping)
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

    /// Walks the guest's tables.
    #[inline]
    fn walk(view: &View<'_, P>, access: &mut Access<'_>, paging: &Paging) -> Result<(), Resolved> {
        let (request, trace) = (access.request, &mut access.trace);
        let translation = match walk_traced(view, paging, access.at, request, trace) {
            Ok(translation) => translation,
            Err(WalkError::Fault(code)) => return Err(Resolved::Guest(code)),
            Err(WalkError::Contended) => return Err(Resolved::Retry),
            Err(WalkError::Memory(MemoryError::BadAddress(gpa))) => return Err(Resolved::BadAddress { gpa }),
            // Tables where no memory is harm only this guest (row B06): nothing there is present.
            Err(WalkError::Memory(_)) => return Err(Resolved::Guest(request.fault_code(paging))),
        };
        for (place, step) in access.places.iter_mut().zip(trace.steps()) {
            let frame = view.resolve(step.gpa >> PAGE_SHIFT).ok_or(Resolved::Retry)?;
            *place = (frame.hva.add(step.gpa % PAGE_SIZE), frame.read_only);
        }
        access.gpa = translation.gpa;
        access.rest = (!access.gpa & ((1 << translation.page_shift) - 1)) >> PAGE_SHIFT;
        Ok(())
    }

    /// Finds the host's page for an access.
    #[inline]
    fn find<'a>(
        view: View<'_, P>,
        access: &'a Access<'_>,
        seen: Seen,
        cx: &MaySleep,
    ) -> Result<Mapping<'a>, Otherwise> {
        let (gpa, write, fetch) = (access.gpa, access.request.is_write(), access.request.is_fetch());
        let gfn = gpa >> PAGE_SHIFT;
        let frame = view.resolve(gfn).ok_or(Resolved::Device { gpa })?;
        if frame.read_only && write {
            return Err(Resolved::Device { gpa }.into());
        }
        // A page that is to be logged is mapped for itself.
        let large = access.paging.is_none() && !((write || fetch) && frame.log_dirty) && view.is_large(gfn);
        drop(view);
        let host = P::host_frame(frame.hva, write, cx).map_err(|_| Resolved::BadAddress { gpa })?;
        let large =
            large && host.shift >= LARGE_PAGE_SHIFT && (host.hpa >> PAGE_SHIFT) % LARGE_FRAMES == gfn % LARGE_FRAMES;
        let (hpa, host_writable, there) = (host.hpa, host.writable, host.there);
        Ok(Mapping { access, frame, hpa, host_writable, there, large, seen })
    }

    /// Everything that is done with the lock.
    fn install(
        &self,
        vcpu: usize,
        mapping: &Mapping<'_>,
        ahead: Option<&Ahead>,
        memory: &AddressSpace<P>,
        cache: &mut Cache<P>,
    ) -> (Result<Resolved, Stop>, FlushDue<P>) {
        self.locked(|tables| {
            let view = memory.view(vcpu).ok_or(Corrupt)?;
            if tables.open.sequence.load(SeqCst) != mapping.seen.sequence
                || tables.open.invalidating.load(SeqCst) != 0
                || memory.generation() != mapping.seen.generation
            {
                return Err(Stop::Again);
            }
            tables.recheck(mapping.access)?;
            let Some(root) = tables.root(vcpu, mapping.access.paging) else {
                // Somebody zapped it: it is loaded again before the next entry.
                return Ok(Resolved::Retry);
            };
            cache.give_room(tables);
            tables.stay_bounded()?;
            tables.map(root, mapping, ahead, &view, cache)
        })
    }
}

impl<P: Platform> Tables<P> {
    /// Whether every guest entry is what it was.
    fn recheck(&self, access: &Access<'_>) -> Result<(), Stop> {
        let narrow = access.paging.is_some_and(|paging| paging.mode == PagingMode::Bits32);
        for (step, (hva, _)) in access.trace.steps().iter().zip(&access.places) {
            let now = if narrow {
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
}

impl From<OutOfMemory> for ShadowError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}
