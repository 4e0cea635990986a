//! Binary statistics: what the descriptor of `KVM_GET_STATS_FD` reads as.
#![allow(missing_docs)] // the fields' names are the interface's own

pub const KVM_STATS_TYPE_SHIFT: u32 = 0;
pub const KVM_STATS_TYPE_MASK: u32 = 0xf;
pub const KVM_STATS_TYPE_CUMULATIVE: u32 = 0;
pub const KVM_STATS_TYPE_INSTANT: u32 = 1;
pub const KVM_STATS_TYPE_PEAK: u32 = 2;
pub const KVM_STATS_TYPE_LINEAR_HIST: u32 = 3;
pub const KVM_STATS_TYPE_LOG_HIST: u32 = 4;
pub const KVM_STATS_TYPE_MAX: u32 = KVM_STATS_TYPE_LOG_HIST;
pub const KVM_STATS_UNIT_SHIFT: u32 = 4;
pub const KVM_STATS_UNIT_MASK: u32 = 0xf0;
pub const KVM_STATS_UNIT_NONE: u32 = 0;
pub const KVM_STATS_UNIT_BYTES: u32 = 0x10;
pub const KVM_STATS_UNIT_SECONDS: u32 = 0x20;
pub const KVM_STATS_UNIT_CYCLES: u32 = 0x30;
pub const KVM_STATS_UNIT_BOOLEAN: u32 = 0x40;
pub const KVM_STATS_UNIT_MAX: u32 = KVM_STATS_UNIT_BOOLEAN;
pub const KVM_STATS_BASE_SHIFT: u32 = 8;
pub const KVM_STATS_BASE_MASK: u32 = 0xf00;
pub const KVM_STATS_BASE_POW10: u32 = 0;
pub const KVM_STATS_BASE_POW2: u32 = 0x100;
pub const KVM_STATS_BASE_MAX: u32 = KVM_STATS_BASE_POW2;

wire! {
    /// `kvm_stats_header`: all offsets from the start of the file.
    pub struct KvmStatsHeader {
        pub flags: u32,
        pub name_size: u32,
        pub num_desc: u32,
        pub id_offset: u32,
        pub desc_offset: u32,
        pub data_offset: u32,
    }

    /// `kvm_stats_desc`: one statistic; its name of `name_size` bytes follows. Values are u64.
    pub struct KvmStatsDesc {
        pub flags: u32,
        pub exponent: i16,
        pub size: u16,
        pub offset: u32,
        pub bucket_size: u32,
    }
}
