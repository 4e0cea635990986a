//! Control fields, chosen from what the capability MSRs allow (SDM vol. 3, appendix A). A bit that the processor wants set is set;
//! one that this crate cannot do without is looked for once, when the module is loaded.
use platform::hardware::Refusal;

/// Pin-based controls.
#[allow(missing_docs)]
pub mod pin {
    pub const INTERRUPTS: u32 = 1 << 0;
    pub const NMIS: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
}

/// Primary processor-based controls.
#[allow(missing_docs)]
pub mod primary {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSET: u32 = 1 << 3;
    pub const HLT: u32 = 1 << 7;
    pub const INVLPG: u32 = 1 << 9;
    pub const MWAIT: u32 = 1 << 10;
    pub const RDPMC: u32 = 1 << 11;
    pub const RDTSC: u32 = 1 << 12;
    pub const CR3_LOAD: u32 = 1 << 15;
    pub const CR3_STORE: u32 = 1 << 16;
    pub const CR8_LOAD: u32 = 1 << 19;
    pub const CR8_STORE: u32 = 1 << 20;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const MOV_DR: u32 = 1 << 23;
    pub const ALL_IO: u32 = 1 << 24;
    pub const MSR_BITMAP: u32 = 1 << 28;
    pub const MONITOR: u32 = 1 << 29;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls.
#[allow(missing_docs)]
pub mod secondary {
    pub const EPT: u32 = 1 << 1;
    pub const DESCRIPTOR_TABLES: u32 = 1 << 2;
    pub const RDTSCP: u32 = 1 << 3;
    pub const VPID: u32 = 1 << 5;
    pub const WBINVD: u32 = 1 << 6;
    pub const UNRESTRICTED: u32 = 1 << 7;
    pub const PAUSE_LOOP: u32 = 1 << 10;
    pub const INVPCID: u32 = 1 << 12;
    pub const TSC_SCALING: u32 = 1 << 25;
}

/// VM-exit controls.
#[allow(missing_docs)]
pub mod exit {
    pub const HOST_64: u32 = 1 << 9;
    pub const LOAD_EFER: u32 = 1 << 21;
}

/// VM-entry controls.
#[allow(missing_docs)]
pub mod entry {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const LONG_MODE: u32 = 1 << 9;
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// What a capability MSR allows for one control field: bits that must be set, and bits that may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    must: u32,
    may: u32,
}

impl Allowed {
    /// From the MSR.
    pub const fn of(msr: u64) -> Self {
        Self { must: msr as u32, may: (msr >> 32) as u32 }
    }

    /// Whether all of `bits` may be set.
    pub const fn has(self, bits: u32) -> bool {
        self.may & bits == bits
    }

    /// Those of `bits` that may be set.
    pub const fn some(self, bits: u32) -> u32 {
        self.may & bits
    }

    /// A value with `needed` set and those of `wanted` that may be; `sometimes` are bits that will be set for some entries.
    ///
    /// # Errors
    /// One of `needed` or `sometimes` is not there: `what` says so to the operator.
    pub const fn choose(self, needed: u32, sometimes: u32, wanted: u32, what: &'static str) -> Result<u32, Refusal> {
        if !self.has(needed | sometimes) {
            return Err(Refusal::Lacking(what));
        }
        Ok((needed | wanted) & self.may | self.must)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_set_is_and_what_may_not_is_not() {
        let allowed = Allowed::of(0x0000_00f7_0000_0016);
        assert_eq!(allowed.choose(0x20, 0x40, 0x88, "x"), Ok(0x16 | 0x20 | 0x80));
        assert!(allowed.has(0xf0) && !allowed.has(0x100));
        assert_eq!(allowed.some(0x1c0), 0xc0);
    }

    #[test]
    fn what_is_needed_and_not_there_is_named() {
        let allowed = Allowed::of(0x0000_00f7_0000_0016);
        for (needed, sometimes) in [(0x8, 0), (0, 0x8), (0x100, 0)] {
            assert_eq!(allowed.choose(needed, sometimes, 0, "x"), Err(Refusal::Lacking("x")));
        }
    }
}
