//! Hypercalls (row A18). Today's: number in RAX, arguments in RBX, RCX, RDX, RSI, the answer in RAX. A vCPU that has
//! announced 2007's page passes other registers, and its client carries out what the hypervisor does not know.
use abi::*;

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    emulation::Completion,
    vcpu::{Run, Step, request},
};

/// Looks whether an interrupt is pending: the call itself is all that is needed.
const KVM_HC_VAPIC_POLL_IRQ: u64 = 1;

impl<B: Backend> Run<'_, B> {
    pub(super) fn hypercall(&mut self, len: u8) -> Result<Step, Errno> {
        if self.inner.para_2007.is_some() {
            return self.hypercall_2007(len);
        }
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

    /// 2007 knew no call that the hypervisor carries out itself: all go to the client, arguments in order.
    fn hypercall_2007(&mut self, len: u8) -> Result<Step, Errno> {
        let state = self.inner.cpu.registers(Groups::GENERAL);
        let long = state.mode == x86::Mode::Long64;
        let args = if long {
            // RDI, RSI, RDX, RCX, R8, R9.
            [7, 6, 2, 1, 8, 9].map(|i: usize| state.gpr[i])
        } else {
            // EAX, ECX, EDX, ESI, EDI, EBP.
            [0, 1, 2, 6, 7, 5].map(|i: usize| state.gpr[i] & 0xffff_ffff)
        };
        self.skip(len);
        let call = KvmRunHypercall2007 { args, ret: 0, longmode: long.into(), pad: 0 };
        self.page.exit(KVM_EXIT_HYPERCALL, &call)?;
        self.inner.tx.set_completion(Completion::Hypercall);
        Ok(Step::ToClient)
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
        let call: KvmRunHypercall2007 = self.page.payload()?;
        let state = self.inner.cpu.registers_mut(Groups::GENERAL);
        let long = state.mode == x86::Mode::Long64;
        state.gpr[0] = if long { call.ret } else { call.ret & 0xffff_ffff };
        Ok(Step::Continue)
    }
}
