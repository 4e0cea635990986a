//! What a vCPU is doing: running, halted, or waiting to be started (`KVM_MP_STATE_*`).
use abi::*;

use crate::Errno;

/// The multiprocessing state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MpState {
    /// It runs.
    Runnable,
    /// An application processor that has not had INIT.
    Uninitialized,
    /// INIT came; it waits for a SIPI.
    InitReceived,
    /// It executed HLT.
    Halted,
    /// A SIPI came: it starts at its vector.
    SipiReceived(u8),
}

impl MpState {
    pub(crate) fn to_abi(self) -> u32 {
        match self {
            Self::Runnable => KVM_MP_STATE_RUNNABLE,
            Self::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
            Self::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
            Self::Halted => KVM_MP_STATE_HALTED,
            Self::SipiReceived(_) => KVM_MP_STATE_SIPI_RECEIVED,
        }
    }

    /// From the client; `sipi` is the vector for SIPI_RECEIVED. Without a local APIC in the hypervisor only RUNNABLE
    /// and HALTED exist.
    pub(crate) fn from_abi(value: u32, sipi: u8, has_apic: bool) -> Result<Self, Errno> {
        Ok(match value {
            KVM_MP_STATE_RUNNABLE => Self::Runnable,
            KVM_MP_STATE_HALTED if has_apic => Self::Halted,
            KVM_MP_STATE_UNINITIALIZED if has_apic => Self::Uninitialized,
            KVM_MP_STATE_INIT_RECEIVED if has_apic => Self::InitReceived,
            KVM_MP_STATE_SIPI_RECEIVED if has_apic => Self::SipiReceived(sipi),
            _ => return Err(Errno::EINVAL),
        })
    }
}
