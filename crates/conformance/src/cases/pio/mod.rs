//! Port I/O that the client serves.
use crate::runner::{Case, case};

mod pending;
mod single;
mod string;

pub(super) const CASES: &[Case] = &[
    case("in-and-out-of-every-size", "A06 C09", single::every_size),
    case("port-in-dx", "A06", single::port_in_dx),
    case("in-changes-only-its-part-of-the-register", "A06", single::part_of_register),
    case("data-lies-inside-the-mapping", "A04 A06", single::data_inside_mapping),
    case("answers-are-read-at-the-next-run-only", "A06", single::answer_late),
    case("outs-carries-all-items", "A06 C09", string::outs),
    case("ins-writes-all-items", "A06 C09", string::ins),
    case("ins-of-words-and-doublewords", "A06 C09", string::ins_wide),
    case("strings-downwards", "A06 C09", string::downwards),
    case("strings-of-no-items-do-not-exit", "A06", string::no_items),
    case("a-long-outs-crosses-pages-in-order", "A06", string::long_outs),
    case("a-long-ins-crosses-pages-in-order", "A06", string::long_ins),
    case("ins-stops-at-the-segment-limit", "A06 B09", string::ins_limit),
    case("outs-stops-at-the-segment-limit", "A06 B09", string::outs_limit),
    case("outs-from-a-device", "A06 A07 C09", string::outs_from_device),
    case("ins-into-a-device", "A06 A07 C09", string::ins_into_device),
    case("outs-of-a-word-half-in-a-device", "A06 A07 C09", string::outs_split),
    case("ins-of-a-word-half-in-a-device", "A06 A07 C09", string::ins_split),
    case("get-regs-while-pending", "A06", pending::get_regs),
    case("set-regs-of-the-same-while-pending", "A06", pending::set_same_regs),
    case("set-rip-while-out-is-pending", "A06", pending::set_rip_out),
    case("set-rip-while-in-is-pending", "A06", pending::set_rip_in),
    case("immediate-exit-while-in-is-pending", "A06", pending::immediate_exit),
    case("immediate-exit-while-a-string-is-pending", "A06", pending::immediate_exit_string),
    case("signal-while-in-is-pending", "A06 A09", pending::signal),
];
