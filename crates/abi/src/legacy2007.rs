//! What only the interface of July 2007 (Linux 2.6.22) had.
#![allow(missing_docs)] // the fields' names are the interface's own

/// MSR by which a guest of the time announced its hypercall page.
pub const MSR_KVM_API_MAGIC: u32 = 0x8765_5678;
/// Version that 2007's guests and hosts fill into [`KvmVcpuPara`].
pub const KVM_PARA_API_VERSION: u32 = 1;

wire! {
    /// `kvm_memory_region`: a slot whose memory the device owns; the client maps it through the VM's descriptor.
    pub struct KvmMemoryRegion {
        pub slot: u32,
        pub flags: u32,
        pub guest_phys_addr: u64,
        pub memory_size: u64,
    }

    /// `kvm_memory_alias`: a window onto other guest memory. Slots are a name space of their own; size 0 removes.
    pub struct KvmMemoryAlias {
        pub slot: u32,
        pub flags: u32,
        pub guest_phys_addr: u64,
        pub memory_size: u64,
        pub target_phys_addr: u64,
    }

    /// `kvm_breakpoint`: an execution breakpoint of [`KvmDebugGuest`].
    pub struct KvmBreakpoint {
        pub enabled: u32,
        pub padding: u32,
        pub address: u64,
    }

    /// `kvm_debug_guest`: 2007's guest debugging. `tail` is what a 64-bit C compiler pads at the end.
    pub struct KvmDebugGuest {
        pub enabled: u32,
        pub pad: u32,
        pub breakpoints: [KvmBreakpoint; 4],
        pub singlestep: u32,
        pub tail: u32,
    }

    /// `kvm_vcpu_para_state`: the page that a 2007 guest shares to set up its hypercalls.
    pub struct KvmVcpuPara {
        pub guest_version: u32,
        pub host_version: u32,
        pub size: u32,
        pub ret: u32,
        pub hypercall_gpa: u64,
    }
}
