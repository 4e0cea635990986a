//! KVM_CHECK_EXTENSION. A capability stands here only when it works.
use abi::*;
use mmu::slots::NR_MEMSLOTS;
use platform::Platform;
use x86::Features;

use super::Kvm;
use crate::{
    backend::Backend,
    vcpu::{GUEST_DEBUG, NESTED_STATE_SIZE},
    vm::{ADDRESS_SPACES, DISABLE_EXITS, MAX_VCPUS, QUIRKS},
};

impl<B: Backend> Kvm<B> {
    /// The answer of KVM_CHECK_EXTENSION: 0 for what is not there.
    pub(crate) fn check_extension(&self, cap: u64) -> i32 {
        let Ok(cap) = u32::try_from(cap) else { return 0 };
        match cap {
            KVM_CAP_IRQCHIP
            | KVM_CAP_HLT
            | KVM_CAP_MMU_SHADOW_CACHE_CONTROL
            | KVM_CAP_USER_MEMORY
            | KVM_CAP_SET_TSS_ADDR
            | KVM_CAP_EXT_CPUID
            | KVM_CAP_PIT
            | KVM_CAP_NOP_IO_DELAY
            | KVM_CAP_MP_STATE
            | KVM_CAP_DESTROY_MEMORY_REGION_WORKS
            | KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
            | KVM_CAP_USER_NMI
            | KVM_CAP_SET_GUEST_DEBUG
            | KVM_CAP_REINJECT_CONTROL
            | KVM_CAP_IRQ_INJECT_STATUS
            | KVM_CAP_PIT2
            | KVM_CAP_PIT_STATE2
            | KVM_CAP_SET_BOOT_CPU_ID
            | KVM_CAP_SET_IDENTITY_MAP_ADDR
            | KVM_CAP_VCPU_EVENTS
            | KVM_CAP_INTR_SHADOW
            | KVM_CAP_DEBUGREGS
            | KVM_CAP_X86_ROBUST_SINGLESTEP
            | KVM_CAP_ENABLE_CAP
            | KVM_CAP_ENABLE_CAP_VM
            | KVM_CAP_XSAVE
            | KVM_CAP_GET_TSC_KHZ
            | KVM_CAP_TSC_DEADLINE_TIMER
            | KVM_CAP_SIGNAL_MSI
            | KVM_CAP_EXT_EMUL_CPUID
            | KVM_CAP_X86_TRIPLE_FAULT_EVENT
            | KVM_CAP_VCPU_ATTRIBUTES
            | KVM_CAP_SYS_ATTRIBUTES
            | KVM_CAP_SPLIT_IRQCHIP
            | KVM_CAP_VAPIC
            | KVM_CAP_X86_USER_SPACE_MSR
            | KVM_CAP_X86_MSR_FILTER
            | KVM_CAP_IOAPIC_POLARITY_IGNORED
            | KVM_CAP_IRQFD
            | KVM_CAP_IRQFD_RESAMPLE
            | KVM_CAP_IOEVENTFD
            | KVM_CAP_IOEVENTFD_NO_LENGTH
            | KVM_CAP_IOEVENTFD_ANY_LENGTH
            | KVM_CAP_COALESCED_PIO
            | KVM_CAP_READONLY_MEM
            | KVM_CAP_CHECK_EXTENSION_VM
            | KVM_CAP_INTERNAL_ERROR_DATA
            | KVM_CAP_IMMEDIATE_EXIT
            | KVM_CAP_GET_MSR_FEATURES
            | KVM_CAP_EXCEPTION_PAYLOAD
            | KVM_CAP_SREGS2
            | KVM_CAP_BINARY_STATS_FD
            | KVM_CAP_DISABLE_QUIRKS
            | KVM_CAP_X86_SMM
            | KVM_CAP_KVMCLOCK_CTRL
            | KVM_CAP_ASYNC_PF
            | KVM_CAP_ASYNC_PF_INT => 1,
            KVM_CAP_MULTI_ADDRESS_SPACE => ADDRESS_SPACES as i32,
            KVM_CAP_COALESCED_MMIO => KVM_COALESCED_MMIO_PAGE_OFFSET as i32,
            KVM_CAP_EXIT_HYPERCALL => KVM_EXIT_HYPERCALL_MAP_GPA_RANGE as i32,
            KVM_CAP_DISABLE_QUIRKS2 => QUIRKS as i32,
            KVM_CAP_X86_DISABLE_EXITS => DISABLE_EXITS as i32,
            KVM_CAP_MCE => crate::msr::MCE_BANKS as i32,
            KVM_CAP_NR_VCPUS | KVM_CAP_MAX_VCPUS | KVM_CAP_MAX_VCPU_ID => MAX_VCPUS as i32,
            KVM_CAP_NR_MEMSLOTS => NR_MEMSLOTS as i32,
            KVM_CAP_IRQ_ROUTING => KVM_MAX_IRQ_ROUTES as i32,
            KVM_CAP_SYNC_REGS => KVM_SYNC_X86_VALID_FIELDS as i32,
            KVM_CAP_SET_GUEST_DEBUG2 => GUEST_DEBUG as i32,
            KVM_CAP_NESTED_STATE => NESTED_STATE_SIZE as i32,
            KVM_CAP_CLOCKSOURCE | KVM_CAP_TSC_CONTROL | KVM_CAP_VM_TSC_CONTROL => {
                i32::from(B::Platform::tsc_khz() != 0)
            }
            KVM_CAP_ADJUST_CLOCK => (KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC) as i32,
            KVM_CAP_X2APIC_API => (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) as i32,
            KVM_CAP_XSAVE2 => size_of::<KvmXsave>() as i32,
            KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => {
                (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET) as i32
            }
            KVM_CAP_XCRS => i32::from(self.backend().features().contains(Features::XSAVE)),
            KVM_CAP_SYNC_MMU => 1,
            KVM_CAP_VM_TYPES => 1 << KVM_X86_DEFAULT_VM,
            _ => 0,
        }
    }
}
