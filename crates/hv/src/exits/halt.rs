//! HLT, MONITOR and MWAIT.
use abi::*;

use crate::{
    Errno,
    backend::Backend,
    vcpu::{MpState, Run, Step},
};

impl<B: Backend> Run<'_, B> {
    /// HLT: the vCPU sleeps in the hypervisor if its local APIC is there or the client wants no exit, else in the client
    /// (row D06).
    pub(super) fn hlt(&mut self, len: u8) -> Result<Step, Errno> {
        self.skip(len);
        if self.inner.apic.is_some() || self.vm.exit_disabled(KVM_X86_DISABLE_EXITS_HLT) {
            self.inner.mp = MpState::Halted;
            return Ok(Step::Continue);
        }
        self.page.reason(KVM_EXIT_HLT)?;
        Ok(Step::ToClient)
    }

    /// MONITOR and MWAIT do nothing, or are #UD where the quirk is off and CPUID does not offer them.
    pub(super) fn monitor_mwait(&mut self, len: u8) -> Result<Step, Errno> {
        let offered = self.inner.features.contains(x86::Features::MONITOR);
        if !offered && self.vm.quirk_disabled(KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS) {
            return self.undefined();
        }
        self.skip(len);
        Ok(Step::Continue)
    }
}
