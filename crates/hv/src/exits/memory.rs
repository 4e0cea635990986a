//! Accesses to guest-physical memory that did not go through.
use abi::*;
use mmu::{Request, shadow::Resolved};
use platform::MaySleep;

use crate::{
    Errno,
    backend::{Access, Backend},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    /// What a slot serves is mapped in the nested tables, if there are any, and tried again (without tables: the slots
    /// changed, or the host took the page for a while); everything else is a device, and the instruction is emulated.
    pub(super) fn nested_page_fault(&mut self, gpa: u64, access: Access, cx: &MaySleep) -> Result<Step, Errno> {
        let vm = self.vm;
        let again = match &vm.shadow {
            Some(shadow) => {
                let request = match access {
                    Access::Read => Request::READ,
                    Access::Write => Request::WRITE,
                    Access::Fetch => Request::FETCH,
                };
                let (index, cpu, cache) = (self.index, &mut self.inner.cpu, &mut self.inner.mmu.cache);
                let resolved = shadow.nested_fault(index, gpa, request, &vm.memory, cache, cx, || {
                    vm.vcpus.flush_tlbs_by(index, cpu);
                })?;
                match resolved {
                    Resolved::BadAddress { .. } => return Err(Errno::EFAULT),
                    resolved => resolved == Resolved::Retry,
                }
            }
            None => {
                let frame = vm.space(self.inner.smm.inside).resolve(self.index, gpa >> 12);
                frame.is_some_and(|frame| access != Access::Write || !frame.read_only)
            }
        };
        if again {
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
