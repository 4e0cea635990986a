//! `kvm_run`, the page that a vCPU shares with its client: exit reasons, offsets and payloads.
//!
//! The client may write to this page at any moment, so nothing here is meant to be referenced in place: read and
//! write single fields at the offsets `KVM_RUN_*_OFFSET`, and copy payloads in and out whole.
#![allow(missing_docs)] // the fields' names are the interface's own

use crate::debug::KvmDebugExitArch;

named! {
    /// All exit reasons with their names.
    KVM_EXIT_NAMES;
    KVM_EXIT_UNKNOWN = 0;
    KVM_EXIT_EXCEPTION = 1;
    KVM_EXIT_IO = 2;
    KVM_EXIT_HYPERCALL = 3;
    KVM_EXIT_DEBUG = 4;
    KVM_EXIT_HLT = 5;
    KVM_EXIT_MMIO = 6;
    KVM_EXIT_IRQ_WINDOW_OPEN = 7;
    KVM_EXIT_SHUTDOWN = 8;
    KVM_EXIT_FAIL_ENTRY = 9;
    KVM_EXIT_INTR = 10;
    KVM_EXIT_SET_TPR = 11;
    KVM_EXIT_TPR_ACCESS = 12;
    KVM_EXIT_NMI = 16;
    KVM_EXIT_INTERNAL_ERROR = 17;
    KVM_EXIT_WATCHDOG = 21;
    KVM_EXIT_SYSTEM_EVENT = 24;
    KVM_EXIT_IOAPIC_EOI = 26;
    KVM_EXIT_HYPERV = 27;
    KVM_EXIT_X86_RDMSR = 29;
    KVM_EXIT_X86_WRMSR = 30;
    KVM_EXIT_DIRTY_RING_FULL = 31;
    KVM_EXIT_AP_RESET_HOLD = 32;
    KVM_EXIT_X86_BUS_LOCK = 33;
    KVM_EXIT_XEN = 34;
    KVM_EXIT_NOTIFY = 37;
    KVM_EXIT_MEMORY_FAULT = 39;
}

/// The name of an exit reason, for messages.
pub fn exit_name(reason: u32) -> Option<&'static str> {
    crate::wire::lookup(KVM_EXIT_NAMES, reason)
}

/// [`KvmRunIo::direction`]: IN.
pub const KVM_EXIT_IO_IN: u8 = 0;
/// [`KvmRunIo::direction`]: OUT.
pub const KVM_EXIT_IO_OUT: u8 = 1;

/// An instruction could not be emulated.
pub const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
/// Exceptions that cannot happen at once.
pub const KVM_INTERNAL_ERROR_SIMUL_EX: u32 = 2;
/// An exit in the middle of event delivery that cannot happen there.
pub const KVM_INTERNAL_ERROR_DELIVERY_EV: u32 = 3;
/// The processor gave an exit that nobody asked for.
pub const KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: u32 = 4;
/// [`KvmRunEmulationFailure::flags`]: `insn_size` and `insn_bytes` are valid.
pub const KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: u64 = 1;

/// [`KvmRunSystemEvent::type_`]: power-off.
pub const KVM_SYSTEM_EVENT_SHUTDOWN: u32 = 1;
/// [`KvmRunSystemEvent::type_`]: reset.
pub const KVM_SYSTEM_EVENT_RESET: u32 = 2;
/// [`KvmRunSystemEvent::type_`]: the guest crashed.
pub const KVM_SYSTEM_EVENT_CRASH: u32 = 3;
/// [`KvmRunSystemEvent::type_`]: a suspended vCPU woke.
pub const KVM_SYSTEM_EVENT_WAKEUP: u32 = 4;
/// [`KvmRunSystemEvent::type_`]: the guest asks to be suspended.
pub const KVM_SYSTEM_EVENT_SUSPEND: u32 = 5;

/// [`KvmRunMemoryFault::flags`]: the access was to private memory.
pub const KVM_MEMORY_EXIT_FLAG_PRIVATE: u64 = 1 << 3;
/// [`KvmRunNotify::flags`]: the guest's state is not valid.
pub const KVM_NOTIFY_CONTEXT_INVALID: u32 = 1;

/// `flags`: the vCPU is in system management mode.
pub const KVM_RUN_X86_SMM: u16 = 1 << 0;
/// `flags`: a bus lock was seen.
pub const KVM_RUN_X86_BUS_LOCK: u16 = 1 << 1;
/// `flags`: the vCPU runs a nested guest.
pub const KVM_RUN_X86_GUEST_MODE: u16 = 1 << 2;

/// u8, in: exit as soon as an interrupt can be injected.
pub const KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET: usize = 0;
/// u8, in: complete what is pending, then return `EINTR`.
pub const KVM_RUN_IMMEDIATE_EXIT_OFFSET: usize = 1;
/// u32, out: one of `KVM_EXIT_*`.
pub const KVM_RUN_EXIT_REASON_OFFSET: usize = 8;
/// u8, out: `KVM_INTERRUPT` would be taken at once.
pub const KVM_RUN_READY_FOR_INTERRUPT_INJECTION_OFFSET: usize = 12;
/// u8, out: RFLAGS.IF.
pub const KVM_RUN_IF_FLAG_OFFSET: usize = 13;
/// u16, out: `KVM_RUN_X86_*`.
pub const KVM_RUN_FLAGS_OFFSET: usize = 14;
/// u64, in and out: CR8 (only without a local APIC in the hypervisor is it read).
pub const KVM_RUN_CR8_OFFSET: usize = 16;
/// u64, in and out: IA32_APIC_BASE.
pub const KVM_RUN_APIC_BASE_OFFSET: usize = 24;
/// Start of the exit's payload.
pub const KVM_RUN_UNION_OFFSET: usize = 32;
/// Bytes of the payload.
pub const KVM_RUN_UNION_SIZE: usize = 256;
/// u64, in: register classes that the client wants at each exit.
pub const KVM_RUN_VALID_REGS_OFFSET: usize = 288;
/// u64, in: register classes that the client has changed.
pub const KVM_RUN_DIRTY_REGS_OFFSET: usize = 296;
/// Start of [`crate::regs::KvmSyncRegs`].
pub const KVM_RUN_SYNC_REGS_OFFSET: usize = 304;
/// Bytes reserved for the shared registers.
pub const KVM_RUN_SYNC_REGS_SIZE: usize = 2048;
/// Bytes of `kvm_run`.
pub const KVM_RUN_SIZE: usize = KVM_RUN_SYNC_REGS_OFFSET + KVM_RUN_SYNC_REGS_SIZE;

wire! {
    /// `kvm_run` as a whole, for its size and for building one in tests; see the module's warning.
    pub struct KvmRun {
        pub request_interrupt_window: u8,
        pub immediate_exit: u8,
        pub padding1: [u8; 6],
        pub exit_reason: u32,
        pub ready_for_interrupt_injection: u8,
        pub if_flag: u8,
        pub flags: u16,
        pub cr8: u64,
        pub apic_base: u64,
        pub exit: [u8; KVM_RUN_UNION_SIZE],
        pub kvm_valid_regs: u64,
        pub kvm_dirty_regs: u64,
        pub s: [u8; KVM_RUN_SYNC_REGS_SIZE],
    }

    /// Payload of `KVM_EXIT_UNKNOWN`.
    pub struct KvmRunHw {
        pub hardware_exit_reason: u64,
    }

    /// Payload of `KVM_EXIT_FAIL_ENTRY`.
    pub struct KvmRunFailEntry {
        pub hardware_entry_failure_reason: u64,
        pub cpu: u32,
        pub pad: u32,
    }

    /// Payload of `KVM_EXIT_EXCEPTION`.
    pub struct KvmRunEx {
        pub exception: u32,
        pub error_code: u32,
    }

    /// Payload of `KVM_EXIT_IO`: `count` items of `size` bytes at `data_offset` from the start of `kvm_run`.
    pub struct KvmRunIo {
        pub direction: u8,
        pub size: u8,
        pub port: u16,
        pub count: u32,
        pub data_offset: u64,
    }

    /// Payload of `KVM_EXIT_DEBUG`.
    pub struct KvmRunDebug {
        pub arch: KvmDebugExitArch,
    }

    /// Payload of `KVM_EXIT_MMIO`.
    pub struct KvmRunMmio {
        pub phys_addr: u64,
        pub data: [u8; 8],
        pub len: u32,
        pub is_write: u8,
        pub pad: [u8; 3],
    }

    /// Payload of `KVM_EXIT_HYPERCALL`. Bit 0 of `flags` (2007's `longmode`): the guest is in 64-bit mode.
    pub struct KvmRunHypercall {
        pub nr: u64,
        pub args: [u64; 6],
        pub ret: u64,
        pub flags: u64,
    }

    /// Payload of `KVM_EXIT_HYPERCALL` as 2007 had it, without the number.
    pub struct KvmRunHypercall2007 {
        pub args: [u64; 6],
        pub ret: u64,
        pub longmode: u32,
        pub pad: u32,
    }

    /// Payload of `KVM_EXIT_TPR_ACCESS`.
    pub struct KvmRunTprAccess {
        pub rip: u64,
        pub is_write: u32,
        pub pad: u32,
    }

    /// Payload of `KVM_EXIT_INTERNAL_ERROR`.
    pub struct KvmRunInternal {
        pub suberror: u32,
        pub ndata: u32,
        pub data: [u64; 16],
    }

    /// Payload of `KVM_EXIT_INTERNAL_ERROR` with suberror `KVM_INTERNAL_ERROR_EMULATION`.
    pub struct KvmRunEmulationFailure {
        pub suberror: u32,
        pub ndata: u32,
        pub flags: u64,
        pub insn_size: u8,
        pub insn_bytes: [u8; 15],
    }

    /// Payload of `KVM_EXIT_SYSTEM_EVENT`.
    pub struct KvmRunSystemEvent {
        pub type_: u32,
        pub ndata: u32,
        pub data: [u64; 16],
    }

    /// Payload of `KVM_EXIT_IOAPIC_EOI`.
    pub struct KvmRunEoi {
        pub vector: u8,
    }

    /// Payload of `KVM_EXIT_X86_RDMSR` and `KVM_EXIT_X86_WRMSR`. `error` and, for a read, `data` come back.
    pub struct KvmRunMsr {
        pub error: u8,
        pub pad: [u8; 7],
        pub reason: u32,
        pub index: u32,
        pub data: u64,
    }

    /// Payload of `KVM_EXIT_NOTIFY`.
    pub struct KvmRunNotify {
        pub flags: u32,
    }

    /// Payload of `KVM_EXIT_MEMORY_FAULT`.
    pub struct KvmRunMemoryFault {
        pub flags: u64,
        pub gpa: u64,
        pub size: u64,
    }
}
