//! Control registers that a processor leaves to the hypervisor.
use abi::*;
use platform::MaySleep;

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, CrOp, Groups},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    pub(super) fn control(&mut self, op: CrOp, len: u8, cx: &MaySleep) -> Result<Step, Errno> {
        match op {
            CrOp::Write { number: 8, value } => self.write_cr8(value, len),
            CrOp::ReadCr8 { gpr } => {
                self.inner.show_cr8();
                let state = self.inner.cpu.registers_mut(Groups::GENERAL.and(Groups::CONTROL));
                state.gpr[usize::from(gpr & 15)] = state.cr8;
                self.skip(len);
                Ok(Step::Continue)
            }
            // The emulator knows the rules of CR0, CR3 and CR4.
            CrOp::Write { .. } | CrOp::Other => self.emulate(cx),
        }
    }

    /// MOV to CR8: the task priority. Without a local APIC in the hypervisor the client hears of a lower one, which may
    /// let an interrupt through (row A13).
    fn write_cr8(&mut self, value: u64, len: u8) -> Result<Step, Errno> {
        if value > 15 {
            return self.refuse();
        }
        let inner = &mut *self.inner;
        let state = inner.cpu.registers_mut(Groups::CONTROL);
        let lowered = value < state.cr8;
        state.cr8 = value;
        self.skip(len);
        if let Some(apic) = &mut self.inner.apic {
            // Checked above.
            let _ = apic.lapic.set_cr8(value);
            return Ok(Step::Continue);
        }
        if !lowered {
            return Ok(Step::Continue);
        }
        self.page.reason(KVM_EXIT_SET_TPR)?;
        Ok(Step::ToClient)
    }
}
