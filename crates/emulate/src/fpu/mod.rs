//! x87, MMX, SSE and AVX: what has to be checked before they run, and those that only move state.
use iced_x86::Instruction;

use crate::{Cpu, Handler};

/// The function that executes `insn`, if it belongs to this family.
pub fn lookup<C: Cpu>(_insn: &Instruction) -> Option<Handler<C>> {
    None
}
