//! Accesses to guest-physical memory that did not go through.
use platform::MaySleep;

use crate::{
    Errno,
    backend::{Access, Backend},
    vcpu::{Run, Step},
};

impl<B: Backend> Run<'_, B> {
    /// Memory that a slot serves after all (the slots changed, or the host took the page for a while) is tried again;
    /// everything else is a device, and the instruction is emulated.
    pub(super) fn nested_page_fault(
        &mut self,
        gpa: u64,
        access: Access,
        table_walk: bool,
        cx: &MaySleep,
    ) -> Result<Step, Errno> {
        if let Some(frame) = self.vm.memory.resolve(self.index, gpa >> 12)
            && (access != Access::Write || !frame.read_only || table_walk)
        {
            return Ok(Step::Continue);
        }
        self.emulate(cx)
    }
}
