//! From the core's call to the exit that answers it.
use core::sync::atomic::Ordering::SeqCst;

use hardware::fpu;
use hv::backend::{Env, Exit, Groups};
use mmu::shadow::Root;
use platform::{Atomic, Hardware, Level};

use super::Guest;
use crate::{
    backend::Common,
    failure,
    guest_state::{self, Form},
    instructions::Instructions,
};

/// How a crossing ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Crossed {
    /// The guest ran, or the processor did not like its state: [`super::Left`] has what it says.
    Left,
    /// The processor refused the control structure, with this error.
    Refused(u32),
    /// The control structure is active on another processor.
    Elsewhere,
    /// This processor is switched off.
    Off,
}

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Runs the guest until something happens.
    pub(super) fn enter(&mut self, common: &Common<P>, env: &Env<'_, P>) -> Exit {
        let settled = self.is_settled_on(env.root);
        if !settled && let Some(exit) = self.before(common, env) {
            return exit;
        }
        let cx = Atomic::at_entry();
        let crossed = loop {
            let Some(cpu) = P::prepare(&cx) else { return Exit::Interrupted };
            // A kick may have come before interrupts were off.
            if env.requests.load(SeqCst) != 0 {
                P::irqs_on(&cx);
                return Exit::Interrupted;
            }
            let crossed = self.cross(common, env.root, settled, cpu, &cx);
            if !matches!(crossed, Crossed::Elsewhere) {
                break crossed;
            }
            P::irqs_on(&cx);
            // Active nowhere afterwards; and the thread keeps its processor.
            common.locals.recall::<P, I>(self.region.node(), false);
        };
        P::irqs_on(&cx);
        match crossed {
            Crossed::Left => self.left(common),
            Crossed::Refused(error) => {
                self.tell(format_args!("VM entry refused: {} (error {error})", failure::refused(error)));
                Exit::FailEntry { reason: error.into() }
            }
            Crossed::Elsewhere | Crossed::Off => Exit::FailEntry { reason: 0 },
        }
    }

    /// What keeps the processor from entering the guest.
    fn before(&mut self, common: &Common<P>, env: &Env<'_, P>) -> Option<Exit> {
        if env.root == Root::NONE {
            return Some(Exit::FailEntry { reason: 0 });
        }
        if self.form == Form::Virtual8086 && self.asked.injected.is_some() {
            // It would go through the guest's table as protected mode's.
            return Some(Exit::Delivery);
        }
        if let Some(exit) = self.before_nmi(&common.processor) {
            return Some(exit);
        }
        if self.changed.any(Groups::FPU) && !self.restore_fpu(common) {
            return Some(Exit::FailEntry { reason: 0 });
        }
        None
    }

    /// What the core has written to the FPU gets there. False: the host refuses it.
    #[inline(never)]
    fn restore_fpu(&mut self, common: &Common<P>) -> bool {
        let restored = fpu::restore(&mut self.fpu, &self.state.fpu, common.processor.offer.xcr0);
        if restored {
            self.changed = self.changed.without(Groups::FPU);
        }
        restored
    }

    /// Tells the log once for each vCPU: a client can have any number of entries fail.
    #[cold]
    #[inline(never)]
    fn tell(&mut self, why: core::fmt::Arguments<'_>) {
        if !core::mem::replace(&mut self.told, true) {
            P::log(Level::Warning, why);
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn tell_state(&mut self, common: &Common<P>, qualification: u64) {
        let what = failure::invalid_state(qualification);
        let known = if common.nested { Ok(()) } else { guest_state::check(&self.state) };
        self.tell(format_args!(
            "VM entry failed: {what}{}{}",
            if known.is_err() { ": " } else { "" },
            match known {
                Ok(()) => "",
                Err(reason) => reason,
            }
        ));
    }
}
