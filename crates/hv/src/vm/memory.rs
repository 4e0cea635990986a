//! Memory slots, aliases and the dirty log.
use abi::{KvmClearDirtyLog, KvmDirtyLog, KvmMemoryAlias, KvmMemoryRegion, KvmUserspaceMemoryRegion};
use mmu::{Change, SlotError, slots::Region};
use platform::{MaySleep, OutOfMemory, Platform};

use super::Vm;
use crate::{Errno, Outcome, backend::Backend, uaccess};

impl From<SlotError> for Errno {
    fn from(error: SlotError) -> Self {
        Self(error.errno())
    }
}

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Vm<B> {
    pub(super) fn set_user_memory_region(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let region: KvmUserspaceMemoryRegion = uaccess::get::<Mem<B>, _>(arg)?;
        let change = self.shared().memory.set_user_region(&Region::user(&region)?, cx)?;
        self.complete(change, cx)
    }

    /// 2007's slots, whose memory the device owns. The platform has no memory to give yet.
    pub(super) fn set_memory_region(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let region: KvmMemoryRegion = uaccess::get::<Mem<B>, _>(arg)?;
        let region = Region::owned(&region)?;
        let change = self.shared().memory.set_owned_region(&region, |_| Err(OutOfMemory), cx)?;
        self.complete(change, cx)
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
