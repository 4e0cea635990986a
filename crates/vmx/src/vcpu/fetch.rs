//! Registers that stay in the control structure until somebody asks, and whether the processor would be entered with those there are.
use hardware::fpu;
use hv::backend::Groups;
use mmu::shadow::Root;
use platform::{Atomic, Hardware, hardware::Watch};
use x86::{CpuState, Cr0, Efer, flags};

use super::{Guest, settled::REST};
use crate::{
    backend::Common,
    guest_state::{self, Form},
    instructions::Instructions,
    sync::{self, Segments},
    vmcs::Current,
};

/// EPT pointer: the tables are cached as write-back memory and have four levels; entries have accessed and dirty bits.
const EPT_FORM: u64 = 6 | 3 << 3;
const EPT_ACCESSED: u64 = 1 << 6;

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Brings the groups in `need` up to date.
    #[inline]
    pub(super) fn fetch(&mut self, common: &Common<P>, need: Groups) {
        // Rights of segments are read with either.
        let need = if need.any(Groups::SEGMENTS.and(REST)) { need.and(REST) } else { need };
        let wanted = Groups(self.stale.0 & need.0);
        if wanted.0 != 0 {
            self.fetch_stale(common, wanted);
        }
    }

    #[inline(never)]
    fn fetch_stale(&mut self, common: &Common<P>, wanted: Groups) {
        self.stale = self.stale.without(wanted);
        if wanted.any(Groups::FPU) {
            fpu::save(&mut self.fpu, &mut self.state.fpu);
        }
        if wanted.any(Groups::MSRS) {
            let cx = Atomic::at_entry();
            P::irqs_off(&cx);
            // SAFETY: interrupts are off, and only the thread that runs the vCPU has it between two entries.
            self.state.kernel_gs_base = unsafe { self.user_mode.told().kernel_gs_base() };
            P::irqs_on(&cx);
        }
        if !wanted.any(Groups::SEGMENTS.and(Groups::PAGING).and(REST)) {
            return;
        }
        // The thread may have been anywhere since the exit.
        let _pin = P::pin();
        let cx = Atomic::at_entry();
        common.locals.recall::<P, I>(self.region.node(), false);
        P::irqs_off(&cx);
        common.locals.with::<P, _>(&cx, |resident, cpu| {
            // Active nowhere else any more.
            let Some(vmcs) = resident.current::<I>(self.region.node(), cpu) else { return };
            if wanted.any(REST) {
                self.take_rest(&vmcs);
            }
            if wanted.any(Groups::SEGMENTS) {
                if self.form == Form::Virtual8086 {
                    sync::read_segments_8086(&vmcs, &mut self.state);
                } else {
                    sync::read_segments(&vmcs, &mut self.state);
                    self.known = Some(Segments::of(&self.state));
                }
            }
            if wanted.any(Groups::PAGING) {
                // Not stale without nested paging.
                self.take_cr0(common, &vmcs);
                self.state.cr3 = self.fields.cr3.get(&vmcs);
            }
        });
        P::irqs_on(&cx);
    }

    /// CR0 as the guest has changed it without an exit.
    pub(super) fn take_cr0(&mut self, common: &Common<P>, vmcs: &Current<I>) {
        let free = common.cr0_free();
        self.state.cr0 = self.state.cr0 & !free | self.fields.cr0.get(vmcs) & free;
    }

    /// What the processor is told of nested tables.
    pub(crate) fn ept_pointer(&self, common: &Common<P>, root: Root) -> u64 {
        root.hpa | EPT_FORM | if common.processor.accessed_bits { EPT_ACCESSED } else { 0 }
    }

    /// Whether the processor can be entered; if not, the core goes on with the guest by itself.
    pub(super) fn can_enter(&mut self, common: &Common<P>) -> bool {
        if common.nested {
            return true;
        }
        // The segments that the guest has left are right for the mode that it has left.
        let switched = self.changed.any(Groups::CONTROL) && self.formed != Some(mode_bits(&self.state));
        if self.changed.any(Groups::SEGMENTS) || switched {
            self.fetch(common, Groups::ALL_BUT_FPU);
            self.formed = Some(mode_bits(&self.state));
            let form = guest_state::form(&self.state);
            if form != self.form {
                // What is in the control structure is of another form.
                self.changed = self.changed.and(Groups::SEGMENTS);
                self.form = form;
            }
        }
        self.form != Form::None
    }
}

/// What the rules for segments depend on, beside the segments.
fn mode_bits(state: &CpuState) -> [u64; 3] {
    [state.cr0 & Cr0::PE.bits(), state.efer & Efer::LMA.bits(), state.flags.control(flags::VM).into()]
}
