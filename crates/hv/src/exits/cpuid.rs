//! CPUID: answered from the table that the client has set (row A08).
use irqchip::lapic::APIC_BASE_ENABLE;

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    cpuid::Answer,
    vcpu::{Inner, Run, Step},
};

impl<B: Backend> Run<'_, B> {
    pub(super) fn cpuid(&mut self, len: u8) -> Result<Step, Errno> {
        self.cpuid_done(len);
        Ok(Step::Continue)
    }

    /// The same. True: nothing else follows from it.
    #[inline]
    pub(super) fn cpuid_done(&mut self, len: u8) -> bool {
        let inner = &mut *self.inner;
        let leaf = inner.cpu.registers(Groups::PLAIN).gpr[0] as u32;
        let answer = match inner.cpuid.fixed(leaf) {
            Some(answer) => answer,
            None => inner.cpuid_varying(leaf),
        };
        // Control registers stay as they are.
        let state = inner.cpu.registers_mut(Groups::PLAIN);
        for (register, value) in [0, 3, 1, 2].into_iter().zip(answer) {
            state.gpr[register] = value.into();
        }
        self.skip(len)
    }
}

impl<B: Backend> Inner<B> {
    /// The answer for a leaf that depends on other registers, or takes longer to find.
    #[inline(never)]
    fn cpuid_varying(&mut self, leaf: u32) -> Answer {
        let enabled = self.apic_base() & APIC_BASE_ENABLE != 0;
        let state = self.cpu.registers(Groups::PLAIN.and(Groups::SWITCHES));
        self.cpuid.execute(leaf, state.gpr[1] as u32, state, enabled)
    }
}
