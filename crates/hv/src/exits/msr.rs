//! RDMSR and WRMSR.
use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    msr::By,
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    pub(super) fn rdmsr(&mut self, len: u8) -> Result<Step, Errno> {
        let index = self.inner.cpu.registers(Groups::GENERAL).gpr[1] as u32;
        let Ok(value) = self.inner.read_msr(index, By::Guest) else { return self.refuse() };
        let state = self.inner.cpu.registers_mut(Groups::GENERAL);
        state.gpr[0] = value & 0xffff_ffff;
        state.gpr[2] = value >> 32;
        self.skip(len);
        Ok(Step::Continue)
    }

    pub(super) fn wrmsr(&mut self, len: u8) -> Result<Step, Errno> {
        let state = self.inner.cpu.registers(Groups::GENERAL);
        let index = state.gpr[1] as u32;
        let value = state.gpr[0] & 0xffff_ffff | state.gpr[2] << 32;
        if self.inner.write_msr(index, value, By::Guest, self.vm, self.index).is_err() {
            return self.refuse();
        }
        self.skip(len);
        Ok(Step::Continue)
    }
}
