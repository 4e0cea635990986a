//! What an event that is injected needs beside its delivery, which neither vendor's processors do then.
use hv::backend::{Event, EventKind, GuestDebug};
use x86::{CpuState, Exception, Vector, debug, flags};

/// Writes what the exception that is to be delivered writes besides: CR2, DR6 and DR7.
pub fn apply(injected: Option<&Event>, state: &mut CpuState) {
    let Some(Event { kind: EventKind::Exception(exception) }) = injected else { return };
    match exception.vector {
        Vector::PF => state.cr2 = exception.payload,
        Vector::DB => {
            let bits = 0xf | debug::DR6_BD | debug::DR6_BS | debug::DR6_BT;
            state.dr6 = (state.dr6 & !0xf | exception.payload & bits) & 0xffff_ffff | debug::DR6_FIXED;
            state.dr7 &= !debug::DR7_GD;
        }
        _ => {}
    }
}

/// Fault-class exceptions push RFLAGS with RF set (SDM vol. 3, 17.3.1.1), which injection does not do by itself. Among debug
/// exceptions only general detect is a fault.
pub fn sets_rf(event: &Event) -> bool {
    match event.kind {
        EventKind::Exception(Exception { vector: Vector::DB, payload, .. }) => payload & debug::DR6_BD != 0,
        EventKind::Exception(Exception { vector, .. }) => {
            !matches!(vector, Vector::NMI | Vector::BP | Vector::OF | Vector::DF | Vector::MC)
        }
        _ => false,
    }
}

/// The guest's RFLAGS with what the client's debugger and the event to be delivered want.
pub fn rflags_to_run(mut rflags: u64, debug: &GuestDebug, injected: Option<&Event>) -> u64 {
    if debug.single_step {
        rflags |= flags::TF;
    }
    if injected.is_some_and(sets_rf) {
        rflags |= flags::RF;
    }
    rflags
}

/// RFLAGS as the guest has them, of those that it has left: the debugger's trap flag is not its own.
pub fn rflags_of_guest(rflags: u64, state: &CpuState, debug: &GuestDebug) -> u64 {
    if debug.single_step && !state.flags.control(flags::TF) { rflags & !flags::TF } else { rflags }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_set_rf() {
        for (exception, expected) in [
            (Exception::page_fault(0, 0), true),
            (Exception::with_code(Vector::GP, 0), true),
            (Exception::plain(Vector::BP), false),
            (Exception::with_code(Vector::DF, 0), false),
            (Exception::debug(debug::DR6_BS), false),
            (Exception::debug(debug::DR6_BD), true),
        ] {
            assert_eq!(sets_rf(&Event { kind: EventKind::Exception(exception) }), expected, "{exception:?}");
        }
        assert!(!sets_rf(&Event { kind: EventKind::Interrupt(14) }));
    }

    #[test]
    fn the_debuggers_trap_flag_is_not_the_guests() {
        let mut state = CpuState::reset(0);
        let step = GuestDebug { single_step: true, ..GuestDebug::default() };
        let run = rflags_to_run(state.flags.get(), &step, None);
        assert_eq!(run & flags::TF, flags::TF);
        assert_eq!(rflags_of_guest(run, &state, &step) & flags::TF, 0);
        state.flags.set_control(flags::TF, flags::TF);
        assert_eq!(rflags_of_guest(run, &state, &step) & flags::TF, flags::TF);
    }
}
