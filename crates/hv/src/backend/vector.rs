//! Vector and x87 arithmetic for instructions that the core executes itself, because an operand lies in device memory.
use core::convert::Infallible;

use emulate::{Cpu, Op, Res};

/// Executes what `emulate` leaves to [`Cpu::vector`]. A back end that has none lets such an instruction end KVM_RUN with
/// an internal error, as Linux does.
pub trait VectorUnit {
    /// Executes `op`, for which the architectural checks have been made, on the registers and the memory of `cpu`; `memory`
    /// is the linear address of its memory operand. When that fails nothing but exception flags has changed.
    ///
    /// # Errors
    /// The guest's fault, or what `cpu` answers to the access of the operand.
    fn execute<C: Cpu>(&mut self, cpu: &mut C, op: &Op<C>, memory: Option<u64>) -> Res;
}

impl VectorUnit for Infallible {
    fn execute<C: Cpu>(&mut self, _cpu: &mut C, _op: &Op<C>, _memory: Option<u64>) -> Res {
        match *self {}
    }
}
