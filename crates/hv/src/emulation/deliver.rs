//! Delivery of events by the hypervisor: through task gates, which processors that walk shadow tables leave to it because a task
//! switch changes CR3, and to guests that no processor runs now.
use abi::KVM_EXIT_SHUTDOWN;
use emulate::event::{self, Delivery, deliver_event};
use platform::MaySleep;
use x86::Seg;

use super::guest::{Guest, Why};
use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Event, EventKind, Groups},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    /// The next event or instruction of a guest that no processor runs now: a handler in system management mode, or registers
    /// that the processor does not take.
    pub(crate) fn execute(&mut self, cx: &MaySleep) -> Result<Step, Errno> {
        match self.next_event() {
            Some(event) => {
                self.inner.events.injected = Some(event);
                self.deliver(event)
            }
            None => match self.breakpoint() {
                Some(step) => step,
                None => self.emulate(cx),
            },
        }
    }

    /// Delivers `event`, which is to be injected, in place of the processor.
    pub(crate) fn deliver(&mut self, event: Event) -> Result<Step, Errno> {
        let what = match event.kind {
            EventKind::Exception(exception) => event::Event::Exception(exception),
            EventKind::Nmi => event::Event::Nmi,
            EventKind::Interrupt(vector) => event::Event::Interrupt(vector),
            EventKind::Software { vector, len, int3_or_into } => event::Event::Software { vector, len, int3_or_into },
        };
        let inner = &mut *self.inner;
        let state = inner.cpu.registers(Groups::ALL_BUT_FPU);
        let at = state.seg[Seg::Cs as usize].base.wrapping_add(state.rip);
        inner.tx.begin(at);
        let mut guest = Guest::new(inner, Groups::ALL_BUT_FPU, self.vm, self.shared, self.index, self.page);
        let delivery = deliver_event(&mut guest, what);
        let notes = core::mem::take(&mut guest.notes);
        if delivery == Delivery::Delivered {
            guest.state.shadow = x86::Shadow::None;
            guest.state.refresh();
        }
        inner.tx.abandon();
        notes.carry_out_flush(inner);
        match delivery {
            Delivery::Delivered => {
                inner.events.injected = None;
                if event.kind == EventKind::Nmi {
                    inner.cpu.set_nmi_blocked(true);
                }
                if let Some(exception) = notes.after {
                    self.raise(exception);
                }
                Ok(Step::Continue)
            }
            Delivery::Shutdown => {
                inner.events.injected = None;
                self.page.reason(KVM_EXIT_SHUTDOWN)?;
                Ok(Step::ToClient)
            }
            Delivery::Stopped(_) => match notes.why {
                Some(Why::BadAddress) => Err(Errno::EFAULT),
                None | Some(Why::Again) => Ok(Step::Continue),
                // The stack or a table of the new task is in device memory.
                Some(_) => self.delivery_failed(0),
            },
        }
    }
}
