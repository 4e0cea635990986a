//! The i8254 timer.
#![allow(missing_docs)] // the fields' names are the interface's own

/// [`KvmPitConfig::flags`]: port 0x61 is the hypervisor's, without sound.
pub const KVM_PIT_SPEAKER_DUMMY: u32 = 1;
/// [`KvmPitState2::flags`]: an HPET has taken channel 0's interrupt.
pub const KVM_PIT_FLAGS_HPET_LEGACY: u32 = 1;
/// [`KvmPitState2::flags`]: bit 1 of port 0x61.
pub const KVM_PIT_FLAGS_SPEAKER_DATA_ON: u32 = 2;

wire! {
    /// `kvm_pit_channel_state`: `count` can be 65536; `count_load_time` is in nanoseconds.
    pub struct KvmPitChannelState {
        pub count: u32,
        pub latched_count: u16,
        pub count_latched: u8,
        pub status_latched: u8,
        pub status: u8,
        pub read_state: u8,
        pub write_state: u8,
        pub write_latch: u8,
        pub rw_mode: u8,
        pub mode: u8,
        pub bcd: u8,
        pub gate: u8,
        pub count_load_time: i64,
    }

    /// `kvm_pit_state`.
    pub struct KvmPitState {
        pub channels: [KvmPitChannelState; 3],
    }

    /// `kvm_pit_state2`: with `KVM_PIT_FLAGS_*`.
    pub struct KvmPitState2 {
        pub channels: [KvmPitChannelState; 3],
        pub flags: u32,
        pub reserved: [u32; 9],
    }

    /// `kvm_pit_config`: for `KVM_CREATE_PIT2`.
    pub struct KvmPitConfig {
        pub flags: u32,
        pub pad: [u32; 15],
    }

    /// `kvm_reinject_control`: whether ticks that the guest missed are delivered later.
    pub struct KvmReinjectControl {
        pub pit_reinject: u8,
        pub reserved: [u8; 31],
    }
}
