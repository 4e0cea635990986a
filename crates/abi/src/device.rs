//! Device control: `KVM_CREATE_DEVICE` and attributes.
#![allow(missing_docs)] // the fields' names are the interface's own

/// `KVM_CREATE_DEVICE`: only ask whether the type exists.
pub const KVM_CREATE_DEVICE_TEST: u32 = 1;
/// Device type: VFIO.
pub const KVM_DEV_TYPE_VFIO: u32 = 4;
/// vCPU attribute group: time-stamp counter.
pub const KVM_VCPU_TSC_CTRL: u32 = 0;
/// vCPU attribute: TSC offset.
pub const KVM_VCPU_TSC_OFFSET: u64 = 0;
/// Attribute of /dev/kvm itself: XCR0 bits that a guest can be given.
pub const KVM_X86_XCOMP_GUEST_SUPP: u64 = 0;

wire! {
    /// `kvm_create_device`.
    pub struct KvmCreateDevice {
        pub type_: u32,
        pub fd: u32,
        pub flags: u32,
    }

    /// `kvm_device_attr`: `addr` is an address in the client.
    pub struct KvmDeviceAttr {
        pub flags: u32,
        pub group: u32,
        pub attr: u64,
        pub addr: u64,
    }

    /// `kvm_one_reg`: `addr` is an address in the client.
    pub struct KvmOneReg {
        pub id: u64,
        pub addr: u64,
    }

    /// `kvm_reg_list`: header; `n` ids follow.
    pub struct KvmRegList {
        pub n: u64,
    }
}
