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
    msr::UCODE_REV,
    msr::KVM_WALL_CLOCK,
    msr::KVM_SYSTEM_TIME,
    msr::KVM_WALL_CLOCK_NEW,
    msr::KVM_SYSTEM_TIME_NEW,
];

/// What a client saves and restores.
pub(crate) fn list() -> impl Iterator<Item = u32> {
    PROCESSOR.iter().copied().chain(stored::indices()).chain(mtrr::indices()).chain(mce::indices())
}

/// Registers that tell features of the processor, with the value that guests get.
pub(crate) const FEATURES: &[(u32, u64)] = &[(msr::UCODE_REV, 0x0100_0065), (msr::DE_CFG, 1 << 1)];

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
