//! Guest debugging as `KVM_SET_GUEST_DEBUG` has it.
#![allow(missing_docs)] // the fields' names are the interface's own

/// `control`: debugging is on.
pub const KVM_GUESTDBG_ENABLE: u32 = 1 << 0;
/// `control`: exit after each instruction.
pub const KVM_GUESTDBG_SINGLESTEP: u32 = 1 << 1;
/// `control`: #BP exits.
pub const KVM_GUESTDBG_USE_SW_BP: u32 = 0x1_0000;
/// `control`: `debugreg` is in force instead of the guest's debug registers.
pub const KVM_GUESTDBG_USE_HW_BP: u32 = 0x2_0000;
/// `control`: inject #DB.
pub const KVM_GUESTDBG_INJECT_DB: u32 = 0x4_0000;
/// `control`: inject #BP.
pub const KVM_GUESTDBG_INJECT_BP: u32 = 0x8_0000;
/// `control`: no interrupts while stepping.
pub const KVM_GUESTDBG_BLOCKIRQ: u32 = 0x10_0000;

wire! {
    /// `kvm_guest_debug` with `arch.debugreg` inlined.
    pub struct KvmGuestDebug {
        pub control: u32,
        pub pad: u32,
        pub debugreg: [u64; 8],
    }

    /// `kvm_debug_exit_arch`: payload of `KVM_EXIT_DEBUG`.
    pub struct KvmDebugExitArch {
        pub exception: u32,
        pub pad: u32,
        pub pc: u64,
        pub dr6: u64,
        pub dr7: u64,
    }
}
