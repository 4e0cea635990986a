//! What a vCPU shares with its client: `kvm_run` and the pages behind it.
use abi::*;

use crate::device::Memory;

/// The mapping of a vCPU's descriptor.
#[derive(Clone, Copy, Debug)]
pub struct RunPage(pub Memory);

impl RunPage {
    /// One of `KVM_EXIT_*`.
    pub fn exit_reason(self) -> u32 {
        self.0.u32(KVM_RUN_EXIT_REASON_OFFSET)
    }

    /// Asks for an exit as soon as an interrupt can be injected.
    pub fn request_interrupt_window(self, on: bool) {
        self.0.set_u8(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET, on.into());
    }

    /// Makes the next KVM_RUN return when what is pending is complete.
    pub fn set_immediate_exit(self, on: bool) {
        self.0.set_u8(KVM_RUN_IMMEDIATE_EXIT_OFFSET, on.into());
    }

    /// Whether an interrupt would be taken at once.
    pub fn ready_for_interrupt(self) -> bool {
        self.0.u8(KVM_RUN_READY_FOR_INTERRUPT_INJECTION_OFFSET) != 0
    }

    /// RFLAGS.IF at the exit.
    pub fn if_flag(self) -> bool {
        self.0.u8(KVM_RUN_IF_FLAG_OFFSET) != 0
    }

    /// CR8 at the exit.
    pub fn cr8(self) -> u64 {
        self.0.u64(KVM_RUN_CR8_OFFSET)
    }

    /// CR8 for the next KVM_RUN.
    pub fn set_cr8(self, value: u64) {
        self.0.set_u64(KVM_RUN_CR8_OFFSET, value);
    }

    /// IA32_APIC_BASE at the exit.
    pub fn apic_base(self) -> u64 {
        self.0.u64(KVM_RUN_APIC_BASE_OFFSET)
    }

    /// The exit's payload.
    pub fn payload<T: Pod>(self) -> T {
        self.0.pod(KVM_RUN_UNION_OFFSET)
    }

    /// Replaces the exit's payload.
    pub fn set_payload<T: Pod>(self, payload: &T) {
        self.0.set_pod(KVM_RUN_UNION_OFFSET, payload);
    }
}
