//! The walk of shadow tables: what the memory unit of a processor without nested paging does. The core gives a root with each
//! entry into the guest and fills the tables behind it; what is not there, or not allowed, leaves the guest as
//! [`Exit::PageFault`](hv::backend::Exit::PageFault).
//!
//! A host-physical address is an address in this process. The code map and the block cache, which otherwise know pages by
//! their guest-physical addresses, know them by that: it is all that such a processor learns, and the same memory has one
//! name however many guest-physical addresses it has.
use core::{
    marker::PhantomData,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire},
    },
};

use mmu::{
    MemoryError, Paging, Request, TableMemory, Translation,
    shadow::Root,
    walk,
    walk::{Trace, walk_traced},
};
use platform::{Hva, Platform, TablePage, Word};
use x86::paging::{NX, PAGE_SHIFT, U, W};

use crate::{SoftVcpu, kept::Known, memory::Miss};

/// The core's tables of the stay in the guest that is going on, shadow ones or nested ones.
pub(crate) struct Tables<P>(pub(crate) PhantomData<P>);

impl<P: Platform> Tables<P> {
    fn entry(&self, hpa: u64) -> &AtomicU64 {
        // SAFETY: a walk starts at the root that this entry into the guest came with, or at a table that was found since
        // the last flush, and goes on at frames of present entries that it has just read; `self` does not outlive it.
        unsafe { P::TablePage::entry_at(hpa & !0xfff, (hpa & 0xfff) as usize / 8) }
    }
}

impl<P: Platform> TableMemory for Tables<P> {
    fn load_entry<W: Word>(&self, hpa: u64) -> Result<W, MemoryError> {
        Ok(W::from_low(self.entry(hpa).load(Acquire)))
    }

    fn exchange_entry<W: Word>(&self, hpa: u64, old: W, new: W) -> Result<W, MemoryError> {
        let done = self.entry(hpa).compare_exchange(old.low(), new.low(), AcqRel, Acquire);
        Ok(W::from_low(done.unwrap_or_else(|seen| seen)))
    }
}

/// Where the walks of one stay in the guest begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    root: Root,
    /// Entries of the root of three levels, which a processor keeps in registers.
    pdptes: [u64; 4],
}

impl Start {
    /// No tables yet.
    pub(crate) const NONE: Self = Self { root: Root::NONE, pdptes: [0; 4] };

    /// With the root of an entry into the guest.
    fn new<P: Platform>(root: Root) -> Self {
        let tables = Tables::<P>(PhantomData);
        let mut pdptes = [0; 4];
        if root.levels == 3 {
            for (n, pdpte) in pdptes.iter_mut().enumerate() {
                *pdpte = tables.entry(root.hpa + 8 * n as u64).load(Acquire);
            }
        }
        Self { root, pdptes }
    }

    /// How tables are walked that `guest`'s registers alone would have walked otherwise.
    pub(crate) fn paging(&self, guest: &Paging) -> Paging {
        guest.shadowed(self.root, self.pdptes)
    }
}

impl<P: Platform> SoftVcpu<P> {
    /// Begins a stay in the guest with `root`. False: there is nothing to walk.
    pub(crate) fn set_root(&mut self, root: Root) -> bool {
        if !matches!(root.levels, 3 | 4) {
            return false;
        }
        self.start = Some(Start::new::<P>(root));
        self.refresh_paging();
        true
    }

    /// The walk of the shadow tables.
    pub(crate) fn walk_shadow(&mut self, linear: u64, request: Request) -> Result<Known, Miss> {
        let tables = Tables::<P>(PhantomData);
        if let Some(table) = self.kept.as_ref().and_then(|kept| kept.table(linear))
            && let Ok(translation) = walk(&tables, &self.paging.last_level(table), linear, request)
        {
            return Ok(known(&translation));
        }
        let mut trace = Trace::default();
        let result = walk_traced(&tables, &self.paging, linear, request, &mut trace);
        let translation = result.map_err(Miss::Walk)?;
        if let Some(kept) = &mut self.kept
            && let [above @ .., last] = trace.steps()
            && translation.page_shift == PAGE_SHIFT
            && above.iter().all(|step| step.entry & (W | U | NX) == W | U)
        {
            kept.keep_table(linear, last.gpa & !0xfff);
        }
        Ok(known(&translation))
    }
}

/// Everything that the processor learns of a page.
fn known(translation: &Translation) -> Known {
    let page = translation.gpa & !0xfff;
    Known { hva: Hva(page), gpa: page, rights: translation.rights, writable: true, shift: translation.page_shift }
}
