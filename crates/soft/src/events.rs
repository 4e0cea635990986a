//! Exceptions and interrupts on their way into the guest.
use emulate::{
    Handler, Op, Res, Stop,
    event::{self, Delivery, deliver_event},
};
use hv::backend::{Event, EventKind, Exit};
use iced_x86::Code;
use platform::Platform;
use x86::{Exception, Shadow, Vector};

use crate::SoftVcpu;

impl<P: Platform> SoftVcpu<P> {
    /// Delivers an event. Some: delivery needs the core first, which keeps the event, or the guest shuts down.
    pub(crate) fn deliver(&mut self, event: Event) -> Option<Exit> {
        let what = match event.kind {
            EventKind::Exception(exception) => {
                self.stats.exceptions += 1;
                event::Event::Exception(exception)
            }
            EventKind::Nmi => event::Event::Nmi,
            EventKind::Interrupt(vector) => event::Event::Interrupt(vector),
            EventKind::Software { vector, len, int3_or_into } => event::Event::Software { vector, len, int3_or_into },
        };
        if !matches!(event.kind, EventKind::Exception(_)) {
            self.stats.injected += 1;
        }
        match deliver_event(self, what) {
            Delivery::Delivered => {
                self.state.shadow = Shadow::None;
                self.state.refresh();
                if event.kind == EventKind::Nmi {
                    self.nmi_blocked = true;
                }
                None
            }
            Delivery::Shutdown => Some(Exit::Shutdown),
            Delivery::Stopped(stop) => {
                self.unfinished = Some(event);
                let exit = self.exit.take();
                // Entries that kept changing under a walk: the core enters again.
                Some(if stop == Stop::RESTART { Exit::Interrupted } else { exit.unwrap_or(Exit::Interrupted) })
            }
        }
    }

    /// Delivers an exception; see [`SoftVcpu::deliver`].
    pub(crate) fn deliver_exception(&mut self, exception: Exception) -> Option<Exit> {
        self.deliver(Event { kind: EventKind::Exception(exception) })
    }

    /// The instruction at RIP has stopped: leaves, or delivers its exception. `op` is the instruction if it could be
    /// decoded.
    #[cold]
    #[inline(never)]
    pub(crate) fn stopped(&mut self, stop: Stop, op: Option<&Op<Self>>) -> Option<Exit> {
        if let Some(exception) = stop.exception(self.payload) {
            return self.deliver_exception(exception);
        }
        if stop == Stop::RESTART {
            return None;
        }
        let mut exit = self.exit.take().unwrap_or(Exit::Unknown { reason: 0 });
        if let (Exit::Pio(pio), Some(op)) = (&mut exit, op) {
            pio.len = op.len;
            pio.string = is_string_io(op.code);
        }
        Some(exit)
    }

    /// The instruction as this processor executes it: INT3 may belong to the debugger.
    pub(crate) fn adapt(&mut self, mut op: Op<Self>) -> Op<Self> {
        if op.code == Code::Int3 {
            self.int3 = Some(op.run);
            let run: Handler<Self> = Self::execute_int3;
            op.run = run;
        }
        op
    }

    fn execute_int3(cpu: &mut Self, op: &Op<Self>) -> Res {
        if cpu.debug.software_breakpoints {
            return Err(cpu.leave_for(Exit::Exception { exception: Exception::plain(Vector::BP) }));
        }
        match cpu.int3 {
            Some(run) => run(cpu, op),
            None => Err(Stop::UD),
        }
    }
}

fn is_string_io(code: Code) -> bool {
    use Code::*;
    matches!(code, Insb_m8_DX | Insw_m16_DX | Insd_m32_DX | Outsb_DX_m8 | Outsw_DX_m16 | Outsd_DX_m32)
}
