//! Interrupt controllers, routing, MSI, irqfd and ioeventfd.
#![allow(missing_docs)] // the fields' names are the interface's own

/// Pins of the IOAPIC.
pub const KVM_IOAPIC_NUM_PINS: usize = 24;
/// [`KvmIrqchip::chip_id`]: the first 8259A.
pub const KVM_IRQCHIP_PIC_MASTER: u32 = 0;
/// [`KvmIrqchip::chip_id`]: the second 8259A.
pub const KVM_IRQCHIP_PIC_SLAVE: u32 = 1;
/// [`KvmIrqchip::chip_id`]: the IOAPIC.
pub const KVM_IRQCHIP_IOAPIC: u32 = 2;
/// Number of `chip_id`s.
pub const KVM_NR_IRQCHIPS: u32 = 3;
/// Bytes of [`KvmLapicState`].
pub const KVM_APIC_REG_SIZE: usize = 0x400;
/// Bytes of the payload of [`KvmIrqchip`].
pub const KVM_IRQCHIP_PAYLOAD: usize = 512;
/// Most entries of a routing table.
pub const KVM_MAX_IRQ_ROUTES: usize = 4096;

/// Route to a pin of an interrupt controller.
pub const KVM_IRQ_ROUTING_IRQCHIP: u32 = 1;
/// Route to a message-signalled interrupt.
pub const KVM_IRQ_ROUTING_MSI: u32 = 2;
/// Route to a Hyper-V synthetic interrupt.
pub const KVM_IRQ_ROUTING_HV_SINT: u32 = 4;
/// Route to a Xen event channel.
pub const KVM_IRQ_ROUTING_XEN_EVTCHN: u32 = 5;
/// [`KvmMsi::flags`] and a route's flags: `devid` is valid.
pub const KVM_MSI_VALID_DEVID: u32 = 1;

/// irqfd: take the binding back.
pub const KVM_IRQFD_FLAG_DEASSIGN: u32 = 1 << 0;
/// irqfd: level triggered; `resamplefd` is told of each end of interrupt.
pub const KVM_IRQFD_FLAG_RESAMPLE: u32 = 1 << 1;

/// ioeventfd: only writes of `datamatch` count.
pub const KVM_IOEVENTFD_FLAG_DATAMATCH: u32 = 1 << 0;
/// ioeventfd: `addr` is a port.
pub const KVM_IOEVENTFD_FLAG_PIO: u32 = 1 << 1;
/// ioeventfd: take the binding back.
pub const KVM_IOEVENTFD_FLAG_DEASSIGN: u32 = 1 << 2;
/// ioeventfd: virtio-ccw notification (not on x86).
pub const KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY: u32 = 1 << 3;

/// [`KvmIrqLevel::irq`] after `KVM_IRQ_LINE_STATUS`: masked, nothing delivered.
pub const KVM_IRQ_STATUS_IGNORED: i32 = -1;

wire! {
    /// `kvm_irq_level`: a GSI's level in, with `KVM_IRQ_LINE_STATUS` the status comes back in `irq`
    /// (above 0 delivered to so many, 0 coalesced, below 0 masked).
    pub struct KvmIrqLevel {
        pub irq: u32,
        pub level: u32,
    }

    /// `kvm_irqchip`: state of one controller. `chip` holds a [`KvmPicState`] or a [`KvmIoapicState`] at its start.
    pub struct KvmIrqchip {
        pub chip_id: u32,
        pub pad: u32,
        pub chip: [u8; KVM_IRQCHIP_PAYLOAD],
    }

    /// `kvm_pic_state`: one 8259A.
    pub struct KvmPicState {
        pub last_irr: u8,
        pub irr: u8,
        pub imr: u8,
        pub isr: u8,
        pub priority_add: u8,
        pub irq_base: u8,
        pub read_reg_select: u8,
        pub poll: u8,
        pub special_mask: u8,
        pub init_state: u8,
        pub auto_eoi: u8,
        pub rotate_on_auto_eoi: u8,
        pub special_fully_nested_mode: u8,
        pub init4: u8,
        pub elcr: u8,
        pub elcr_mask: u8,
    }

    /// `kvm_ioapic_state`. A redirection entry is as the 82093AA data sheet has it: vector 7:0, delivery mode 10:8,
    /// destination mode 11, delivery status 12, polarity 13, remote IRR 14, trigger mode 15, mask 16, destination 63:56.
    pub struct KvmIoapicState {
        pub base_address: u64,
        pub ioregsel: u32,
        pub id: u32,
        pub irr: u32,
        pub pad: u32,
        pub redirtbl: [u64; KVM_IOAPIC_NUM_PINS],
    }

    /// `kvm_lapic_state`: the local APIC's registers, each at its offset in the xAPIC page.
    pub struct KvmLapicState {
        pub regs: [u8; KVM_APIC_REG_SIZE],
    }

    /// `kvm_irq_routing`: header; `nr` [`KvmIrqRoutingEntry`] follow.
    pub struct KvmIrqRouting {
        pub nr: u32,
        pub flags: u32,
    }

    /// `kvm_irq_routing_entry`: `u` is `[irqchip, pin]`, `[address_lo, address_hi, data, devid]` or another type's.
    pub struct KvmIrqRoutingEntry {
        pub gsi: u32,
        pub type_: u32,
        pub flags: u32,
        pub pad: u32,
        pub u: [u32; 8],
    }

    /// `kvm_msi`: a message to deliver at once.
    pub struct KvmMsi {
        pub address_lo: u32,
        pub address_hi: u32,
        pub data: u32,
        pub flags: u32,
        pub devid: u32,
        pub pad: [u8; 12],
    }

    /// `kvm_irqfd`: binds an eventfd to a GSI.
    pub struct KvmIrqfd {
        pub fd: u32,
        pub gsi: u32,
        pub flags: u32,
        pub resamplefd: u32,
        pub pad: [u8; 16],
    }

    /// `kvm_ioeventfd`: binds an eventfd to a guest write.
    pub struct KvmIoeventfd {
        pub datamatch: u64,
        pub addr: u64,
        pub len: u32,
        pub fd: i32,
        pub flags: u32,
        pub pad: [u8; 36],
    }

    /// `kvm_interrupt`: the vector to inject.
    pub struct KvmInterrupt {
        pub irq: u32,
    }

    /// `kvm_tpr_access_ctl`: switches TPR access exits.
    pub struct KvmTprAccessCtl {
        pub enabled: u32,
        pub flags: u32,
        pub reserved: [u32; 8],
    }

    /// `kvm_vapic_addr`: guest physical address of the vAPIC word of QEMU's option ROM.
    pub struct KvmVapicAddr {
        pub vapic_addr: u64,
    }

    /// `kvm_hyperv_eventfd`.
    pub struct KvmHypervEventfd {
        pub conn_id: u32,
        pub fd: i32,
        pub flags: u32,
        pub padding: [u32; 3],
    }
}

impl KvmIrqRoutingEntry {
    /// A route from `gsi` to `pin` of controller `irqchip`.
    pub const fn to_irqchip(gsi: u32, irqchip: u32, pin: u32) -> Self {
        Self { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, flags: 0, pad: 0, u: [irqchip, pin, 0, 0, 0, 0, 0, 0] }
    }

    /// A route from `gsi` to a message.
    pub const fn to_msi(gsi: u32, address: u64, data: u32) -> Self {
        let u = [address as u32, (address >> 32) as u32, data, 0, 0, 0, 0, 0];
        Self { gsi, type_: KVM_IRQ_ROUTING_MSI, flags: 0, pad: 0, u }
    }
}
