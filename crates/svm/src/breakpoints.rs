//! The guest's breakpoints across VMRUN. The instruction loads DR7 from the control block, and a processor that follows the manual
//! looks at nothing else. QEMU's does: it sets breakpoints up when an instruction writes DR7, and takes them down, when one
//! writes it again, by what DR7 says then. So the host writes the guest's DR7 right before VMRUN, which puts it aside and gives
//! it back, and its own right behind. In between are some instructions of the host's own half of the address space, in which
//! nobody's breakpoint may be met: only those on execution, elsewhere, are shown to such a processor. A data breakpoint that it
//! has met while something else made the guest leave it delivers to the host.
use x86::debug::{DR7_FIXED, DR7_GD, DR7_VOLATILE, Watch, breakpoint};

use crate::instructions::Instructions;

/// Sets up the breakpoints of a guest that has some enabled in `dr7`.
///
/// # Safety
/// Behind CLGI; DR7 is the host's again before STGI.
#[cold]
pub(crate) unsafe fn set<I: Instructions>(dr7: u64, addresses: &[u64; 4]) {
    // SAFETY: by the caller's promise; none that is met before VMRUN is enabled.
    unsafe {
        I::set_debug_addresses(addresses);
        if let Some(dr7) = carried(dr7, addresses) {
            I::set_dr7(dr7);
        }
    }
}

/// What the host writes to DR7 for a guest with `dr7`, if anything.
fn carried(dr7: u64, addresses: &[u64; 4]) -> Option<u64> {
    let stays_out = |(n, address): (u32, &u64)| match breakpoint(dr7, n) {
        Some((watch, _)) => watch == Watch::Execute && address >> 63 == 0,
        None => true,
    };
    // The host's next access to a debug register must not be an exception, nor this one for a bit that there is not.
    (0..).zip(addresses).all(stays_out).then_some(dr7 & DR7_VOLATILE & !DR7_GD | DR7_FIXED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_in_the_hosts_half_stay_out_of_it() {
        let host = 0xffff_8880_0000_0000;
        assert_eq!(carried(0x402, &[0x1000, host, host, host]), Some(0x402));
        assert_eq!(carried(0x408, &[0x1000, host, 0, 0]), None);
        assert_eq!(carried(0x1_0402, &[0x1000; 4]), None);
        assert_eq!(carried(0xffff_ffff_0000_2401, &[0x1000; 4]), Some(0x401));
    }
}
