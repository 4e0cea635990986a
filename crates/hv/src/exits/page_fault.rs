//! Page faults under shadow paging: the shadow's, the guest's, or accesses that have to be emulated.
use mmu::{Request, shadow::Resolved};
use platform::MaySleep;
use x86::{Exception, exception::pf, flags};

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    pub(super) fn page_fault(&mut self, gva: u64, code: u32, implicit: bool, cx: &MaySleep) -> Result<Step, Errno> {
        let Some(shadow) = self.vm.shadow.as_ref().filter(|shadow| !shadow.is_nested()) else {
            return self.unexpected(x86::Vector::PF.0.into());
        };
        let paging = self.inner.paging();
        let at = self.linear_rip();
        let inner = &mut *self.inner;
        let state = inner.cpu.registers(Groups::GENERAL.and(Groups::CONTROL));
        let lifted = !implicit && state.cpl != 3 && state.flags.control(flags::AC);
        let request = request(code, lifted);
        if inner.mmu.unprotected.is_some_and(|(rip, _)| rip != at) {
            inner.mmu.unprotected = None;
        }
        inner.mmu.table_write = None;
        let (vm, index, cpu, cache) = (self.vm, self.index, &mut inner.cpu, &mut inner.mmu.cache);
        let resolved = shadow.fault(index, gva, request, &paging, &vm.memory, cache, cx, || {
            vm.vcpus.flush_tlbs_by(index, cpu);
        })?;
        let delivering = inner.events.injected.is_some();
        match resolved {
            Resolved::Retry => Ok(Step::Continue),
            Resolved::Guest(code) => {
                self.raise(Exception::page_fault(gva, code));
                Ok(Step::Continue)
            }
            // The access was the processor's own, while it delivered an event: there is no instruction to emulate.
            Resolved::Device { gpa } if delivering => self.delivery_failed(gpa),
            Resolved::Table { gpa } if delivering => self.unprotect(gpa).map(|_| Step::Continue),
            Resolved::Emulate if delivering => self.delivery_failed(gva),
            Resolved::Table { gpa } => {
                inner.mmu.table_write = Some(gpa);
                if self.first_bytes().is_some_and(emulate::is_repeated_write) && self.try_unprotected()? {
                    // What is written all over is no table any more, though nobody has said so.
                    return Ok(Step::Continue);
                }
                self.inner.mmu.table_write = Some(gpa);
                self.emulate(cx)
            }
            Resolved::Device { .. } | Resolved::Emulate => self.emulate(cx),
            Resolved::BadAddress { .. } => Err(Errno::EFAULT),
        }
    }

    /// An instruction that writes a page table cannot be emulated: true if the guest may try again by itself, because its
    /// page is no longer protected. Not twice for the same write: the instruction needs the page as a table.
    pub(crate) fn try_unprotected(&mut self) -> Result<bool, Errno> {
        let Some(gpa) = self.inner.mmu.table_write.take() else { return Ok(false) };
        let at = Some((self.linear_rip(), gpa));
        if self.inner.mmu.unprotected == at {
            return Ok(false);
        }
        self.inner.mmu.unprotected = at;
        self.unprotect(gpa)?;
        Ok(true)
    }

    fn unprotect(&mut self, gpa: u64) -> Result<bool, Errno> {
        let Some(shadow) = &self.vm.shadow else { return Ok(false) };
        let view = self.vm.memory.view(self.index).ok_or(Errno::EIO)?;
        let (any, due) = shadow.unprotect(&view, gpa);
        drop(view);
        let (vm, index, cpu) = (self.vm, self.index, &mut self.inner.cpu);
        shadow.fulfil_into(&mut self.inner.mmu.cache, due, || {
            vm.vcpus.flush_tlbs_by(index, cpu);
        });
        Ok(any?)
    }
}

/// The access that a processor's error code tells of.
fn request(code: u32, lifted: bool) -> Request {
    let request = if code & pf::WRITE != 0 {
        Request::WRITE
    } else if code & pf::FETCH != 0 {
        Request::FETCH
    } else {
        Request::READ
    };
    match (code & pf::USER != 0, lifted) {
        (true, _) => request.user(),
        (false, true) => request.lift_smap(),
        (false, false) => request,
    }
}
