//! Accesses where no memory is, which the client serves.
use crate::runner::{Case, case};

mod operands;
mod pending;
mod rmw;
mod split;
mod string;

pub(super) const CASES: &[Case] = &[
    case("mov-of-every-size", "A07 C09", operands::every_size),
    case("moves-with-extension", "A07 C09", operands::extension),
    case("absolute-addresses", "A07 C09", operands::moffs),
    case("compare-and-test-only-read", "A07 C09", operands::read_only),
    case("push-from-and-pop-to-a-device", "A07 C09", operands::push_pop),
    case("a-stack-in-a-device", "A07 C09", operands::stack),
    case("far-call-through-a-device", "A07 C09", operands::far_call),
    case("sixteen-bytes-are-two-accesses", "A07 C09", operands::sixteen_bytes),
    case("xlat-and-lods", "A07 C09", operands::xlat_lods),
    case("add", "A07 C09", rmw::add),
    case("locked-add", "A07 C09", rmw::locked_add),
    case("inc-not-neg-shift", "A07 C09", rmw::unary),
    case("xchg", "A07 C09", rmw::xchg),
    case("xadd", "A07 C09", rmw::xadd),
    case("cmpxchg-that-succeeds", "A07 C09", rmw::cmpxchg_equal),
    case("cmpxchg-that-fails", "A07 C09", rmw::cmpxchg_other),
    case("cmpxchg8b", "A07 C09", rmw::cmpxchg8b),
    case("bts-far-from-its-operand", "A07 C09", rmw::bts),
    case("device-to-device-move", "A07 C09", string::device_to_device),
    case("rep-movs-device-to-device", "A07 C09", string::rep_movs),
    case("rep-stos-runs-off-memory", "A07 C09", string::rep_stos),
    case("rep-movs-from-memory-across-pages", "A07 C09", string::rep_movs_from_memory),
    case("repne-scas-ends-at-the-match", "A07 C09", string::repne_scas),
    case("repe-cmps-of-two-devices", "A07 C09", string::repe_cmps),
    case("read-half-in-memory", "A07 C09", split::read_half_in_memory),
    case("write-half-in-memory", "A07 C09", split::write_half_in_memory),
    case("read-modify-write-half-in-memory", "A07 C09", split::rmw_half_in_memory),
    case("access-over-two-devices", "A07 C09", split::two_devices),
    case("read-modify-write-over-two-devices", "A07 C09", split::rmw_two_devices),
    case("move-between-split-operands", "A07 C09", split::both_operands),
    case("a-read-is-finished-before-entry", "A07", pending::immediate_exit_read),
    case("a-write-is-finished-before-entry", "A07", pending::immediate_exit_write),
    case("immediate-exit-between-two-reads", "A07", pending::immediate_exit_two_reads),
    case("immediate-exit-behind-a-string", "A07", pending::immediate_exit_string),
    case("signal-while-a-read-is-pending", "A07 A09", pending::signal),
    case("get-regs-while-a-read-is-pending", "A07 A10", pending::get_regs),
    case("set-regs-of-the-same-while-a-read-is-pending", "A07 A10", pending::set_same_regs),
    case("set-other-regs-while-a-read-is-pending", "A07 A10", pending::set_other_register),
    case("code-in-a-device-is-an-internal-error", "A05 C09", pending::code_in_device),
    case("an-answer-longer-than-the-access-is-cut", "A07", pending::long_answer),
];
