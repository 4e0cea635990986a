//! The guest-physical address space of one VM: the published snapshot and the ioctls that replace it.
use alloc::vec::Vec;
use core::{
    fmt,
    ops::Deref,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use abi::{KVM_MEM_LOG_DIRTY_PAGES, KvmClearDirtyLog, KvmDirtyLog, KvmMemoryAlias};
use platform::{
    Hva, MaySleep, Mutex, OutOfMemory, Platform, Published, RawLock, Shared,
    fallible::try_box,
    lock::{Guard, rank},
    published::Section,
};
use x86::paging::PAGE_SHIFT;

use super::{Alias, Frame, NR_MEMSLOTS, OwnedMemory, Region, Slot, Snapshot};
use crate::{
    SlotError,
    dirty::{Bitmap, ManualProtect},
};

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Everything is as it was.
    Nothing,
    /// A new slot.
    Create,
    /// A slot is gone.
    Delete,
    /// A slot is elsewhere in the guest.
    Move,
    /// A dirty log begins.
    LogBegins,
    /// The dirty log ends.
    LogEnds,
    /// An alias was set or removed.
    Alias,
}

/// A change that has been published and that the caller must now complete: if `flush` is set, make every vCPU drop its
/// translations of guest-physical addresses, wait until each has done so or is outside the guest, and only then
/// give back `released` and return to the client.
#[must_use = "vCPUs may still use the old translations"]
#[derive(Debug)]
pub struct Change {
    /// What was done.
    pub kind: ChangeKind,
    /// Translations made before this generation must go. Not set by the creation of a slot: nobody may keep the
    /// *absence* of memory longer than a generation.
    pub flush: bool,
    /// The generation of the snapshot that holds the change.
    pub generation: u64,
    /// Memory of the VM's own that the change took out of use.
    pub released: Option<OwnedMemory>,
}

/// The index of the slot that a reader found last, on a cache line of its own.
#[repr(align(64))]
struct Hint(AtomicUsize);

/// What the holder of the slots lock may change besides the snapshot.
struct Settings {
    manual: ManualProtect,
}

/// The guest-physical address space of one VM.
///
/// A vCPU reads it under its reader number, which only the holder of that vCPU uses, without a lock: through
/// [`AddressSpace::resolve`] for a single frame, or through a [`View`] for several accesses in a row. Other
/// threads use [`AddressSpace::locked`].
pub struct AddressSpace<P: Platform> {
    published: Published<Snapshot<P>>,
    settings: Mutex<P, Settings>,
    generation: AtomicU64,
    hints: Vec<Hint>,
}

impl<P: Platform> fmt::Debug for AddressSpace<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// The slots as they are, for a few accesses of one vCPU. To be dropped soon: changes wait for it. A second view of
/// the same reader must not be asked for meanwhile, [`AddressSpace::resolve`] included.
pub struct View<'a, P: Platform> {
    section: Section<'a, Snapshot<P>>,
    hint: &'a AtomicUsize,
}

impl<P: Platform> Deref for View<'_, P> {
    type Target = Snapshot<P>;
    fn deref(&self) -> &Snapshot<P> {
        &self.section
    }
}

impl<P: Platform> View<'_, P> {
    /// The frame `gfn`; None where there is no memory. As [`Snapshot::resolve`], but remembers the slot.
    #[inline]
    pub fn resolve(&self, gfn: u64) -> Option<Frame> {
        let gfn = self.section.unalias(gfn);
        let hint = self.hint.load(Ordering::Relaxed);
        let (index, slot) = self.section.find(gfn, hint)?;
        if index != hint {
            self.hint.store(index, Ordering::Relaxed);
        }
        Some(slot.frame(gfn))
    }
}

/// The slots as they are, for a thread that is no vCPU. Changes wait for it.
pub struct LockedView<'a, P: Platform> {
    // Declared first, so that the section ends before the lock is given back.
    section: Section<'a, Snapshot<P>>,
    _guard: Guard<'a, P::RawMutex, Settings>,
}

impl<P: Platform> Deref for LockedView<'_, P> {
    type Target = Snapshot<P>;
    fn deref(&self) -> &Snapshot<P> {
        &self.section
    }
}

impl<P: Platform> AddressSpace<P> {
    /// An empty address space for `readers` vCPUs, numbered from 0.
    pub fn new(readers: usize, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let mut hints = Vec::new();
        // Two readers more: the holder of the MMU lock, and behind all others the holder of the lock here.
        let readers = readers.checked_add(1).ok_or(OutOfMemory)?;
        hints.try_reserve_exact(readers).map_err(|_| OutOfMemory)?;
        hints.extend((0..readers).map(|_| Hint(AtomicUsize::new(0))));
        Ok(Self {
            published: Published::new(Snapshot::empty(), readers.checked_add(1).ok_or(OutOfMemory)?)?,
            settings: Mutex::<P, _>::new(rank::SLOTS, Settings { manual: ManualProtect::default() })?,
            generation: AtomicU64::new(0),
            hints,
        })
    }

    /// Counts the published changes, from 0.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A view for reader `reader` (its vCPU index). None for a number out of range or in use.
    #[inline]
    pub fn view(&self, reader: usize) -> Option<View<'_, P>> {
        if reader + 1 < self.hints.len() { self.view_as(reader) } else { None }
    }

    #[inline]
    fn view_as(&self, reader: usize) -> Option<View<'_, P>> {
        let hint = &self.hints.get(reader)?.0;
        let section = self.published.read(reader);
        debug_assert!(section.is_some(), "reader {reader} is inside a view already");
        Some(View { section: section?, hint })
    }

    /// A view for a holder of the MMU lock who is no vCPU and must not sleep.
    pub(crate) fn notifier_view(&self) -> Option<View<'_, P>> {
        self.view_as(self.hints.len().checked_sub(1)?)
    }

    /// A view for a thread that is no vCPU, or none of this VM.
    pub fn locked(&self, _cx: &MaySleep) -> LockedView<'_, P> {
        let (_guard, section) = self.lock();
        LockedView { section, _guard }
    }

    /// The frame `gfn` as reader `reader` (its vCPU index) sees it now; None where there is no memory.
    #[inline]
    pub fn resolve(&self, reader: usize, gfn: u64) -> Option<Frame> {
        self.view(reader)?.resolve(gfn)
    }

    /// Marks `gfn` in the dirty log of its slot, if it has one.
    #[inline]
    pub fn mark_dirty(&self, reader: usize, gfn: u64) {
        if let Some(view) = self.view(reader) {
            view.mark_dirty(gfn);
        }
    }

    /// `KVM_SET_USER_MEMORY_REGION`: creates, deletes, moves a slot or changes its flags. `region` comes from
    /// [`Region::user`].
    pub fn set_user_region(&self, region: &Region, cx: &MaySleep) -> Result<Change, SlotError> {
        let hva = region.hva.ok_or(SlotError::Invalid)?;
        self.set_region(region, |_| Ok(hva), cx)
    }

    /// 2007's `KVM_SET_MEMORY_REGION`: a slot whose memory the VM owns. `region` comes from [`Region::owned`];
    /// `map` makes that many bytes of memory when a slot is created, after all checks, and says where they are. It is
    /// called with the slots locked.
    pub fn set_owned_region(
        &self,
        region: &Region,
        map: impl FnOnce(u64) -> Result<Hva, OutOfMemory>,
        cx: &MaySleep,
    ) -> Result<Change, SlotError> {
        if region.hva.is_some() {
            return Err(SlotError::Invalid);
        }
        self.set_region(region, map, cx)
    }

    fn set_region(
        &self,
        region: &Region,
        map: impl FnOnce(u64) -> Result<Hva, OutOfMemory>,
        cx: &MaySleep,
    ) -> Result<Change, SlotError> {
        let (settings, now) = self.lock();
        let kind = region.kind(&now)?;
        let old = now.slot(region.id);
        let released = old.filter(|old| old.owned && kind == ChangeKind::Delete).map(Slot::owned_memory);
        let slot = match kind {
            ChangeKind::Nothing => {
                return Ok(Change { kind, flush: false, generation: self.generation(), released: None });
            }
            ChangeKind::Delete => None,
            _ => {
                let dirty = if region.flags & KVM_MEM_LOG_DIRTY_PAGES == 0 {
                    None
                } else if let Some(log) = old.and_then(|old| old.dirty.clone()) {
                    Some(log)
                } else {
                    Some(Shared::try_new(Bitmap::new(region.pages, settings.manual.initially_set)?)?)
                };
                let (id, flags, base, pages) = (region.id, region.flags, region.base, region.pages);
                Some(match old {
                    Some(old) => Slot { id, flags, base, pages, hva: old.hva, owned: old.owned, dirty },
                    None => Slot { id, flags, base, pages, hva: Hva(0), owned: region.hva.is_none(), dirty },
                })
            }
        };
        let mut next = try_box(now.with(region.id, slot)?)?;
        if kind == ChangeKind::Create {
            // Last, so that nothing can fail once the memory exists.
            let hva = map(region.pages << PAGE_SHIFT)?;
            if let Some(slot) = next.slots.iter_mut().find(|slot| slot.id == region.id) {
                slot.hva = hva;
            }
        }
        drop(now);
        let generation = self.publish(next, &settings, cx);
        Ok(Change { kind, flush: kind != ChangeKind::Create, generation, released })
    }

    /// 2007's `KVM_SET_MEMORY_ALIAS`.
    pub fn set_alias(&self, arg: &KvmMemoryAlias, cx: &MaySleep) -> Result<Change, SlotError> {
        let (index, alias) = Alias::parse(arg)?;
        let (settings, now) = self.lock();
        let next = try_box(now.with_alias(index, alias)?)?;
        drop(now);
        let generation = self.publish(next, &settings, cx);
        Ok(Change { kind: ChangeKind::Alias, flush: true, generation, released: None })
    }

    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    pub fn set_manual_protect(&self, manual: ManualProtect, _cx: &MaySleep) {
        self.settings.lock().manual = manual;
    }

    /// `KVM_GET_DIRTY_LOG`: copies the log to the client, and takes it unless protection is manual. True: before it
    /// returns to the client, the caller makes every vCPU drop its write translations, as for [`Change::flush`].
    ///
    /// `cleaned` is called, with the slots locked, for each 64 pages of which bits have been taken: with the first frame of
    /// them and the bits.
    pub fn get_dirty_log(
        &self,
        arg: &KvmDirtyLog,
        _cx: &MaySleep,
        cleaned: impl FnMut(u64, u64),
    ) -> Result<bool, SlotError> {
        let (settings, now) = self.lock();
        let take = !settings.manual.enabled;
        let (base, log) = Self::log(&now, arg.slot)?;
        let cleaned = cleaned_from(base, cleaned);
        log.copy_out::<P::Memory>(Hva::of_client(arg.dirty_bitmap)?, take, cleaned).map(|any| any && take)
    }

    /// `KVM_CLEAR_DIRTY_LOG`: cleans the pages that the client names. The result is as of
    /// [`AddressSpace::get_dirty_log`], and so is `cleaned`.
    pub fn clear_dirty_log(
        &self,
        arg: &KvmClearDirtyLog,
        _cx: &MaySleep,
        cleaned: impl FnMut(u64, u64),
    ) -> Result<bool, SlotError> {
        let (_settings, now) = self.lock();
        let (base, log) = Self::log(&now, arg.slot)?;
        let cleaned = cleaned_from(base, cleaned);
        log.clear::<P::Memory>(arg.first_page, arg.num_pages.into(), Hva::of_client(arg.dirty_bitmap)?, cleaned)
    }

    fn log(now: &Snapshot<P>, id: u32) -> Result<(u64, &Bitmap), SlotError> {
        if id >= NR_MEMSLOTS {
            return Err(SlotError::Invalid);
        }
        now.slot(id).and_then(|slot| Some((slot.base, slot.dirty()?))).ok_or(SlotError::NotFound)
    }

    /// Takes the lock, and looks at the snapshot under it. The lock makes the section of the last reader unique.
    ///
    /// Guard and section come in this order, so that variables bound to them end in the other one.
    fn lock(&self) -> (Guard<'_, P::RawMutex, Settings>, Section<'_, Snapshot<P>>) {
        let guard = self.settings.lock();
        loop {
            if let Some(section) = self.published.read(self.hints.len()) {
                return (guard, section);
            }
        }
    }

    fn publish<L: RawLock>(
        &self,
        next: alloc::boxed::Box<Snapshot<P>>,
        _lock: &Guard<'_, L, Settings>,
        cx: &MaySleep,
    ) -> u64 {
        drop(self.published.replace::<P>(next, cx));
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// The same with frame numbers instead of pages of a slot that begins at frame `base`.
fn cleaned_from(base: u64, mut cleaned: impl FnMut(u64, u64)) -> impl FnMut(u64, u64) {
    move |page, bits| cleaned(base + page, bits)
}
