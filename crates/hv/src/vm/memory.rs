//! Memory slots, aliases and the dirty log.
use abi::{KvmClearDirtyLog, KvmDirtyLog, KvmMemoryAlias, KvmMemoryRegion, KvmUserspaceMemoryRegion};
use alloc::vec::Vec;
use core::ops::Range;
use mmu::{AddressSpace, Change, ChangeKind, OwnedMemory, SlotError, slots::Region};
use platform::{MaySleep, Pages, Platform};

use super::Vm;
use crate::{Errno, Outcome, backend::Backend, uaccess};

impl From<SlotError> for Errno {
    fn from(error: SlotError) -> Self {
        Self(error.errno())
    }
}

/// The memory of 2007's slots, each found by its address.
pub(super) struct Owned<P: Platform>(Vec<P::Pages>);

impl<P: Platform> Default for Owned<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Address spaces of a VM: a slot's number has its own in bits 31:16. 1 is what a vCPU in system management mode sees.
pub(crate) const ADDRESS_SPACES: u32 = 2;

/// Takes the address space from a slot's number: true for system management mode's.
fn take_address_space(slot: &mut u32) -> Result<bool, Errno> {
    let space = *slot >> 16;
    *slot &= 0xffff;
    if space < ADDRESS_SPACES { Ok(space == 1) } else { Err(Errno::EINVAL) }
}

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Vm<B> {
    pub(super) fn set_user_memory_region(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let mut region: KvmUserspaceMemoryRegion = uaccess::get::<Mem<B>, _>(arg)?;
        let smm = take_address_space(&mut region.slot)?;
        let region = Region::user(&region)?;
        if smm {
            return self.set_smram(&region, cx);
        }
        // It may delete a slot of the other kind.
        let mut owned = self.0.owned.lock();
        let change = self.change_slots(|memory| memory.set_user_region(&region, cx), region.frames(), cx)?;
        self.owned_changed(&mut owned, &change, cx);
        Ok(Outcome::OK)
    }

    /// A slot of system management mode. No tables are made of them.
    fn set_smram(&self, region: &Region, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let vm = self.shared();
        if vm.smram.set_user_region(region, cx)?.flush {
            vm.vcpus.flush_physical(cx);
        }
        Ok(Outcome::OK)
    }

    /// 2007's slots: their memory belongs to the VM, and the client maps it by the VM's descriptor.
    pub(super) fn set_memory_region(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let region: KvmMemoryRegion = uaccess::get::<Mem<B>, _>(arg)?;
        let region = Region::owned(&region)?;
        let mut owned = self.0.owned.lock();
        owned.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.reserve_shown(owned.0.len() + 1)?;
        let map = |bytes| {
            let pages = <B::Platform as Platform>::Pages::new(bytes, cx)?;
            let at = pages.at();
            owned.0.push(pages);
            Ok(at)
        };
        let change = self.change_slots(|memory| memory.set_owned_region(&region, map, cx), region.frames(), cx)?;
        self.owned_changed(&mut owned, &change, cx);
        Ok(Outcome::OK)
    }

    /// Runs `change`, and takes away what the shadow tables and the processors have made of the slots before: then the
    /// client may unmap what went out of use. `logged` are the frames of the slot whose flags may have changed.
    fn change_slots(
        &self,
        change: impl FnOnce(&AddressSpace<B::Platform>) -> Result<Change, SlotError>,
        logged: Range<u64>,
        cx: &MaySleep,
    ) -> Result<Change, Errno> {
        let vm = self.shared();
        let mut flushed = false;
        let change = match &vm.shadow {
            None => change(&vm.memory)?,
            Some(shadow) => {
                shadow.slots_change();
                let result = change(&vm.memory);
                let kind = result.as_ref().map_or(ChangeKind::Nothing, |change| change.kind);
                let stale = matches!(kind, ChangeKind::Delete | ChangeKind::Move | ChangeKind::Alias);
                let pages = vm.memory.locked(cx).pages();
                let ended = shadow.slots_changed(stale, pages, cx, || vm.vcpus.flush_tlbs());
                let change = result?;
                ended?;
                match kind {
                    ChangeKind::LogBegins => {
                        let (result, due) = shadow.log_writes(logged);
                        shadow.fulfil(due, || {
                            vm.vcpus.flush_physical(cx);
                            flushed = true;
                        });
                        result?;
                    }
                    ChangeKind::LogEnds => shadow.logging_ended(logged, || vm.vcpus.flush_tlbs())?,
                    _ => {}
                }
                change
            }
        };
        if change.flush && !flushed {
            vm.vcpus.flush_physical(cx);
        }
        Ok(change)
    }

    /// Makes room for `count` of the VM's own memories among those that are shown.
    fn reserve_shown(&self, count: usize) -> Result<(), Errno> {
        // Outside of the lock: its memory may have to be waited for.
        let mut room = Vec::new();
        room.try_reserve(count).map_err(|_| Errno::ENOMEM)?;
        let mut shown = self.0.shown.lock();
        if shown.capacity() < count {
            room.extend_from_slice(&shown); // there is room: `count` is one more than are shown
            core::mem::swap(&mut *shown, &mut room);
        }
        drop(shown);
        Ok(())
    }

    /// Shows what memory of the VM's own there is now, and then gives back what `change` took out of use.
    fn owned_changed(&self, owned: &mut Owned<B::Platform>, change: &Change, cx: &MaySleep) {
        {
            let slots = self.shared().memory.locked(cx);
            let mut shown = self.0.shown.lock();
            shown.clear();
            // There is room: reserved when the last of them came.
            shown.extend(slots.owned());
        }
        if let Some(released) = &change.released {
            owned.0.retain(|pages| pages.at() != released.hva);
        }
    }

    /// Calls `each` with the memory of every 2007 slot, for packaging to let the client map it. No such memory goes while
    /// this runs. A page fault of the client may call it, in whatever the client's thread is doing here.
    pub fn for_each_owned(&self, each: impl FnMut(OwnedMemory)) {
        self.0.shown.lock().iter().copied().for_each(each);
    }

    pub(super) fn set_memory_alias(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let alias: KvmMemoryAlias = uaccess::get::<Mem<B>, _>(arg)?;
        let _ = self.change_slots(|memory| memory.set_alias(&alias, cx), 0..0, cx)?;
        Ok(Outcome::OK)
    }

    pub(super) fn get_dirty_log(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let mut log: KvmDirtyLog = uaccess::get::<Mem<B>, _>(arg)?;
        let smm = take_address_space(&mut log.slot)?;
        self.clean(smm, |memory, cleaned| memory.get_dirty_log(&log, cx, cleaned), cx)
    }

    pub(super) fn clear_dirty_log(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let mut log: KvmClearDirtyLog = uaccess::get::<Mem<B>, _>(arg)?;
        let smm = take_address_space(&mut log.slot)?;
        self.clean(smm, |memory, cleaned| memory.clear_dirty_log(&log, cx, cleaned), cx)
    }

    /// Takes write translations away, so that the next write to a clean page is logged. What failed half-way has
    /// cleaned pages too.
    fn clean(
        &self,
        smm: bool,
        take: impl FnOnce(&AddressSpace<B::Platform>, &mut dyn FnMut(u64, u64)) -> Result<bool, SlotError>,
        cx: &MaySleep,
    ) -> Result<Outcome<B>, Errno> {
        let vm = self.shared();
        // Tables are only made of the other slots.
        let shadow = vm.shadow.as_ref().filter(|_| !smm);
        let mut protected = Ok(());
        let mut due = None;
        let any = take(vm.space(smm), &mut |first, bits| {
            if let Some(shadow) = shadow {
                let (result, next) = shadow.pages_cleaned(first, bits);
                protected = protected.and(result);
                due = Some(match due.take() {
                    Some(due) => next.and(due),
                    None => next,
                });
            }
        });
        match (shadow, due) {
            // Whoever writes does so by the tables' leave.
            (Some(shadow), Some(due)) => shadow.fulfil(due, || vm.vcpus.flush_physical(cx)),
            (None, _) if any != Ok(false) => vm.vcpus.flush_physical(cx),
            _ => {}
        }
        protected?;
        any?;
        Ok(Outcome::OK)
    }
}
