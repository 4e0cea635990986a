//! Accesses to guest-physical memory that did not go through.
use abi::*;
use platform::MaySleep;

use crate::{
    Errno,
    backend::{Access, Backend},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    /// Memory that a slot serves after all (the slots changed, or the host took the page for a while) is tried again;
    /// everything else is a device, and the instruction is emulated.
    pub(super) fn nested_page_fault(
        &mut self,
        gpa: u64,
        access: Access,
        table_walk: bool,
        cx: &MaySleep,
    ) -> Result<Step, Errno> {
        if let Some(frame) = self.vm.space(self.inner.smm.inside).resolve(self.index, gpa >> 12)
            && (access != Access::Write || !frame.read_only || table_walk)
        {
            return Ok(Step::Continue);
        }
        if self.inner.events.injected.is_some() {
            // The access was the processor's own, while it delivered an event: there is no instruction to emulate.
            return self.delivery_failed(gpa);
        }
        self.emulate(cx)
    }

    /// An event cannot be delivered: its stack or table is in device memory.
    pub(crate) fn delivery_failed(&mut self, gpa: u64) -> Result<Step, Errno> {
        let mut data = [0; 16];
        data[0] = gpa;
        let payload = KvmRunInternal { suberror: KVM_INTERNAL_ERROR_DELIVERY_EV, ndata: 1, data };
        self.page.exit(KVM_EXIT_INTERNAL_ERROR, &payload)?;
        Ok(Step::ToClient)
    }
}
