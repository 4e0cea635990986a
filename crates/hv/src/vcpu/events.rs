//! Events on their way into the guest, in one queue for all back ends.
//!
//! An event is *pending* until an entry takes it along, and *injected* from then until the processor has delivered
//! it: an exit in the middle hands it back, and it is injected again at the next entry, before anything else.
//! Interrupts and NMIs from the local APIC are not here but where they arrive (`irqchip::LapicShared`).
use x86::{Exception, Vector};

use crate::backend::{Event, EventKind};

/// The queue of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    /// To be injected again.
    pub(crate) injected: Option<Event>,
    /// An interrupt or NMI whose delivery has met an exception: injected again when the guest can take it.
    pub(crate) deferred: Option<Event>,
    /// Raised by the hypervisor or the client, not yet injected.
    pub(crate) exception: Option<Exception>,
    /// Vectors from KVM_INTERRUPT and SREGS, for a vCPU without a local APIC in the hypervisor.
    client_irqs: [u64; 4],
    /// An exception was raised while a double fault was being delivered.
    pub(crate) triple_fault: bool,
    /// An instruction that the client's debugger steps was finished by the hypervisor: it is told before the next begins.
    pub(crate) stepped: bool,
}

impl Events {
    /// Raises an exception. Together with one that has not been delivered it may make #DF or a triple fault (SDM
    /// vol. 3, 6.15, table 6-5).
    pub(crate) fn raise(&mut self, new: Exception) {
        let first = self.exception.take().or(match self.injected {
            Some(Event { kind: EventKind::Exception(first) }) => Some(first),
            _ => None,
        });
        let Some(first) = first else {
            self.exception = Some(new);
            // INT n is executed again when the handler returns, but an interrupt would be lost.
            if let Some(interrupted) = self.injected.take()
                && matches!(interrupted.kind, EventKind::Interrupt(_) | EventKind::Nmi)
            {
                self.deferred = Some(interrupted);
            }
            return;
        };
        let page_fault = first.vector == Vector::PF;
        if first.vector == Vector::DF {
            self.injected = None;
            self.triple_fault = true;
        } else if first.is_contributory() && new.is_contributory()
            || page_fault && (new.is_contributory() || new.vector == Vector::PF)
        {
            self.injected = None;
            self.exception = Some(Exception::with_code(Vector::DF, 0));
        } else {
            // Handled one after the other: the first comes again when its instruction is restarted.
            if matches!(self.injected, Some(Event { kind: EventKind::Exception(_) })) {
                self.injected = None;
            }
            self.exception = Some(new);
        }
    }

    /// Adds a vector from the client.
    pub(crate) fn add_client_irq(&mut self, vector: u8) {
        self.client_irqs[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    /// The highest vector from the client.
    pub(crate) fn client_irq(&self) -> Option<u8> {
        let word = (0..4).rev().find(|w| self.client_irqs[*w] != 0)?;
        Some((word as u32 * 64 + self.client_irqs[word].ilog2()) as u8)
    }

    pub(crate) fn take_client_irq(&mut self) -> Option<u8> {
        let vector = self.client_irq()?;
        self.client_irqs[usize::from(vector >> 6)] &= !(1 << (vector & 63));
        Some(vector)
    }

    /// KVM_GET_SREGS' bitmap: what the client has queued, and an interrupt whose delivery was cut short.
    pub(crate) fn interrupt_bitmap(&self) -> [u64; 4] {
        let mut bitmap = self.client_irqs;
        for Event { kind } in [self.injected, self.deferred].into_iter().flatten() {
            let EventKind::Interrupt(vector) = kind else { continue };
            bitmap[usize::from(vector >> 6)] |= 1 << (vector & 63);
        }
        bitmap
    }

    /// KVM_SET_SREGS' bitmap. With a local APIC in the hypervisor it can only be an interrupt whose delivery was cut short.
    pub(crate) fn set_interrupt_bitmap(&mut self, bitmap: [u64; 4], has_apic: bool) {
        self.client_irqs = bitmap;
        for event in [&mut self.injected, &mut self.deferred] {
            event.take_if(|event| matches!(event.kind, EventKind::Interrupt(_)));
        }
        if has_apic && let Some(vector) = self.client_irq() {
            self.client_irqs = [0; 4];
            self.injected = Some(Event { kind: EventKind::Interrupt(vector) });
        }
    }

    /// Nothing is pending, injected, or to be told.
    #[inline]
    pub(crate) fn are_none(&self) -> bool {
        let told = self.triple_fault || self.stepped;
        !told
            && !self.occupied()
            && self.deferred.is_none()
            && self.client_irqs.iter().fold(0, |all, word| all | word) == 0
    }

    /// Whether an entry will deliver something in any case.
    pub(crate) fn occupied(&self) -> bool {
        self.injected.is_some() || self.exception.is_some()
    }

    /// Forgets everything (INIT).
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise_during(first: Exception, second: Exception) -> Events {
        let mut events = Events { injected: Some(Event { kind: EventKind::Exception(first) }), ..Events::default() };
        events.raise(second);
        events
    }

    #[test]
    fn exceptions_merge_as_the_table_says() {
        let (gp, pf) = (Exception::with_code(Vector::GP, 0), Exception::page_fault(0x1000, 2));
        let (ud, df) = (Exception::plain(Vector::UD), Exception::with_code(Vector::DF, 0));
        for (first, second, expected) in
            [(gp, gp, df), (pf, gp, df), (pf, pf, df), (gp, pf, pf), (ud, gp, gp), (gp, ud, ud), (pf, ud, ud)]
        {
            let events = raise_during(first, second);
            assert_eq!((events.exception, events.injected), (Some(expected), None), "{first:?} {second:?}");
        }
        let events = raise_during(df, gp);
        assert!(events.triple_fault && !events.occupied());
    }

    #[test]
    fn an_exception_does_not_push_out_an_interrupt() {
        let interrupt = Event { kind: EventKind::Interrupt(0x31) };
        let mut events = Events { injected: Some(interrupt), ..Events::default() };
        events.raise(Exception::plain(Vector::UD));
        // The handler of the exception first, then the interrupt.
        assert_eq!((events.injected, events.deferred), (None, Some(interrupt)));
        assert_eq!(events.interrupt_bitmap(), [1 << 0x31, 0, 0, 0]);
        events.set_interrupt_bitmap([0; 4], false);
        assert_eq!(events.deferred, None);
    }

    #[test]
    fn client_interrupts_come_highest_first_and_once() {
        let mut events = Events::default();
        for vector in [0, 63, 64, 255, 33] {
            events.add_client_irq(vector);
        }
        let taken: [_; 6] = core::array::from_fn(|_| events.take_client_irq());
        assert_eq!(taken, [Some(255), Some(64), Some(63), Some(33), Some(0), None]);
    }
}
