//! Guest debugging by the client: today's KVM_SET_GUEST_DEBUG and 2007's KVM_DEBUG_GUEST.
use abi::*;
use x86::{Exception, Vector};

use super::Inner;
use crate::{
    Errno, Outcome,
    backend::{Backend, BackendVcpu, GuestDebug},
};

/// What KVM_SET_GUEST_DEBUG knows.
pub(crate) const KNOWN: u32 = KVM_GUESTDBG_ENABLE
    | KVM_GUESTDBG_SINGLESTEP
    | KVM_GUESTDBG_USE_SW_BP
    | KVM_GUESTDBG_USE_HW_BP
    | KVM_GUESTDBG_INJECT_DB
    | KVM_GUESTDBG_INJECT_BP
    | KVM_GUESTDBG_BLOCKIRQ;

impl<B: Backend> Inner<B> {
    pub(super) fn set_guest_debug(&mut self, debug: &KvmGuestDebug) -> Result<Outcome<B>, Errno> {
        let control = debug.control;
        if control & !KNOWN != 0 {
            return Err(Errno::EINVAL);
        }
        let has = |bit| control & bit != 0;
        if has(KVM_GUESTDBG_INJECT_DB) || has(KVM_GUESTDBG_INJECT_BP) {
            if self.events.occupied() {
                return Err(Errno::EBUSY);
            }
            let vector = if has(KVM_GUESTDBG_INJECT_DB) { Vector::DB } else { Vector::BP };
            self.events.raise(Exception::plain(vector));
        }
        let on = has(KVM_GUESTDBG_ENABLE);
        let [d0, d1, d2, d3, _, _, _, dr7] = debug.debugreg;
        self.apply_debug(GuestDebug {
            single_step: on && has(KVM_GUESTDBG_SINGLESTEP),
            software_breakpoints: on && has(KVM_GUESTDBG_USE_SW_BP),
            hardware: (on && has(KVM_GUESTDBG_USE_HW_BP)).then_some(([d0, d1, d2, d3], dr7)),
            block_interrupts: on && has(KVM_GUESTDBG_BLOCKIRQ),
        });
        Ok(Outcome::OK)
    }

    /// Four execution breakpoints, and single step.
    pub(super) fn debug_guest_2007(&mut self, debug: &KvmDebugGuest) -> Result<Outcome<B>, Errno> {
        let mut dr7 = 0;
        for (n, breakpoint) in debug.breakpoints.iter().enumerate() {
            if breakpoint.enabled != 0 {
                // Global enable; type 0 is execution, length 0.
                dr7 |= 2 << (2 * n);
            }
        }
        let on = debug.enabled != 0;
        self.apply_debug(GuestDebug {
            single_step: on && debug.singlestep != 0,
            software_breakpoints: false,
            hardware: (on && dr7 != 0).then_some((debug.breakpoints.map(|b| b.address), dr7)),
            block_interrupts: false,
        });
        Ok(Outcome::OK)
    }

    fn apply_debug(&mut self, debug: GuestDebug) {
        self.debug = debug;
        self.cpu.set_debug(debug);
    }
}
