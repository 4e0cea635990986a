//! Exceptions that were intercepted, and traps that the client's debugger wants to see (row A14).
use abi::*;
use platform::MaySleep;
use x86::{Exception, Seg, Vector, debug};

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    /// An exception that was intercepted. #BP for the client's breakpoints goes to the client, all others to the guest. But
    /// the hypercall instruction of the other vendor, which this processor does not know, is one here too (row A18), and a guest
    /// that is told to be on the other vendor's has its system calls in the same modes as there.
    pub(super) fn exception(&mut self, exception: Exception, cx: &MaySleep) -> Result<Step, Errno> {
        match exception.vector {
            Vector::BP if self.inner.debug.software_breakpoints => return self.debug_exit(Vector::BP, 0),
            Vector::UD => match self.instruction() {
                Some(seen) if seen.hypercall => return self.hypercall(seen.len),
                Some(seen) if seen.system_call => return self.emulate(cx),
                _ => {}
            },
            _ => {}
        }
        self.raise(exception);
        Ok(Step::Continue)
    }

    /// A single step or breakpoint of the client's.
    pub(super) fn debug(&mut self, dr6: u64) -> Result<Step, Errno> {
        self.debug_exit(Vector::DB, dr6)
    }

    /// The step of an instruction that the processor did not finish itself.
    pub(crate) fn stepped(&mut self) -> Result<(), Errno> {
        self.debug_exit(Vector::DB, debug::DR6_BS).map(|_| ())
    }

    /// KVM_EXIT_DEBUG.
    pub(crate) fn debug_exit(&mut self, vector: Vector, dr6: u64) -> Result<Step, Errno> {
        let dr7 = self.inner.debug.hardware.map_or(0, |(_, dr7)| dr7);
        let state = self.inner.cpu.registers(Groups::GENERAL.and(Groups::SEGMENTS).and(Groups::DEBUG));
        let pc = state.seg[Seg::Cs as usize].base.wrapping_add(state.rip);
        let dr7 = if dr7 != 0 { dr7 } else { state.dr7 };
        let arch = KvmDebugExitArch { exception: vector.0.into(), pad: 0, pc, dr6, dr7 };
        self.page.exit(KVM_EXIT_DEBUG, &KvmRunDebug { arch })?;
        Ok(Step::ToClient)
    }
}
