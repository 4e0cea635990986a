//! The dirty log: every writer marks, and marks are given once.
use super::cpu::exceptions::INT_IN_V86;
use crate::runner::{Case, Target, case};
use abi::*;

mod calls;
mod manual;
mod writers;

pub(super) const CASES: &[Case] = &[
    case("writes-are-logged-once", "A17", writers::once),
    case("logging-begins-on-mapped-pages", "A17 B08", writers::enabled_later),
    case("reads-do-not-mark", "A17", writers::reads),
    case("the-page-of-new-code-is-marked", "A17", writers::code),
    case("a-write-over-two-pages-marks-both", "A17", writers::crossing),
    case("the-emulator-marks", "A17 C09", writers::emulator),
    case("string-input-marks", "A17 A06", writers::string_input),
    case("event-delivery-marks", "A17 A12", writers::delivery).fails_below(Target::LINUX_RESTRICTED, INT_IN_V86),
    case("locked-writes-mark", "A17", writers::locked),
    case("every-vcpu-marks", "A17 D01", writers::vcpus),
    case("marked-while-the-guest-runs", "A17 B08", writers::running),
    case("kvmclock-marks", "A17", writers::clock).needs(KVM_CAP_CLOCKSOURCE),
    case("odd-sizes", "A17", calls::odd_sizes),
    case("logging-ends-and-begins-again", "A17", calls::off_and_on),
    case("errors", "A17", calls::errors),
    case("a-bitmap-that-is-not-there", "A17", calls::bad_bitmap),
    case("a-moved-slot-keeps-logging", "A17 A15", calls::moved),
    case("cleared-by-hand", "A17", manual::cleared_by_hand).needs(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
    case("cleared-in-part", "A17", manual::in_part).needs(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
    case("initially-all-dirty", "A17", manual::initially_set).needs(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
    case("ranges-that-cannot-be-cleared", "A17", manual::errors).needs(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
];
