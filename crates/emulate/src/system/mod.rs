//! System instructions and everything that changes mode, privilege or segments.
use iced_x86::Instruction;

use crate::{Cpu, Handler};

/// The function that executes `insn`, if it belongs to this family.
pub fn lookup<C: Cpu>(_insn: &Instruction) -> Option<Handler<C>> {
    None
}
