//! Memory slots, aliases and the dirty log.
use abi::{KvmClearDirtyLog, KvmDirtyLog, KvmMemoryAlias, KvmMemoryRegion, KvmUserspaceMemoryRegion};
use alloc::vec::Vec;
use mmu::{Change, OwnedMemory, SlotError, slots::Region};
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

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Vm<B> {
    pub(super) fn set_user_memory_region(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let region: KvmUserspaceMemoryRegion = uaccess::get::<Mem<B>, _>(arg)?;
        let region = Region::user(&region)?;
        // It may delete a slot of the other kind.
        let mut owned = self.0.owned.lock();
        let change = self.shared().memory.set_user_region(&region, cx)?;
        self.slot_changed(&mut owned, change, cx)
    }

    /// 2007's slots: their memory belongs to the VM, and the client maps it by the VM's descriptor.
    pub(super) fn set_memory_region(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let region: KvmMemoryRegion = uaccess::get::<Mem<B>, _>(arg)?;
        let region = Region::owned(&region)?;
        let mut owned = self.0.owned.lock();
        owned.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let map = |bytes| {
            let pages = <B::Platform as Platform>::Pages::new(bytes, cx)?;
            let at = pages.at();
            owned.0.push(pages);
            Ok(at)
        };
        let change = self.shared().memory.set_owned_region(&region, map, cx)?;
        self.slot_changed(&mut owned, change, cx)
    }

    /// Completes a change of the slots, and gives back memory that no vCPU uses any more.
    fn slot_changed(&self, owned: &mut Owned<B::Platform>, change: Change, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let released = change.released;
        let outcome = self.complete(change, cx)?;
        if let Some(released) = released {
            owned.0.retain(|pages| pages.at() != released.hva);
        }
        Ok(outcome)
    }

    /// Calls `each` with the memory of every 2007 slot, for packaging to let the client map it. No such slot goes
    /// while this runs.
    pub fn for_each_owned(&self, each: impl FnMut(OwnedMemory), cx: &MaySleep) {
        let _owned = self.0.owned.lock();
        let slots = self.shared().memory.locked(cx);
        slots.owned().for_each(each);
    }

    pub(super) fn set_memory_alias(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let alias: KvmMemoryAlias = uaccess::get::<Mem<B>, _>(arg)?;
        let change = self.shared().memory.set_alias(&alias, cx)?;
        self.complete(change, cx)
    }

    /// After this the client may unmap what the change took out of use.
    fn complete(&self, change: Change, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        if change.flush {
            self.vcpus().flush_physical(cx);
        }
        Ok(Outcome::OK)
    }

    pub(super) fn get_dirty_log(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let log: KvmDirtyLog = uaccess::get::<Mem<B>, _>(arg)?;
        let taken = self.shared().memory.get_dirty_log(&log, cx);
        self.pages_cleaned(taken, cx)
    }

    pub(super) fn clear_dirty_log(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let log: KvmClearDirtyLog = uaccess::get::<Mem<B>, _>(arg)?;
        let cleaned = self.shared().memory.clear_dirty_log(&log, cx);
        self.pages_cleaned(cleaned, cx)
    }

    /// Takes write translations away, so that the next write to a clean page is logged. What failed half-way has
    /// cleaned pages too.
    fn pages_cleaned(&self, any: Result<bool, SlotError>, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        if any != Ok(false) {
            self.vcpus().flush_physical(cx);
        }
        any?;
        Ok(Outcome::OK)
    }
}
