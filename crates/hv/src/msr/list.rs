//! KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST.
use x86::msr;

use super::{mce, mtrr, stored};

/// Registers of the processor and of the vCPU's devices.
const PROCESSOR: &[u32] = &[
    msr::TSC,
    msr::TSC_ADJUST,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::EFER,
    msr::TSC_AUX,
    msr::TSC_DEADLINE,
    msr::ARCH_CAPABILITIES,
    msr::UCODE_REV,
    msr::SMBASE,
    msr::SMI_COUNT,
    msr::KVM_WALL_CLOCK,
    msr::KVM_SYSTEM_TIME,
    msr::KVM_WALL_CLOCK_NEW,
    msr::KVM_SYSTEM_TIME_NEW,
    msr::KVM_ASYNC_PF_EN,
    msr::KVM_ASYNC_PF_INT,
    msr::KVM_ASYNC_PF_ACK,
];

/// What a client saves and restores.
pub(crate) fn list() -> impl Iterator<Item = u32> {
    PROCESSOR.iter().copied().chain(stored::indices()).chain(mtrr::indices()).chain(mce::indices())
}

/// Registers that tell features of the processor.
pub(crate) const FEATURES: &[u32] = &[msr::ARCH_CAPABILITIES, msr::UCODE_REV, msr::DE_CFG];

/// The value of one of [`FEATURES`] that guests can be given.
pub(crate) fn feature(index: u32, arch_capabilities: u64) -> Option<u64> {
    match index {
        msr::ARCH_CAPABILITIES => Some(arch_capabilities),
        msr::UCODE_REV => Some(0x0100_0065),
        // LFENCE is serialising.
        msr::DE_CFG => Some(1 << 1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn no_register_is_listed_twice() {
        let mut all: std::vec::Vec<u32> = list().collect();
        all.sort_unstable();
        let before = all.len();
        all.dedup();
        assert_eq!(all.len(), before);
    }
}
