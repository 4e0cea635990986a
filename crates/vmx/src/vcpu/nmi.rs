//! Blocking of NMIs. Where the processor has virtual NMIs it keeps it for the guest. Elsewhere nothing tells when the guest's IRET
//! ends it: a guest that can take interrupts again is taken for one that is out of its handler, and one that cannot for longer
//! than any handler takes, too.
use core::time::Duration;

use hv::backend::{EventKind, Exit};
use platform::Hardware;
use x86::{Shadow, flags};

use super::{Guest, held::blocked};
use crate::{controls::primary, detect::Processor, instructions::Instructions};

/// How long an NMI waits for the end of another one.
const LONGEST: Duration = Duration::from_secs(1);

impl<P: Hardware, I: Instructions> Guest<P, I> {
    /// Whether an NMI has to wait.
    pub(super) fn nmi_blocked(&self, processor: &Processor) -> bool {
        let state = &*self.state;
        let interruptible = state.flags.control(flags::IF) && state.shadow == Shadow::None;
        self.asked.nmi_blocked && (processor.virtual_nmis || !interruptible)
    }

    /// The windows that the core waits for, as primary controls. Behind STI that for NMIs may open at once (SDM vol. 3, 26.2), and that
    /// for interrupts opens when both can be taken.
    pub(super) fn windows(&self, processor: &Processor) -> u32 {
        let window = self.asked.window;
        let tells = processor.virtual_nmis && self.state.shadow != Shadow::Sti;
        let nmi = if tells { primary::NMI_WINDOW } else { primary::INTERRUPT_WINDOW };
        (if window.interrupt { primary::INTERRUPT_WINDOW } else { 0 }) | if window.nmi { nmi } else { 0 }
    }

    /// Behind an exit: whether the guest is in its handler. `held` is its interruptibility.
    pub(super) fn note_nmi(&mut self, processor: &Processor, held: u32) {
        let injected = self.asked.injected.is_some_and(|event| event.kind == EventKind::Nmi);
        self.asked.nmi_blocked = match processor.virtual_nmis {
            true => held & blocked::NMI != 0,
            false => self.asked.nmi_blocked || injected,
        };
    }

    /// What is to be done before the guest is entered with an NMI that waits, where no window tells when it can be taken.
    pub(super) fn before_nmi(&mut self, processor: &Processor) -> Option<Exit> {
        if processor.virtual_nmis || !self.asked.window.nmi {
            self.nmi_waits = None;
            return None;
        }
        if !self.nmi_blocked(processor) {
            // It is to come behind the event that goes first, or behind the instruction after MOV SS.
            return Some(if self.asked.injected.is_some() { Exit::Delivery } else { Exit::Emulate });
        }
        let now = P::now_ns();
        let since = *self.nmi_waits.get_or_insert(now);
        if u128::from(now.saturating_sub(since)) < LONGEST.as_nanos() {
            return None;
        }
        self.nmi_waits = None;
        self.asked.nmi_blocked = false;
        Some(Exit::NmiWindow)
    }
}
