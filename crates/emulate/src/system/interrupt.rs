//! INT n, INT3, INTO and INT1.
use x86::{Mode, Vector, flags};

use super::event::{Event, deliver};
use crate::{Cpu, Op, Res, Stop};

/// Delivers and, if a task gate led to a fault in the new task, leaves that to the processor.
fn raise<C: Cpu>(cpu: &mut C, event: Event) -> Res {
    if let Some(exception) = deliver(cpu, event)? {
        cpu.raise_after(exception);
    }
    Ok(())
}

/// INT n.
pub(super) fn int<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    raise(cpu, Event::Software { vector: op.imm as u8, len: 0, int3_or_into: false })
}

/// INT3.
pub(super) fn int3<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    raise(cpu, Event::Software { vector: Vector::BP.0, len: 0, int3_or_into: true })
}

/// INTO.
pub(super) fn into<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state();
    if state.mode == Mode::Long64 {
        return Err(Stop::UD);
    }
    if state.flags.get() & flags::OF == 0 {
        return Ok(());
    }
    raise(cpu, Event::Software { vector: Vector::OF.0, len: 0, int3_or_into: true })
}

/// INT1 (ICEBP).
pub(super) fn int1<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    raise(cpu, Event::Icebp { len: 0 })
}
