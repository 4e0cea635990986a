//! Which event goes into the guest at the next entry (SDM vol. 3, 6.9: the order of simultaneous events).
use x86::{CpuState, Shadow, flags};

use super::{MpState, Run};
use crate::{
    backend::{Backend, BackendVcpu, Event, EventKind, Groups},
    stats::Counter,
    vm::Irqchip,
};

/// An interrupt that waits for the guest to take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A vector of the local APIC.
    Apic(u8),
    /// The 8259A; the vector comes from its acknowledge cycle.
    Pic,
    /// KVM_INTERRUPT.
    Client,
}

impl<B: Backend> Run<'_, B> {
    /// Hands the back end the event that goes first, and asks for the windows that the others wait for.
    pub(super) fn prepare_events(&mut self) {
        let event = self.next_event();
        if let Some(event) = event {
            self.inner.cpu.inject(event);
        }
        let blocked = self.interrupts_blocked();
        let deferred = self.inner.events.deferred.map(|event| event.kind);
        let interrupt = self.waiting_interrupt().is_some()
            || self.window && self.takes_client()
            || matches!(deferred, Some(EventKind::Interrupt(_)));
        let nmi = self.shared.lapic.nmi_count() != 0 || deferred == Some(EventKind::Nmi);
        self.inner.cpu.request_window(interrupt && !blocked, nmi && !blocked);
    }

    /// The client's debugger steps, and wants no handler in between (KVM_GUESTDBG_BLOCKIRQ).
    fn interrupts_blocked(&self) -> bool {
        self.inner.debug.block_interrupts && self.inner.debug.single_step
    }

    /// Whether interrupts come from the client at all: not with the controllers in the hypervisor.
    pub(super) fn client_interrupts(&self) -> bool {
        self.inner.apic.is_none() || self.vm.chips.mode() != Irqchip::Kernel
    }

    /// An interrupt of the client's 8259A would pass the local APIC, if that is in the hypervisor.
    fn accepts_client(&self) -> bool {
        self.inner.apic.as_ref().is_none_or(|apic| apic.lapic.accepts_pic())
    }

    /// An interrupt of the client's would find a place: what [`Self::ready_for_interrupt`] asks, but for the guest. A window that
    /// is asked for without that would open again and again before the guest has done anything.
    fn takes_client(&self) -> bool {
        let events = &self.inner.events;
        self.client_interrupts()
            && self.accepts_client()
            && !events.occupied()
            && events.deferred.is_none()
            && events.client_irq().is_none()
    }

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let stats = &self.shared.stats;
        if let Some(event) = self.inner.events.injected.take() {
            stats.count(Counter::Reinjections);
            return Some(event);
        }
        if let Some(exception) = self.inner.events.exception.take() {
            // The handler returns to the instruction that faulted; a debug trap's RF is the back end's business.
            return Some(Event { kind: EventKind::Exception(exception) });
        }
        if self.interrupts_blocked() {
            return None;
        }
        let nmi_blocked = self.inner.cpu.nmi_blocked();
        if nmi_blocked {
            self.shared.lapic.latch_one_nmi();
        }
        let state = self.inner.cpu.registers(Groups::PLAIN);
        let (shadow, interruptible) = (state.shadow, interruptible(state));
        // STI holds NMIs back too, as on Linux: processors may want no NMI there (SDM vol. 3, 27.3.1.5).
        let takes_nmi = shadow == Shadow::None && !nmi_blocked;
        if takes_nmi && self.shared.lapic.take_nmi() {
            stats.count(Counter::NmiInjections);
            return Some(Event { kind: EventKind::Nmi });
        }
        if let Some(event) = self.inner.events.deferred
            && (if event.kind == EventKind::Nmi { takes_nmi } else { interruptible })
        {
            self.inner.events.deferred = None;
            stats.count(Counter::Reinjections);
            return Some(event);
        }
        if !interruptible {
            return None;
        }
        let source = self.waiting_interrupt()?;
        stats.count(Counter::IrqInjections);
        let vector = match source {
            Source::Apic(vector) => {
                if let Some(apic) = &mut self.inner.apic {
                    apic.lapic.accept(vector);
                }
                vector
            }
            Source::Pic => {
                self.shared.lapic.take_extint();
                self.vm.chips.acknowledge_pic(&self.vm.vcpus)
            }
            Source::Client => self.inner.events.take_client_irq()?,
        };
        Some(Event { kind: EventKind::Interrupt(vector) })
    }

    /// The interrupt that is next, whether or not the guest can take it now.
    fn waiting_interrupt(&self) -> Option<Source> {
        if self.inner.events.client_irq().is_some() && self.accepts_client() {
            return Some(Source::Client);
        }
        let apic = self.inner.apic.as_ref()?;
        let pic = self.vm.chips.mode() == Irqchip::Kernel
            && (self.vm.chips.intr() && apic.lapic.accepts_pic() || self.shared.lapic.extint_pending());
        if pic {
            return Some(Source::Pic);
        }
        apic.lapic.pending_vector().map(Source::Apic)
    }

    /// Whether an event would end HLT.
    pub(super) fn has_event(&mut self) -> bool {
        let nmi_blocked = self.inner.cpu.nmi_blocked();
        let smi = self.shared.lapic.smi_pending() && !self.inner.smm.inside;
        if smi || self.shared.lapic.nmi_count() != 0 && !nmi_blocked {
            return true;
        }
        let state = self.inner.cpu.registers(Groups::PLAIN);
        state.flags.control(flags::IF) && self.waiting_interrupt().is_some()
    }

    /// `ready_for_interrupt_injection`: an interrupt that the client queues now would be taken at the next entry.
    pub(super) fn ready_for_interrupt(&mut self) -> bool {
        self.takes_client() && interruptible(self.inner.cpu.registers(Groups::PLAIN))
    }

    /// After an exit, or an entry that did not happen: what was not delivered is to be injected again.
    pub(super) fn take_back(&mut self) {
        if let Some(event) = self.inner.cpu.take_unfinished_event() {
            self.inner.events.injected = Some(event);
        }
    }

    /// INIT and SIPI.
    pub(super) fn accept_init_sipi(&mut self) {
        if self.inner.apic.is_none() || !self.shared.lapic.has_init_or_sipi() {
            if let MpState::SipiReceived(vector) = self.inner.mp {
                self.inner.start_at(vector);
            }
            return;
        }
        if self.inner.smm.inside {
            // INIT waits for RSM, and a processor that has not seen it ignores SIPI.
            self.shared.lapic.take_sipi();
            return;
        }
        if self.shared.lapic.take_init() {
            let boot = self.vm.is_boot_cpu(self.index as u32);
            self.inner.init(boot);
        }
        if self.inner.mp == MpState::InitReceived {
            if let Some(vector) = self.shared.lapic.take_sipi() {
                self.inner.start_at(vector);
            }
        } else if self.inner.mp != MpState::Uninitialized {
            // A SIPI to a processor that runs is ignored.
            self.shared.lapic.take_sipi();
        }
    }
}

/// An interrupt would be taken at this instruction boundary.
fn interruptible(state: &CpuState) -> bool {
    state.flags.control(flags::IF) && state.shadow == Shadow::None
}
