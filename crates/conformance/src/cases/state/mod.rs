//! Registers and other state of a vCPU: what is set can be read back and is what the guest runs with; what cannot be is
//! refused.
use crate::runner::{Case, case};
use abi::*;

mod events;
mod extended;
mod msrs;
mod registers;

pub(super) const CASES: &[Case] = &[
    case("general-registers", "A10", registers::general),
    case("rflags-bit-1-stands", "A10", registers::rflags),
    case("system-registers", "A10", registers::system),
    case("segments", "A10", registers::segments),
    case("control-registers-are-current", "A10 C05", registers::control_current),
    case("impossible-system-registers", "A10", registers::impossible),
    case("after-reset", "A10 C11", registers::reset),
    case("fpu-after-reset", "A10 C11", registers::reset_fpu),
    case("system-registers-with-pdptes", "A10 B05", registers::sregs2).needs(KVM_CAP_SREGS2),
    case("fpu", "A10", extended::fpu),
    case("fpu-in-the-guest", "A10 C06", extended::fpu_in_guest),
    case("mxcsr-is-not-the-fpu-calls", "A10", extended::mxcsr).needs(KVM_CAP_XSAVE),
    case("xsave", "A10", extended::xsave).needs(KVM_CAP_XSAVE),
    case("xsave-and-fpu-are-one-state", "A10", extended::xsave_and_fpu).needs(KVM_CAP_XSAVE),
    case("impossible-xsave", "A10", extended::impossible_xsave).needs(KVM_CAP_XSAVE),
    case("xsave2", "A10", extended::xsave2).needs(KVM_CAP_XSAVE2),
    case("extended-control-registers", "A10", extended::xcrs).needs(KVM_CAP_XCRS),
    case("debug-registers", "A10", extended::debugregs).needs(KVM_CAP_DEBUGREGS),
    case("impossible-debug-registers", "A10", extended::impossible_debugregs).needs(KVM_CAP_DEBUGREGS),
    case("msrs", "A10 C10", msrs::round_trip)
        .restricted("the base that the client gives FS by its MSR is not that of the segment in real mode"),
    case("msrs-stop-at-the-first-that-fails", "A10", msrs::partial),
    case("msrs-that-cannot-have-a-value", "A10", msrs::impossible),
    case("too-many-msrs", "A10", msrs::too_many),
    case("msrs-are-the-guests", "A10 C10", msrs::in_guest),
    case("unknown-msrs-fault", "A10", msrs::unknown),
    case("an-exception-can-be-set", "A10 A12", events::exception).needs(KVM_CAP_VCPU_EVENTS),
    case("interrupt-shadow", "A10 A12", events::shadow).needs(KVM_CAP_VCPU_EVENTS),
    case("nmi-state", "A10", events::nmi).needs(KVM_CAP_VCPU_EVENTS),
    case("impossible-events", "A10", events::impossible).needs(KVM_CAP_VCPU_EVENTS),
    case("an-exception-with-its-payload", "A10", events::payload).needs(KVM_CAP_EXCEPTION_PAYLOAD),
    case("multiprocessing-state", "A10 D06", events::mp_state).needs(KVM_CAP_MP_STATE),
    case("multiprocessing-state-with-apics", "A10 D06", events::mp_state_apic).needs(KVM_CAP_MP_STATE),
];
