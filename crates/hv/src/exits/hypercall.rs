//! Hypercalls (row A18): number in RAX, arguments in RBX, RCX, RDX, RSI, the answer in RAX.
use abi::*;

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    vcpu::{Run, Step, request},
};

/// Looks whether an interrupt is pending: the call itself is all that is needed.
const KVM_HC_VAPIC_POLL_IRQ: u64 = 1;

impl<B: Backend> Run<'_, B> {
    pub(super) fn hypercall(&mut self, len: u8) -> Result<Step, Errno> {
        let state = self.inner.cpu.registers(Groups::GENERAL);
        let long = state.mode == x86::Mode::Long64;
        let word = |value: u64| if long { value } else { value & 0xffff_ffff };
        let (nr, cpl) = (word(state.gpr[0]), state.cpl);
        // RBX, RCX.
        let args = [word(state.gpr[3]), word(state.gpr[1])];
        let answer = if cpl != 0 {
            -KVM_EPERM
        } else {
            match nr {
                KVM_HC_VAPIC_POLL_IRQ => 0,
                KVM_HC_KICK_CPU => self.kick_cpu(args[1]),
                _ => -KVM_ENOSYS,
            }
        };
        self.inner.cpu.registers_mut(Groups::GENERAL).gpr[0] = word(answer as u64);
        self.skip(len);
        Ok(Step::Continue)
    }

    /// KVM_HC_KICK_CPU: wakes the vCPU with this APIC id from HLT.
    fn kick_cpu(&mut self, apic_id: u64) -> i64 {
        if let Ok(id) = usize::try_from(apic_id)
            && let Some(vcpu) = self.vm.vcpus.get(id)
        {
            vcpu.request(request::UNHALT);
        }
        0
    }

    /// The client has carried out a hypercall: its answer is the guest's.
    pub(crate) fn complete_hypercall(&mut self) -> Result<Step, Errno> {
        let call: KvmRunHypercall = self.page.payload()?;
        let state = self.inner.cpu.registers_mut(Groups::GENERAL);
        let long = state.mode == x86::Mode::Long64;
        state.gpr[0] = if long { call.ret } else { call.ret & 0xffff_ffff };
        Ok(Step::Continue)
    }
}
