//! KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS.
use abi::*;
use core::sync::atomic::Ordering::SeqCst;
use irqchip::LapicShared;
use x86::{Exception, Shadow, Vector};

use super::{Inner, MpState};
use crate::{
    Errno, Outcome,
    backend::{Backend, BackendVcpu, Event, EventKind, Groups},
    vm::VmShared,
};

impl<B: Backend> Inner<B> {
    pub(super) fn get_events(&mut self, vm: &VmShared<B::Platform>, lapic: &LapicShared) -> KvmVcpuEvents {
        let payloads = vm.settings.exception_payload.load(SeqCst);
        let mut e = KvmVcpuEvents::default();
        match self.events.injected.or(self.events.deferred).map(|e| e.kind) {
            Some(EventKind::Exception(x)) => {
                put_exception(&mut e, &x);
                e.exception.injected = 1;
            }
            Some(EventKind::Software { vector, int3_or_into: true, .. }) => {
                (e.exception.injected, e.exception.nr) = (1, vector);
            }
            Some(EventKind::Software { vector, .. }) => {
                (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, vector, 1);
            }
            Some(EventKind::Interrupt(vector)) => (e.interrupt.injected, e.interrupt.nr) = (1, vector),
            Some(EventKind::Nmi) => e.nmi.injected = 1,
            None => {}
        }
        if let Some(x) = self.events.exception {
            put_exception(&mut e, &x);
            // Without the capability the client knows one state only, and CR2 and DR6 as after delivery.
            if payloads {
                e.exception.pending = 1;
                (e.exception_has_payload, e.exception_payload) = (has_payload(&x).into(), x.payload);
            } else {
                e.exception.injected = 1;
            }
        }
        if e.interrupt.injected == 0
            && let Some(vector) = self.events.client_irq()
        {
            (e.interrupt.injected, e.interrupt.nr) = (1, vector);
        }
        e.interrupt.shadow = match self.cpu.registers(Groups::GENERAL).shadow {
            Shadow::None => 0,
            Shadow::Sti => KVM_X86_SHADOW_INT_STI,
            Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS,
        };
        e.nmi.pending = lapic.nmi_count();
        e.nmi.masked = self.cpu.nmi_blocked().into();
        e.sipi_vector = lapic.sipi_vector().into();
        e.smi = KvmEventSmi {
            smm: self.smm.inside.into(),
            pending: lapic.smi_pending().into(),
            smm_inside_nmi: self.smm.inside_nmi.into(),
            latched_init: (self.apic.is_some() && lapic.init_pending()).into(),
        };
        e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
        if payloads {
            e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        if vm.settings.triple_fault_event.load(SeqCst) {
            e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            e.triple_fault = self.events.triple_fault.into();
        }
        e
    }

    pub(super) fn set_events(
        &mut self,
        e: &KvmVcpuEvents,
        vm: &VmShared<B::Platform>,
        lapic: &LapicShared,
    ) -> Result<Outcome<B>, Errno> {
        let payloads = vm.settings.exception_payload.load(SeqCst);
        let mut known = KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM;
        if payloads {
            known |= KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        if vm.settings.triple_fault_event.load(SeqCst) {
            known |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        }
        let exception = e.exception.injected != 0 || payloads && e.exception.pending != 0;
        let smm = (e.flags & KVM_VCPUEVENT_VALID_SMM != 0).then_some(e.smi);
        // INIT waits while an SMI is handled.
        let lost_init = smm.is_some_and(|smi| smi.smm | smi.pending != 0) && self.mp == MpState::InitReceived;
        let shadow = if e.flags & KVM_VCPUEVENT_VALID_SHADOW != 0 {
            Some(match e.interrupt.shadow {
                0 => Shadow::None,
                s if s & KVM_X86_SHADOW_INT_MOV_SS != 0 => Shadow::MovSs,
                _ => Shadow::Sti,
            })
        } else {
            None
        };
        // NMI is no exception, and vectors above 31 are none.
        if e.flags & !known != 0
            || lost_init
            || exception && (e.exception.nr > 31 || e.exception.nr == 2)
            || e.exception.injected != 0 && payloads && e.exception.pending != 0
        {
            return Err(Errno::EINVAL);
        }
        // A triple fault stays unless the client speaks of it.
        let told = e.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT != 0;
        let triple_fault = if told { e.triple_fault != 0 } else { self.events.triple_fault };
        self.events.clear();
        self.events.triple_fault = triple_fault;
        let x = Exception {
            vector: Vector(e.exception.nr),
            code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
            payload: self.payload(e, payloads),
        };
        if payloads && e.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0 && e.exception.pending != 0 {
            self.events.exception = Some(x);
        } else if e.exception.injected != 0 {
            self.events.injected = Some(Event { kind: EventKind::Exception(x) });
        } else if e.nmi.injected != 0 {
            self.events.injected = Some(Event { kind: EventKind::Nmi });
        } else if e.interrupt.injected != 0 {
            let vector = e.interrupt.nr;
            if e.interrupt.soft != 0 {
                let kind = EventKind::Software { vector, len: 0, int3_or_into: false };
                self.events.injected = Some(Event { kind });
            } else if self.apic.is_some() {
                self.events.injected = Some(Event { kind: EventKind::Interrupt(vector) });
            } else {
                self.events.add_client_irq(vector);
            }
        }
        if let Some(shadow) = shadow {
            self.cpu.registers_mut(Groups::GENERAL).shadow = shadow;
        }
        self.cpu.set_nmi_blocked(e.nmi.masked != 0);
        if e.flags & KVM_VCPUEVENT_VALID_NMI_PENDING != 0 {
            lapic.set_nmi_count(e.nmi.pending);
        }
        if let Some(smi) = smm {
            self.set_inside_smm(smi.smm != 0);
            self.smm.inside_nmi = smi.smm != 0 && smi.smm_inside_nmi != 0;
            lapic.take_smi();
            if smi.pending != 0 {
                lapic.queue_smi();
            }
            if self.apic.is_some() {
                lapic.take_init();
                if smi.latched_init != 0 {
                    lapic.queue_init();
                }
            }
        }
        if e.flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR != 0 {
            lapic.set_sipi_vector(e.sipi_vector as u8);
        }
        Ok(Outcome::OK)
    }

    /// CR2 or the DR6 bits of an exception from the client: its payload, or else the register as it stands.
    fn payload(&mut self, e: &KvmVcpuEvents, payloads: bool) -> u64 {
        if payloads && e.exception_has_payload != 0 {
            return e.exception_payload;
        }
        let state = self.cpu.registers(Groups::CONTROL.and(Groups::DEBUG));
        match Vector(e.exception.nr) {
            Vector::PF => state.cr2,
            Vector::DB => state.dr6 & !x86::debug::DR6_FIXED,
            _ => 0,
        }
    }
}

fn put_exception(e: &mut KvmVcpuEvents, x: &Exception) {
    e.exception.nr = x.vector.0;
    e.exception.has_error_code = x.code.is_some().into();
    e.exception.error_code = x.code.unwrap_or(0);
}

fn has_payload(x: &Exception) -> bool {
    matches!(x.vector, Vector::PF | Vector::DB)
}
