//! Registers in `kvm_run` (KVM_CAP_SYNC_REGS): the client takes classes of them from there at each return, and puts changed
//! ones there before KVM_RUN, instead of an ioctl for each.
use abi::{
    KVM_RUN_DIRTY_REGS_OFFSET, KVM_RUN_SYNC_REGS_OFFSET, KVM_RUN_VALID_REGS_OFFSET, KVM_SYNC_X86_EVENTS,
    KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_SYNC_X86_VALID_FIELDS, KvmRegs, KvmSregs, KvmSyncRegs, KvmVcpuEvents,
    Pod,
};
use core::mem::offset_of;

use super::Run;
use crate::{Errno, backend::Backend};

const REGS: u64 = (KVM_RUN_SYNC_REGS_OFFSET + offset_of!(KvmSyncRegs, regs)) as u64;
const SREGS: u64 = (KVM_RUN_SYNC_REGS_OFFSET + offset_of!(KvmSyncRegs, sregs)) as u64;
const EVENTS: u64 = (KVM_RUN_SYNC_REGS_OFFSET + offset_of!(KvmSyncRegs, events)) as u64;

impl<B: Backend> Run<'_, B> {
    fn get<T: Pod>(&self, offset: u64) -> Result<T, Errno> {
        let mut value = T::zeroed();
        self.page.copy_from(offset, value.bytes_mut())?;
        Ok(value)
    }

    /// Takes the classes that the client has changed.
    pub(super) fn take_sync_regs(&mut self) -> Result<(), Errno> {
        let valid: u64 = self.page.load(KVM_RUN_VALID_REGS_OFFSET)?;
        let dirty: u64 = self.page.load(KVM_RUN_DIRTY_REGS_OFFSET)?;
        if (valid | dirty) & !KVM_SYNC_X86_VALID_FIELDS != 0 {
            return Err(Errno::EINVAL);
        }
        if dirty & KVM_SYNC_X86_REGS != 0 {
            let regs: KvmRegs = self.get(REGS)?;
            self.inner.set_regs(&regs)?;
        }
        if dirty & KVM_SYNC_X86_SREGS != 0 {
            let sregs: KvmSregs = self.get(SREGS)?;
            self.inner.set_sregs(&sregs, self.vm, self.index)?;
        }
        if dirty & KVM_SYNC_X86_EVENTS != 0 {
            let events: KvmVcpuEvents = self.get(EVENTS)?;
            self.inner.set_events(&events, self.vm, &self.shared.lapic)?;
        }
        if dirty != 0 { self.page.store(KVM_RUN_DIRTY_REGS_OFFSET, 0u64) } else { Ok(()) }
    }

    /// Shows the classes that the client wants.
    pub(super) fn show_sync_regs(&mut self) -> Result<(), Errno> {
        let valid: u64 = self.page.load(KVM_RUN_VALID_REGS_OFFSET)?;
        if valid & KVM_SYNC_X86_REGS != 0 {
            self.page.copy_to(REGS, self.inner.get_regs().bytes())?;
        }
        if valid & KVM_SYNC_X86_SREGS != 0 {
            self.page.copy_to(SREGS, self.inner.get_sregs().bytes())?;
        }
        if valid & KVM_SYNC_X86_EVENTS != 0 {
            self.page.copy_to(EVENTS, self.inner.get_events(self.vm, &self.shared.lapic).bytes())?;
        }
        Ok(())
    }
}
