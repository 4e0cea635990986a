//! Why an entry failed, in words for the kernel's log (SDM vol. 3, 27.8 and 31.4).

/// What VM-instruction error `number` says.
pub const fn refused(number: u32) -> &'static str {
    match number {
        4 => "the control structure was not cleared before its first use",
        5 => "the control structure was not entered before",
        7 => "a control field has a value that the processor does not allow",
        8 => "the host's state in the control structure is not valid",
        26 => "events were blocked by MOV SS",
        28 => "another exit of system management is pending",
        _ => "for a reason that the manual does not name for it",
    }
}

/// What the qualification of exit reason 33 says.
pub const fn invalid_state(qualification: u64) -> &'static str {
    match qualification {
        2 => "a page-directory pointer has reserved bits set",
        3 => "an NMI was to be injected behind STI or MOV SS",
        4 => "the link pointer is wrong",
        _ => "registers of the guest are none that instructions could have loaded",
    }
}
