//! MSR lists, values and the filter.
#![allow(missing_docs)] // the fields' names are the interface's own

/// A filter range speaks of reads.
pub const KVM_MSR_FILTER_READ: u32 = 1 << 0;
/// A filter range speaks of writes.
pub const KVM_MSR_FILTER_WRITE: u32 = 1 << 1;
/// All flags of a filter range.
pub const KVM_MSR_FILTER_RANGE_VALID_MASK: u32 = 3;
/// MSRs outside every range are allowed.
pub const KVM_MSR_FILTER_DEFAULT_ALLOW: u32 = 0;
/// MSRs outside every range are denied.
pub const KVM_MSR_FILTER_DEFAULT_DENY: u32 = 1;
/// All flags of [`KvmMsrFilter`].
pub const KVM_MSR_FILTER_VALID_MASK: u32 = 1;
/// Most ranges of a filter.
pub const KVM_MSR_FILTER_MAX_RANGES: usize = 16;
/// Most bytes of one range's bitmap.
pub const KVM_MSR_FILTER_MAX_BITMAP_SIZE: usize = 0x600;

/// `KVM_CAP_X86_USER_SPACE_MSR`, and the reason in the exit: the access would raise #GP.
pub const KVM_MSR_EXIT_REASON_INVAL: u32 = 1 << 0;
/// As above: the MSR is not known.
pub const KVM_MSR_EXIT_REASON_UNKNOWN: u32 = 1 << 1;
/// As above: the filter denies it.
pub const KVM_MSR_EXIT_REASON_FILTER: u32 = 1 << 2;
/// All of the reasons.
pub const KVM_MSR_EXIT_REASON_VALID_MASK: u32 = 7;

wire! {
    /// `kvm_msr_list`: header; `nmsrs` indices (u32) follow.
    pub struct KvmMsrList {
        pub nmsrs: u32,
    }

    /// `kvm_msrs`: header; `nmsrs` [`KvmMsrEntry`] follow.
    pub struct KvmMsrs {
        pub nmsrs: u32,
        pub pad: u32,
    }

    /// `kvm_msr_entry`.
    pub struct KvmMsrEntry {
        pub index: u32,
        pub reserved: u32,
        pub data: u64,
    }

    /// `kvm_msr_filter_range`: `bitmap` is an address in the client; a 1 allows.
    pub struct KvmMsrFilterRange {
        pub flags: u32,
        pub nmsrs: u32,
        pub base: u32,
        pub pad: u32,
        pub bitmap: u64,
    }

    /// `kvm_msr_filter`.
    pub struct KvmMsrFilter {
        pub flags: u32,
        pub pad: u32,
        pub ranges: [KvmMsrFilterRange; KVM_MSR_FILTER_MAX_RANGES],
    }
}
