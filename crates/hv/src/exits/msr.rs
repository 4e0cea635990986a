//! RDMSR and WRMSR. What the hypervisor refuses may be the client's to answer (KVM_CAP_X86_USER_SPACE_MSR).
use abi::*;
use core::sync::atomic::Ordering::SeqCst;

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    emulation::Completion,
    msr::{By, Refused},
    vcpu::{Run, Step},
};

/// An access that the client answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PendingMsr {
    write: bool,
    /// Length of the instruction, 0 if unknown.
    len: u8,
}

impl<B: Backend> Run<'_, B> {
    pub(super) fn rdmsr(&mut self, len: u8) -> Result<Step, Errno> {
        let index = self.inner.cpu.registers(Groups::PLAIN).gpr[1] as u32;
        if !self.vm.msr_filter.allows(self.index, index, false) {
            return self.msr_refused(index, None, KVM_MSR_EXIT_REASON_FILTER, len);
        }
        match self.inner.read_msr(index, By::Guest) {
            Ok(value) => {
                self.load_edx_eax(value);
                self.skip(len);
                Ok(Step::Continue)
            }
            Err(refused) => self.msr_refused(index, None, reason(refused), len),
        }
    }

    pub(super) fn wrmsr(&mut self, len: u8) -> Result<Step, Errno> {
        let state = self.inner.cpu.registers(Groups::PLAIN);
        let index = state.gpr[1] as u32;
        let value = state.gpr[0] & 0xffff_ffff | state.gpr[2] << 32;
        if !self.vm.msr_filter.allows(self.index, index, true) {
            return self.msr_refused(index, Some(value), KVM_MSR_EXIT_REASON_FILTER, len);
        }
        if let Err(refused) = self.inner.write_msr(index, value, By::Guest, self.vm, self.index) {
            return self.msr_refused(index, Some(value), reason(refused), len);
        }
        self.skip(len);
        Ok(Step::Continue)
    }

    pub(super) fn load_edx_eax(&mut self, value: u64) {
        let state = self.inner.cpu.registers_mut(Groups::PLAIN);
        (state.gpr[0], state.gpr[2]) = (value & 0xffff_ffff, value >> 32);
    }

    /// #GP, unless the client wants to know. `written` is what WRMSR wants to write.
    fn msr_refused(&mut self, index: u32, written: Option<u64>, reason: u32, len: u8) -> Result<Step, Errno> {
        if self.vm.settings.user_space_msr.load(SeqCst) & reason == 0 {
            return self.refuse();
        }
        let exit = if written.is_some() { KVM_EXIT_X86_WRMSR } else { KVM_EXIT_X86_RDMSR };
        let msr = KvmRunMsr { error: 0, pad: [0; 7], reason, index, data: written.unwrap_or(0) };
        self.page.exit(exit, &msr)?;
        self.inner.tx.set_completion(Completion::Msr(PendingMsr { write: written.is_some(), len }));
        Ok(Step::ToClient)
    }

    /// The client has answered: an error is #GP.
    pub(crate) fn complete_msr(&mut self, pending: PendingMsr) -> Result<Step, Errno> {
        let msr: KvmRunMsr = self.page.payload()?;
        if msr.error != 0 {
            return self.refuse();
        }
        if !pending.write {
            self.load_edx_eax(msr.data);
        }
        self.skip(pending.len);
        Ok(Step::Continue)
    }
}

/// As the client is told why.
fn reason(refused: Refused) -> u32 {
    match refused {
        Refused::Unknown => KVM_MSR_EXIT_REASON_UNKNOWN,
        Refused::Invalid => KVM_MSR_EXIT_REASON_INVAL,
    }
}
