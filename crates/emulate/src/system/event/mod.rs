//! Exceptions and interrupts on their way into the guest: through the interrupt vector table of real mode or the
//! gates of the IDT (SDM vol. 3, chapter 6; vol. 2, INT n; APM vol. 2, chapter 8).
mod long;
mod protected;
mod real;
#[cfg(test)]
mod tests;

use x86::{CpuState, Exception, Mode, Shadow, Vector, debug, flags};

use crate::{Cpu, Res, Stop};

/// Faults during delivery lead to further faults, but never for long: benign, contributory, page fault, double fault.
const MAX_NESTING: u32 = 8;

/// What is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An exception that the processor found. RIP is at the instruction for faults, behind it for traps.
    Exception(Exception),
    /// A non-maskable interrupt. Blocking further ones until IRET is the caller's.
    Nmi,
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// INT n, INT3 or INTO.
    Software {
        /// Vector.
        vector: u8,
        /// How far behind RIP the pushed return address is: the instruction's length, or 0 if RIP is already past it.
        len: u8,
        /// INT3 and INTO, which virtual-8086 mode's rules for INT n do not concern.
        int3_or_into: bool,
    },
    /// INT1 (ICEBP): like #DB, but DR6 stays as it is.
    Icebp {
        /// As in [`Event::Software`].
        len: u8,
    },
}

/// How delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The guest is at the first instruction of a handler: the event's, or that of an exception met on the way.
    Delivered,
    /// A fault while a double fault was delivered.
    Shutdown,
    /// Delivery needs something from outside, or has to be tried again ([`Stop::EXIT`], [`Stop::RESTART`]). The registers
    /// are as before: deliver the same event again later.
    Stopped(Stop),
}

/// Delivers `event`, and the exceptions that its delivery raises, by the rules for double faults (SDM vol. 3, table 6-5).
pub fn deliver_event<C: Cpu>(cpu: &mut C, event: Event) -> Delivery {
    let (cr2, dr6, dr7) = (cpu.state().cr2, cpu.state().dr6, cpu.state().dr7);
    let mut event = event;
    let mut in_new_task = false;
    for _ in 0..MAX_NESTING {
        let second = match deliver(cpu, event) {
            Ok(None) => return Delivery::Delivered,
            Ok(Some(trap)) if trap.vector == Vector::DB => {
                // The T bit of the handler's task: the event has been delivered, this is another.
                in_new_task = true;
                event = Event::Exception(trap);
                continue;
            }
            Ok(Some(second)) => {
                in_new_task = true;
                second
            }
            Err(stop) => match (stop.exception(cpu.payload()), event) {
                (Some(second), _) => second,
                (None, Event::Exception(exception)) if in_new_task => {
                    // The event cannot be delivered again from the start.
                    cpu.raise_after(exception);
                    return Delivery::Delivered;
                }
                (None, _) => {
                    let state = cpu.state_mut();
                    (state.cr2, state.dr6, state.dr7) = (cr2, dr6, dr7);
                    return Delivery::Stopped(stop);
                }
            },
        };
        // What exceptions write besides stays, although their handlers may not be reached.
        if let Event::Exception(first) = event {
            apply_payload(cpu.state_mut(), first);
            if second.vector == Vector::PF {
                apply_payload(cpu.state_mut(), second);
            }
            match combine(first, second) {
                Some(next) => event = Event::Exception(next),
                None => return Delivery::Shutdown,
            }
        } else {
            event = Event::Exception(second);
        }
    }
    Delivery::Shutdown
}

/// Delivers an exception; see [`deliver_event`].
pub fn deliver_exception<C: Cpu>(cpu: &mut C, exception: Exception) -> Delivery {
    deliver_event(cpu, Event::Exception(exception))
}

/// What is raised when `second` is met while `first` is delivered; None is shutdown.
fn combine(first: Exception, second: Exception) -> Option<Exception> {
    let page_fault = |e: Exception| e.vector == Vector::PF;
    let grave = second.is_contributory() || page_fault(second);
    if first.vector == Vector::DF {
        None
    } else if first.is_contributory() && second.is_contributory() || page_fault(first) && grave {
        Some(Exception::with_code(Vector::DF, 0))
    } else {
        Some(second)
    }
}

/// What delivery writes besides the stack: CR2, DR6, DR7.
fn apply_payload(state: &mut CpuState, exception: Exception) {
    match exception.vector {
        Vector::PF => state.cr2 = exception.payload,
        Vector::DB => {
            // B0 to B3 tell about this exception only; the other bits are sticky.
            state.dr6 = state.dr6 & !0xf | exception.payload & (0xf | debug::DR6_BD | debug::DR6_BS | debug::DR6_BT);
            state.dr6 = state.dr6 & 0xffff_ffff | debug::DR6_FIXED;
            state.dr7 &= !debug::DR7_GD;
        }
        _ => {}
    }
}

/// What the three ways into a handler need to know about an event.
#[derive(Clone, Copy, Debug)]
struct Delivering {
    vector: u8,
    /// The error code to push.
    code: Option<u32>,
    /// INT n, INT3, INTO: the gate must allow the program to call it.
    software: bool,
    /// EXT in error codes of faults met on the way.
    ext: u32,
    /// RIP to push.
    rip: u64,
    /// RFLAGS to push.
    flags: u64,
}

impl Delivering {
    fn new(state: &CpuState, event: Event) -> Self {
        let mut flags = state.flags.get();
        let mut rip = state.rip;
        let (vector, code, software) = match event {
            Event::Exception(e) => {
                if restarts(e) {
                    flags |= flags::RF;
                }
                (e.vector.0, e.code, false)
            }
            Event::Nmi => (Vector::NMI.0, None, false),
            Event::Interrupt(vector) => (vector, None, false),
            Event::Software { vector, len, .. } => {
                rip = rip.wrapping_add(len as u64);
                (vector, None, true)
            }
            Event::Icebp { len } => {
                rip = rip.wrapping_add(len as u64);
                (Vector::DB.0, None, false)
            }
        };
        if state.mode != Mode::Long64 {
            rip = rip as u32 as u64;
        }
        Self { vector, code, software, ext: !software as u32, rip, flags }
    }

    /// The fault `vector` about the IDT entry.
    fn idt_fault(&self, vector: Vector) -> Stop {
        Stop::fault_code(vector, (self.vector as u32) << 3 | 2 | self.ext)
    }
}

/// Fault-class exceptions push RFLAGS with RF set, so that their instruction does not hit its breakpoint again (SDM
/// vol. 3, 17.3.1.1); among debug exceptions only general detect does.
fn restarts(e: Exception) -> bool {
    match e.vector {
        Vector::DB => e.payload & debug::DR6_BD != 0,
        Vector::NMI | Vector::BP | Vector::OF | Vector::DF | Vector::MC => false,
        _ => true,
    }
}

/// Delivers one event. `Err`: nothing has changed, and this happened on the way. `Ok(Some)`: a task gate brought the
/// processor to a new task, and there this exception is raised.
pub(crate) fn deliver<C: Cpu>(cpu: &mut C, event: Event) -> Res<Option<Exception>> {
    let d = Delivering::new(cpu.state(), event);
    let int_n = matches!(event, Event::Software { int3_or_into: false, .. });
    let state = cpu.state();
    let raised = if state.mode == Mode::Real {
        real::deliver(cpu, &d)?
    } else if state.mode == Mode::Virtual8086 && int_n && real::redirected(cpu, &d)? {
        real::deliver_redirected(cpu, &d)?
    } else if cpu.state().long_mode() {
        long::deliver(cpu, &d)?
    } else {
        protected::deliver(cpu, &d)?
    };
    let state = cpu.state_mut();
    state.shadow = Shadow::None;
    match event {
        Event::Exception(e) => apply_payload(state, e),
        Event::Icebp { .. } => state.dr7 &= !debug::DR7_GD,
        _ => {}
    }
    super::privilege_changed(cpu);
    Ok(raised)
}
