//! CPUID tables.
#![allow(missing_docs)] // the fields' names are the interface's own

/// [`KvmCpuidEntry2::flags`]: `index` must match ECX. (The interface's own spelling.)
pub const KVM_CPUID_FLAG_SIGNIFCANT_INDEX: u32 = 1 << 0;
/// [`KvmCpuidEntry2::flags`]: the answer depends on how often the leaf was read (obsolete).
pub const KVM_CPUID_FLAG_STATEFUL_FUNC: u32 = 1 << 1;
/// [`KvmCpuidEntry2::flags`]: the next entry to answer a stateful leaf (obsolete).
pub const KVM_CPUID_FLAG_STATE_READ_NEXT: u32 = 1 << 2;

wire! {
    /// `kvm_cpuid`: header of 2007's table; `nent` [`KvmCpuidEntry`] follow.
    pub struct KvmCpuid {
        pub nent: u32,
        pub padding: u32,
    }

    /// `kvm_cpuid_entry`.
    pub struct KvmCpuidEntry {
        pub function: u32,
        pub eax: u32,
        pub ebx: u32,
        pub ecx: u32,
        pub edx: u32,
        pub padding: u32,
    }

    /// `kvm_cpuid2`: header of today's table; `nent` [`KvmCpuidEntry2`] follow.
    pub struct KvmCpuid2 {
        pub nent: u32,
        pub padding: u32,
    }

    /// `kvm_cpuid_entry2`.
    pub struct KvmCpuidEntry2 {
        pub function: u32,
        pub index: u32,
        pub flags: u32,
        pub eax: u32,
        pub ebx: u32,
        pub ecx: u32,
        pub edx: u32,
        pub padding: [u32; 3],
    }
}
