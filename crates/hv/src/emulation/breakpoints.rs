//! Code breakpoints of guests that no processor runs now: what a processor would look for before an instruction.
use x86::{
    Exception, Shadow, Vector,
    debug::{self, DR6_FIXED, DR7_ENABLED, Watch},
    flags,
};

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    /// Takes a breakpoint at the next instruction, of the client's or of the guest's. None: there is none.
    pub(super) fn breakpoint(&mut self) -> Option<Result<Step, Errno>> {
        let client = self.inner.debug.hardware;
        let state = self.inner.cpu.registers(Groups::ALL_BUT_FPU);
        let (addresses, dr7) = client.unwrap_or((state.dr, state.dr7));
        // Behind MOV SS there is none, with RF neither.
        let looks = dr7 & DR7_ENABLED != 0 && state.shadow != Shadow::MovSs && !state.flags.control(flags::RF);
        let at = state.linear_rip();
        let hits = if looks { debug::hits(&addresses, dr7, at, 1, |watch| watch == Watch::Execute) } else { 0 };
        if hits != 0 {
            if client.is_some() {
                return Some(self.debug_exit(Vector::DB, DR6_FIXED | hits));
            }
            // The handler returns to this instruction, which then runs.
            self.inner.cpu.registers_mut(Groups::GENERAL).flags.set_control(flags::RF, flags::RF);
            self.raise(Exception::debug(hits));
            return Some(Ok(Step::Continue));
        }
        if self.inner.debug.software_breakpoints && self.is_int3() {
            return Some(self.debug_exit(Vector::BP, 0));
        }
        None
    }
}
