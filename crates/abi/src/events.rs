//! Pending events of a vCPU, and its multiprocessing state.
#![allow(missing_docs)] // the fields' names are the interface's own

/// `flags`: `nmi.pending` is valid.
pub const KVM_VCPUEVENT_VALID_NMI_PENDING: u32 = 1 << 0;
/// `flags`: `sipi_vector` is valid.
pub const KVM_VCPUEVENT_VALID_SIPI_VECTOR: u32 = 1 << 1;
/// `flags`: `interrupt.shadow` is valid.
pub const KVM_VCPUEVENT_VALID_SHADOW: u32 = 1 << 2;
/// `flags`: `smi` is valid.
pub const KVM_VCPUEVENT_VALID_SMM: u32 = 1 << 3;
/// `flags`: `exception_has_payload`, `exception_payload` and `exception.pending` are valid.
pub const KVM_VCPUEVENT_VALID_PAYLOAD: u32 = 1 << 4;
/// `flags`: `triple_fault` is valid.
pub const KVM_VCPUEVENT_VALID_TRIPLE_FAULT: u32 = 1 << 5;

/// `interrupt.shadow`: after MOV SS or POP SS.
pub const KVM_X86_SHADOW_INT_MOV_SS: u8 = 1;
/// `interrupt.shadow`: after STI.
pub const KVM_X86_SHADOW_INT_STI: u8 = 2;

/// The vCPU runs.
pub const KVM_MP_STATE_RUNNABLE: u32 = 0;
/// An application processor that has not had INIT.
pub const KVM_MP_STATE_UNINITIALIZED: u32 = 1;
/// INIT came; waits for SIPI.
pub const KVM_MP_STATE_INIT_RECEIVED: u32 = 2;
/// Executed HLT and waits for an interrupt.
pub const KVM_MP_STATE_HALTED: u32 = 3;
/// SIPI came; starts at its vector.
pub const KVM_MP_STATE_SIPI_RECEIVED: u32 = 4;
/// Waits after an AP reset hold request.
pub const KVM_MP_STATE_AP_RESET_HOLD: u32 = 9;

wire! {
    /// Member `exception` of [`KvmVcpuEvents`].
    pub struct KvmEventException {
        pub injected: u8,
        pub nr: u8,
        pub has_error_code: u8,
        pub pending: u8,
        pub error_code: u32,
    }

    /// Member `interrupt` of [`KvmVcpuEvents`].
    pub struct KvmEventInterrupt {
        pub injected: u8,
        pub nr: u8,
        pub soft: u8,
        pub shadow: u8,
    }

    /// Member `nmi` of [`KvmVcpuEvents`].
    pub struct KvmEventNmi {
        pub injected: u8,
        pub pending: u8,
        pub masked: u8,
        pub pad: u8,
    }

    /// Member `smi` of [`KvmVcpuEvents`].
    pub struct KvmEventSmi {
        pub smm: u8,
        pub pending: u8,
        pub smm_inside_nmi: u8,
        pub latched_init: u8,
    }

    /// `kvm_vcpu_events`: exceptions, interrupts, NMI and SMI that are pending or being delivered.
    pub struct KvmVcpuEvents {
        pub exception: KvmEventException,
        pub interrupt: KvmEventInterrupt,
        pub nmi: KvmEventNmi,
        pub sipi_vector: u32,
        pub flags: u32,
        pub smi: KvmEventSmi,
        /// `triple_fault.pending`.
        pub triple_fault: u8,
        pub reserved: [u8; 26],
        pub exception_has_payload: u8,
        pub exception_payload: u64,
    }

    /// `kvm_mp_state`: one of `KVM_MP_STATE_*`.
    pub struct KvmMpState {
        pub mp_state: u32,
    }

    /// `kvm_x86_mce`: a machine check to inject.
    pub struct KvmX86Mce {
        pub status: u64,
        pub addr: u64,
        pub misc: u64,
        pub mcg_status: u64,
        pub bank: u8,
        pub pad1: [u8; 7],
        pub pad2: [u64; 3],
    }
}
