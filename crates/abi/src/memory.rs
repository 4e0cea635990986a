//! Memory slots, dirty log, coalesced MMIO, address translation.
#![allow(missing_docs)] // the fields' names are the interface's own

/// Slot flag: log dirty pages.
pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1 << 0;
/// Slot flag: guest writes become MMIO exits.
pub const KVM_MEM_READONLY: u32 = 1 << 1;
/// Slot flag: backed by a guest_memfd.
pub const KVM_MEM_GUEST_MEMFD: u32 = 1 << 2;
/// [`KvmMemoryAttributes::attributes`]: the range is private to the guest.
pub const KVM_MEMORY_ATTRIBUTE_PRIVATE: u64 = 1 << 3;

/// Page of the vCPU's mapping that holds PIO data.
pub const KVM_PIO_PAGE_OFFSET: u64 = 1;
/// Page of the vCPU's mapping that holds the ring of coalesced MMIO.
pub const KVM_COALESCED_MMIO_PAGE_OFFSET: u64 = 2;
/// Page of the vCPU's mapping at which the dirty ring starts.
pub const KVM_DIRTY_LOG_PAGE_OFFSET: u64 = 64;

wire! {
    /// `kvm_userspace_memory_region`: a slot backed by the client's memory. Size 0 deletes.
    pub struct KvmUserspaceMemoryRegion {
        pub slot: u32,
        pub flags: u32,
        pub guest_phys_addr: u64,
        pub memory_size: u64,
        pub userspace_addr: u64,
    }

    /// `kvm_userspace_memory_region2`: as [`KvmUserspaceMemoryRegion`], with a guest_memfd.
    pub struct KvmUserspaceMemoryRegion2 {
        pub slot: u32,
        pub flags: u32,
        pub guest_phys_addr: u64,
        pub memory_size: u64,
        pub userspace_addr: u64,
        pub guest_memfd_offset: u64,
        pub guest_memfd: u32,
        pub pad1: u32,
        pub pad2: [u64; 14],
    }

    /// `kvm_memory_attributes`.
    pub struct KvmMemoryAttributes {
        pub address: u64,
        pub size: u64,
        pub attributes: u64,
        pub flags: u64,
    }

    /// `kvm_create_guest_memfd`.
    pub struct KvmCreateGuestMemfd {
        pub size: u64,
        pub flags: u64,
        pub reserved: [u64; 6],
    }

    /// `kvm_pre_fault_memory`.
    pub struct KvmPreFaultMemory {
        pub gpa: u64,
        pub size: u64,
        pub flags: u64,
        pub padding: [u64; 5],
    }

    /// `kvm_dirty_log`: `dirty_bitmap` is an address in the client, one bit a page, rounded up to 64 bits.
    pub struct KvmDirtyLog {
        pub slot: u32,
        pub padding1: u32,
        pub dirty_bitmap: u64,
    }

    /// `kvm_clear_dirty_log`: `first_page` and `num_pages` are multiples of 64 unless they end at the slot's end.
    pub struct KvmClearDirtyLog {
        pub slot: u32,
        pub num_pages: u32,
        pub first_page: u64,
        pub dirty_bitmap: u64,
    }

    /// `kvm_translation`: `linear_address` in, the rest out.
    pub struct KvmTranslation {
        pub linear_address: u64,
        pub physical_address: u64,
        pub valid: u8,
        pub writeable: u8,
        pub usermode: u8,
        pub pad: [u8; 5],
    }

    /// `kvm_coalesced_mmio_zone`: guest writes here are batched. `pio` is 1 for a range of ports.
    pub struct KvmCoalescedMmioZone {
        pub addr: u64,
        pub size: u32,
        pub pio: u32,
    }

    /// `kvm_coalesced_mmio`: one batched write.
    pub struct KvmCoalescedMmio {
        pub phys_addr: u64,
        pub len: u32,
        pub pio: u32,
        pub data: [u8; 8],
    }

    /// `kvm_coalesced_mmio_ring`: header of the shared page; elements follow.
    pub struct KvmCoalescedMmioRing {
        pub first: u32,
        pub last: u32,
    }

    /// `kvm_enc_region`.
    pub struct KvmEncRegion {
        pub addr: u64,
        pub size: u64,
    }
}

/// Elements of the coalesced ring in a page of 4096 bytes.
pub const KVM_COALESCED_MMIO_MAX: usize =
    (4096 - core::mem::size_of::<KvmCoalescedMmioRing>()) / core::mem::size_of::<KvmCoalescedMmio>();
