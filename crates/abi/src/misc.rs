//! Signal mask, clock, capabilities with arguments, nested state, PMU filter, Xen.
#![allow(missing_docs)] // the fields' names are the interface's own

/// [`KvmClockData::flags`]: the clock is the same on every vCPU.
pub const KVM_CLOCK_TSC_STABLE: u32 = 2;
/// [`KvmClockData::flags`]: `realtime` is valid.
pub const KVM_CLOCK_REALTIME: u32 = 1 << 2;
/// [`KvmClockData::flags`]: `host_tsc` is valid.
pub const KVM_CLOCK_HOST_TSC: u32 = 1 << 3;

/// [`KvmPmuEventFilter::action`]: allow the events listed.
pub const KVM_PMU_EVENT_ALLOW: u32 = 0;
/// [`KvmPmuEventFilter::action`]: deny the events listed.
pub const KVM_PMU_EVENT_DENY: u32 = 1;

/// [`KvmNestedState::format`]: Intel's.
pub const KVM_STATE_NESTED_FORMAT_VMX: u16 = 0;
/// [`KvmNestedState::format`]: AMD's.
pub const KVM_STATE_NESTED_FORMAT_SVM: u16 = 1;
/// [`KvmNestedState::flags`]: the vCPU runs a guest of its own.
pub const KVM_STATE_NESTED_GUEST_MODE: u16 = 1;
/// [`KvmNestedState::flags`]: AMD's global interrupt flag.
pub const KVM_STATE_NESTED_GIF_SET: u16 = 0x100;

/// Hypercall: wake a halted vCPU.
pub const KVM_HC_KICK_CPU: u64 = 5;
/// Hypercall: clock pairing.
pub const KVM_HC_CLOCK_PAIRING: u64 = 9;
/// Hypercall: interrupt several vCPUs.
pub const KVM_HC_SEND_IPI: u64 = 10;
/// Hypercall: let another vCPU run.
pub const KVM_HC_SCHED_YIELD: u64 = 11;
/// Hypercall: mark pages as shared or private.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;
/// Hypercall's answer in RAX: no such call.
pub const KVM_ENOSYS: i64 = 1000;
/// Hypercall's answer in RAX: arguments that make no sense.
pub const KVM_EINVAL: i64 = 22;
/// Hypercall's answer in RAX: not with these interrupt controllers.
pub const KVM_EOPNOTSUPP: i64 = 95;
/// Hypercall's answer in RAX: not from this privilege level.
pub const KVM_EPERM: i64 = 1;

wire! {
    /// `kvm_signal_mask`: header; `len` bytes of signal set follow.
    pub struct KvmSignalMask {
        pub len: u32,
    }

    /// `kvm_clock_data`: `clock` and `realtime` in nanoseconds.
    pub struct KvmClockData {
        pub clock: u64,
        pub flags: u32,
        pub pad0: u32,
        pub realtime: u64,
        pub host_tsc: u64,
        pub pad: [u32; 4],
    }

    /// `kvm_enable_cap`.
    pub struct KvmEnableCap {
        pub cap: u32,
        pub flags: u32,
        pub args: [u64; 4],
        pub pad: [u8; 64],
    }

    /// `kvm_nested_state`: header with the format's own header as bytes; the data follow.
    pub struct KvmNestedState {
        pub flags: u16,
        pub format: u16,
        pub size: u32,
        pub hdr: [u8; 120],
    }

    /// `kvm_pmu_event_filter`: header; `nevents` u64 follow.
    pub struct KvmPmuEventFilter {
        pub action: u32,
        pub nevents: u32,
        pub fixed_counter_bitmap: u32,
        pub flags: u32,
        pub pad: [u32; 4],
    }

    /// `kvm_xen_hvm_config`.
    pub struct KvmXenHvmConfig {
        pub flags: u32,
        pub msr: u32,
        pub blob_addr_32: u64,
        pub blob_addr_64: u64,
        pub blob_size_32: u8,
        pub blob_size_64: u8,
        pub pad2: [u8; 30],
    }
}
