//! Hypercalls (row A18). Today's: number in RAX, arguments in RBX, RCX, RDX, RSI, the answer in RAX. A vCPU that has
//! announced 2007's page passes other registers, and its client carries out what the hypervisor does not know.
use abi::*;
use core::sync::atomic::Ordering::SeqCst;
use irqchip::{DeliveryMode, Message, Origin, Trigger};
use x86::paging::PAGE_SIZE;

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    emulation::Completion,
    vcpu::{Run, Step, request},
};

/// A hypercall that the client carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingHypercall {
    /// By 2007's convention; RIP is behind it already.
    Of2007,
    /// By today's.
    Today {
        /// Length of the instruction, 0 if unknown.
        len: u8,
    },
}

/// Interrupt command register: the destination is logical; a shorthand; trigger mode.
const ICR_LOGICAL: u64 = 1 << 11;
const ICR_SHORTHAND: u64 = 3 << 18;
const ICR_LEVEL: u64 = 1 << 15;

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
        // RBX, RCX, RDX, RSI.
        let args = [3, 1, 2, 6].map(|i: usize| word(state.gpr[i]));
        let answer = if cpl != 0 {
            -KVM_EPERM
        } else {
            match nr {
                KVM_HC_VAPIC_POLL_IRQ => 0,
                KVM_HC_KICK_CPU => self.kick_cpu(args[1]),
                KVM_HC_SEND_IPI => self.send_ipi(args, long),
                KVM_HC_MAP_GPA_RANGE if self.vm.settings.exit_hypercalls.load(SeqCst) & 1 << nr != 0 => {
                    let [gpa, pages, attributes, _] = args;
                    let end = (gpa / PAGE_SIZE).checked_add(pages);
                    if gpa.is_multiple_of(PAGE_SIZE) && pages != 0 && end.is_some() {
                        return self.hypercall_exit(nr, [gpa, pages, attributes], long, len);
                    }
                    -KVM_EINVAL
                }
                _ => -KVM_ENOSYS,
            }
        };
        self.inner.cpu.registers_mut(Groups::PLAIN).gpr[0] = word(answer as u64);
        self.skip(len);
        Ok(Step::Continue)
    }

    /// The client carries the call out.
    fn hypercall_exit(&mut self, nr: u64, first: [u64; 3], long: bool, len: u8) -> Result<Step, Errno> {
        let mut args = [0; 6];
        args[..3].copy_from_slice(&first);
        self.page.exit(KVM_EXIT_HYPERCALL, &KvmRunHypercall { nr, args, ret: 0, flags: long.into() })?;
        self.inner.tx.set_completion(Completion::Hypercall(PendingHypercall::Today { len }));
        Ok(Step::ToClient)
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
        self.inner.tx.set_completion(Completion::Hypercall(PendingHypercall::Of2007));
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

    /// KVM_HC_SEND_IPI: an interrupt to each APIC id of a bitmap of two words that begins at id `first`. `icr` is the command
    /// register's low half, without a destination of its own. How many have taken it.
    fn send_ipi(&mut self, [low, high, first, icr]: [u64; 4], long: bool) -> i64 {
        if self.inner.apic.is_none() {
            return -KVM_EOPNOTSUPP;
        }
        if icr & (ICR_LOGICAL | ICR_SHORTHAND) != 0 {
            return -KVM_EINVAL;
        }
        let bits = if long { 64 } else { 32 };
        let mut taken = 0;
        for (word, base) in [(low, first), (high, first.saturating_add(bits))] {
            for bit in (0..bits).filter(|bit| word >> bit & 1 != 0) {
                let id = base.saturating_add(bit);
                let Some(vcpu) = usize::try_from(id).ok().and_then(|id| self.vm.vcpus.get(id)) else { continue };
                let message = Message {
                    delivery_mode: DeliveryMode::from_bits(icr as u32 >> 8),
                    trigger: if icr & ICR_LEVEL != 0 { Trigger::Level } else { Trigger::Edge },
                    ..Message::fixed(vcpu.id(), icr as u8)
                };
                taken += i64::from(self.vm.vcpus.send(&message, Origin::Ipi { sender: self.index }).accepted);
            }
        }
        taken
    }

    /// The client has carried out a hypercall: its answer is the guest's.
    pub(crate) fn complete_hypercall(&mut self, call: PendingHypercall) -> Result<Step, Errno> {
        let answer = match call {
            PendingHypercall::Of2007 => self.page.payload::<KvmRunHypercall2007>()?.ret,
            PendingHypercall::Today { .. } => self.page.payload::<KvmRunHypercall>()?.ret,
        };
        let state = self.inner.cpu.registers_mut(Groups::GENERAL);
        let long = state.mode == x86::Mode::Long64;
        state.gpr[0] = if long { answer } else { answer & 0xffff_ffff };
        if let PendingHypercall::Today { len } = call {
            self.skip(len);
        }
        Ok(Step::Continue)
    }
}
