//! RDPMC. There are no performance counters that count: AMD's, which every processor of theirs has, stand still.
use platform::Platform;
use x86::Features;

use crate::{
    Errno,
    backend::{Backend, BackendVcpu, Groups},
    vcpu::{Run, Step},
};

/// Counters that AMD's processors have had since the K7 (APM vol. 2, 13.2).
const AMD_COUNTERS: u32 = 4;
/// VMware's pseudo counters, which Linux's KVM answers too: the host's TSC, and time in nanoseconds, as the host and as
/// the guest has it.
const HOST_TSC: u32 = 0x1_0000;
const REAL_TIME: u32 = 0x1_0001;
const APPARENT_TIME: u32 = 0x1_0002;

impl<B: Backend> Run<'_, B> {
    /// RDPMC of the counter in ECX; its right to do so has been checked.
    pub(super) fn rdpmc(&mut self, len: u8) -> Result<Step, Errno> {
        let value = match self.inner.cpu.registers(Groups::PLAIN).gpr[1] as u32 {
            HOST_TSC => B::Platform::tsc(),
            REAL_TIME => B::Platform::now_ns(),
            APPARENT_TIME => self.vm.clock.read::<B::Platform>().kvmclock,
            counter if counter < AMD_COUNTERS && self.inner.features.contains(Features::AMD) => 0,
            _ => return self.refuse(),
        };
        self.load_edx_eax(value);
        self.skip(len);
        Ok(Step::Continue)
    }
}
