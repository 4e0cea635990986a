//! Request numbers: direction, size of the argument, magic 0xAE, number.

use core::mem::size_of;

use crate::{
    cpuid::{KvmCpuid, KvmCpuid2},
    debug::KvmGuestDebug,
    device::{KvmCreateDevice, KvmDeviceAttr, KvmOneReg, KvmRegList},
    events::{KvmMpState, KvmVcpuEvents, KvmX86Mce},
    irq::{
        KvmHypervEventfd, KvmInterrupt, KvmIoeventfd, KvmIrqLevel, KvmIrqRouting, KvmIrqchip, KvmIrqfd, KvmLapicState,
        KvmMsi, KvmTprAccessCtl, KvmVapicAddr,
    },
    legacy2007::{KvmDebugGuest, KvmMemoryAlias, KvmMemoryRegion},
    memory::{
        KvmClearDirtyLog, KvmCoalescedMmioZone, KvmCreateGuestMemfd, KvmDirtyLog, KvmEncRegion, KvmMemoryAttributes,
        KvmPreFaultMemory, KvmTranslation, KvmUserspaceMemoryRegion, KvmUserspaceMemoryRegion2,
    },
    misc::{KvmClockData, KvmEnableCap, KvmNestedState, KvmPmuEventFilter, KvmSignalMask, KvmXenHvmConfig},
    msr::{KvmMsrFilter, KvmMsrList, KvmMsrs},
    pit::{KvmPitConfig, KvmPitState, KvmPitState2, KvmReinjectControl},
    regs::{KvmDebugregs, KvmFpu, KvmRegs, KvmSregs, KvmSregs2, KvmXcrs, KvmXsave},
};

/// Magic byte of every request.
pub const KVMIO: u32 = 0xae;
/// No argument structure.
pub const IOC_NONE: u32 = 0;
/// The client's structure is read.
pub const IOC_WRITE: u32 = 1;
/// The client's structure is written.
pub const IOC_READ: u32 = 2;

/// Builds a request number from a direction (`IOC_*`), a number and the size of the argument in bytes (below 16384).
pub const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
    assert!(size < 1 << 14 && nr < 256 && dir < 4);
    dir << 30 | (size as u32) << 16 | KVMIO << 8 | nr
}

/// The number within the magic.
pub const fn ioc_nr(request: u32) -> u32 {
    request & 0xff
}

/// The magic byte.
pub const fn ioc_type(request: u32) -> u32 {
    request >> 8 & 0xff
}

/// The argument's size in bytes.
pub const fn ioc_size(request: u32) -> usize {
    (request >> 16 & 0x3fff) as usize
}

/// The direction, `IOC_READ` and `IOC_WRITE` combined.
pub const fn ioc_dir(request: u32) -> u32 {
    request >> 30
}

const fn io(nr: u32) -> u32 {
    ioc(IOC_NONE, nr, 0)
}

const fn iow<T>(nr: u32) -> u32 {
    ioc(IOC_WRITE, nr, size_of::<T>())
}

const fn ior<T>(nr: u32) -> u32 {
    ioc(IOC_READ, nr, size_of::<T>())
}

const fn iowr<T>(nr: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, nr, size_of::<T>())
}

named! {
    /// All requests with their names.
    KVM_IOCTL_NAMES;

    /// On /dev/kvm: 12.
    KVM_GET_API_VERSION = io(0x00);
    /// On /dev/kvm: a new VM's descriptor.
    KVM_CREATE_VM = io(0x01);
    /// On /dev/kvm: indices of the MSRs that can be saved.
    KVM_GET_MSR_INDEX_LIST = iowr::<KvmMsrList>(0x02);
    /// On /dev/kvm and a VM: the value of a capability.
    KVM_CHECK_EXTENSION = io(0x03);
    /// On /dev/kvm: bytes to map from a vCPU's descriptor.
    KVM_GET_VCPU_MMAP_SIZE = io(0x04);
    /// On /dev/kvm: CPUID as it can be given to a guest.
    KVM_GET_SUPPORTED_CPUID = iowr::<KvmCpuid2>(0x05);
    /// On /dev/kvm: CPUID features that are emulated.
    KVM_GET_EMULATED_CPUID = iowr::<KvmCpuid2>(0x09);
    /// On /dev/kvm: indices of MSRs that tell features.
    KVM_GET_MSR_FEATURE_INDEX_LIST = iowr::<KvmMsrList>(0x0a);

    /// On a VM, 2007: a slot with memory of the device's own.
    KVM_SET_MEMORY_REGION = iow::<KvmMemoryRegion>(0x40);
    /// On a VM: a new vCPU's descriptor.
    KVM_CREATE_VCPU = io(0x41);
    /// On a VM: which pages of a slot were written.
    KVM_GET_DIRTY_LOG = iow::<KvmDirtyLog>(0x42);
    /// On a VM, 2007: a window onto other guest memory.
    KVM_SET_MEMORY_ALIAS = iow::<KvmMemoryAlias>(0x43);
    /// On a VM: most shadow pages.
    KVM_SET_NR_MMU_PAGES = io(0x44);
    /// On a VM: most shadow pages.
    KVM_GET_NR_MMU_PAGES = io(0x45);
    /// On a VM: a slot with the client's memory.
    KVM_SET_USER_MEMORY_REGION = iow::<KvmUserspaceMemoryRegion>(0x46);
    /// On a VM: three pages for VT-x's real mode.
    KVM_SET_TSS_ADDR = io(0x47);
    /// On a VM: one page for VT-x's real mode.
    KVM_SET_IDENTITY_MAP_ADDR = iow::<u64>(0x48);
    /// On a VM: a slot with the client's memory and a guest_memfd.
    KVM_SET_USER_MEMORY_REGION2 = iow::<KvmUserspaceMemoryRegion2>(0x49);

    /// On a VM: PIC, IOAPIC and local APICs in the hypervisor.
    KVM_CREATE_IRQCHIP = io(0x60);
    /// On a VM: a GSI's level.
    KVM_IRQ_LINE = iow::<KvmIrqLevel>(0x61);
    /// On a VM: a controller's state.
    KVM_GET_IRQCHIP = iowr::<KvmIrqchip>(0x62);
    /// On a VM: a controller's state.
    KVM_SET_IRQCHIP = ior::<KvmIrqchip>(0x63);
    /// On a VM: timer in the hypervisor.
    KVM_CREATE_PIT = io(0x64);
    /// On a VM: the timer's state.
    KVM_GET_PIT = iowr::<KvmPitState>(0x65);
    /// On a VM: the timer's state.
    KVM_SET_PIT = ior::<KvmPitState>(0x66);
    /// On a VM: a GSI's level, with the outcome.
    KVM_IRQ_LINE_STATUS = iowr::<KvmIrqLevel>(0x67);
    /// On a VM: batch writes to a zone.
    KVM_REGISTER_COALESCED_MMIO = iow::<KvmCoalescedMmioZone>(0x67);
    /// On a VM: no longer batch writes to a zone.
    KVM_UNREGISTER_COALESCED_MMIO = iow::<KvmCoalescedMmioZone>(0x68);
    /// On a VM: the routing table.
    KVM_SET_GSI_ROUTING = iow::<KvmIrqRouting>(0x6a);
    /// On a VM: the timer's missed ticks.
    KVM_REINJECT_CONTROL = io(0x71);
    /// On a VM: bind an eventfd to a GSI.
    KVM_IRQFD = iow::<KvmIrqfd>(0x76);
    /// On a VM: timer in the hypervisor, with flags.
    KVM_CREATE_PIT2 = iow::<KvmPitConfig>(0x77);
    /// On a VM: which vCPU is the bootstrap processor.
    KVM_SET_BOOT_CPU_ID = io(0x78);
    /// On a VM: bind an eventfd to a guest write.
    KVM_IOEVENTFD = iow::<KvmIoeventfd>(0x79);
    /// On a VM: Xen's hypercall page.
    KVM_XEN_HVM_CONFIG = iow::<KvmXenHvmConfig>(0x7a);
    /// On a VM: the guest's clock.
    KVM_SET_CLOCK = iow::<KvmClockData>(0x7b);
    /// On a VM: the guest's clock.
    KVM_GET_CLOCK = ior::<KvmClockData>(0x7c);
    /// On a VM: the timer's state, with flags.
    KVM_GET_PIT2 = ior::<KvmPitState2>(0x9f);
    /// On a VM: the timer's state, with flags.
    KVM_SET_PIT2 = iow::<KvmPitState2>(0xa0);
    /// On a VM and a vCPU: frequency of the time-stamp counter.
    KVM_SET_TSC_KHZ = io(0xa2);
    /// On a VM and a vCPU: frequency of the time-stamp counter.
    KVM_GET_TSC_KHZ = io(0xa3);
    /// On a VM: deliver a message.
    KVM_SIGNAL_MSI = iow::<KvmMsi>(0xa5);
    /// On a VM: which events guests may count.
    KVM_SET_PMU_EVENT_FILTER = iow::<KvmPmuEventFilter>(0xb2);
    /// On a VM: memory encryption commands.
    KVM_MEMORY_ENCRYPT_OP = iowr::<u64>(0xba);
    /// On a VM: encrypted memory.
    KVM_MEMORY_ENCRYPT_REG_REGION = ior::<KvmEncRegion>(0xbb);
    /// On a VM: encrypted memory.
    KVM_MEMORY_ENCRYPT_UNREG_REGION = ior::<KvmEncRegion>(0xbc);
    /// On a VM: bind an eventfd to a Hyper-V connection.
    KVM_HYPERV_EVENTFD = iow::<KvmHypervEventfd>(0xbd);
    /// On a VM: mark pages of a slot clean.
    KVM_CLEAR_DIRTY_LOG = iowr::<KvmClearDirtyLog>(0xc0);
    /// On /dev/kvm and a vCPU: Hyper-V's CPUID leaves.
    KVM_GET_SUPPORTED_HV_CPUID = iowr::<KvmCpuid2>(0xc1);
    /// On a VM: which MSR accesses the client wants to see.
    KVM_X86_SET_MSR_FILTER = iow::<KvmMsrFilter>(0xc6);
    /// On a VM: take harvested entries back from the dirty rings.
    KVM_RESET_DIRTY_RINGS = io(0xc7);
    /// On a VM: private or shared memory.
    KVM_SET_MEMORY_ATTRIBUTES = iow::<KvmMemoryAttributes>(0xd2);
    /// On a VM: memory that only guests map.
    KVM_CREATE_GUEST_MEMFD = iowr::<KvmCreateGuestMemfd>(0xd4);
    /// On a VM: a device of `KVM_DEV_TYPE_*`.
    KVM_CREATE_DEVICE = iowr::<KvmCreateDevice>(0xe0);
    /// On a VM, a vCPU and a device: an attribute.
    KVM_SET_DEVICE_ATTR = iow::<KvmDeviceAttr>(0xe1);
    /// On a VM, a vCPU and a device: an attribute.
    KVM_GET_DEVICE_ATTR = iow::<KvmDeviceAttr>(0xe2);
    /// On a VM, a vCPU and a device: whether an attribute exists.
    KVM_HAS_DEVICE_ATTR = iow::<KvmDeviceAttr>(0xe3);

    /// On a vCPU: run the guest until something happens.
    KVM_RUN = io(0x80);
    /// On a vCPU: general registers.
    KVM_GET_REGS = ior::<KvmRegs>(0x81);
    /// On a vCPU: general registers.
    KVM_SET_REGS = iow::<KvmRegs>(0x82);
    /// On a vCPU: system registers.
    KVM_GET_SREGS = ior::<KvmSregs>(0x83);
    /// On a vCPU: system registers.
    KVM_SET_SREGS = iow::<KvmSregs>(0x84);
    /// On a vCPU: gva to gpa.
    KVM_TRANSLATE = iowr::<KvmTranslation>(0x85);
    /// On a vCPU: queue an external interrupt.
    KVM_INTERRUPT = iow::<KvmInterrupt>(0x86);
    /// On a vCPU, 2007: guest debugging.
    KVM_DEBUG_GUEST = iow::<KvmDebugGuest>(0x87);
    /// On /dev/kvm (feature MSRs) and a vCPU: MSRs.
    KVM_GET_MSRS = iowr::<KvmMsrs>(0x88);
    /// On a vCPU: MSRs.
    KVM_SET_MSRS = iow::<KvmMsrs>(0x89);
    /// On a vCPU: CPUID table without sub-leaves.
    KVM_SET_CPUID = iow::<KvmCpuid>(0x8a);
    /// On a vCPU: signals blocked during `KVM_RUN`.
    KVM_SET_SIGNAL_MASK = iow::<KvmSignalMask>(0x8b);
    /// On a vCPU: x87 and SSE state.
    KVM_GET_FPU = ior::<KvmFpu>(0x8c);
    /// On a vCPU: x87 and SSE state.
    KVM_SET_FPU = iow::<KvmFpu>(0x8d);
    /// On a vCPU: local APIC.
    KVM_GET_LAPIC = ior::<KvmLapicState>(0x8e);
    /// On a vCPU: local APIC.
    KVM_SET_LAPIC = iow::<KvmLapicState>(0x8f);
    /// On a vCPU: CPUID table.
    KVM_SET_CPUID2 = iow::<KvmCpuid2>(0x90);
    /// On a vCPU: CPUID table.
    KVM_GET_CPUID2 = iowr::<KvmCpuid2>(0x91);
    /// On a vCPU: exits on TPR accesses.
    KVM_TPR_ACCESS_REPORTING = iowr::<KvmTprAccessCtl>(0x92);
    /// On a vCPU: where the guest's vAPIC word is.
    KVM_SET_VAPIC_ADDR = iow::<KvmVapicAddr>(0x93);
    /// On a vCPU: running, halted, waiting.
    KVM_GET_MP_STATE = ior::<KvmMpState>(0x98);
    /// On a vCPU: running, halted, waiting.
    KVM_SET_MP_STATE = iow::<KvmMpState>(0x99);
    /// On a vCPU: an NMI.
    KVM_NMI = io(0x9a);
    /// On a vCPU: guest debugging.
    KVM_SET_GUEST_DEBUG = iow::<KvmGuestDebug>(0x9b);
    /// On a vCPU: machine-check banks.
    KVM_X86_SETUP_MCE = iow::<u64>(0x9c);
    /// On /dev/kvm: machine-check capabilities.
    KVM_X86_GET_MCE_CAP_SUPPORTED = ior::<u64>(0x9d);
    /// On a vCPU: a machine check.
    KVM_X86_SET_MCE = iow::<KvmX86Mce>(0x9e);
    /// On a vCPU: pending events.
    KVM_GET_VCPU_EVENTS = ior::<KvmVcpuEvents>(0x9f);
    /// On a vCPU: pending events.
    KVM_SET_VCPU_EVENTS = iow::<KvmVcpuEvents>(0xa0);
    /// On a vCPU: debug registers.
    KVM_GET_DEBUGREGS = ior::<KvmDebugregs>(0xa1);
    /// On a vCPU: debug registers.
    KVM_SET_DEBUGREGS = iow::<KvmDebugregs>(0xa2);
    /// On a VM and a vCPU: switch a capability on.
    KVM_ENABLE_CAP = iow::<KvmEnableCap>(0xa3);
    /// On a vCPU: XSAVE area.
    KVM_GET_XSAVE = ior::<KvmXsave>(0xa4);
    /// On a vCPU: XSAVE area.
    KVM_SET_XSAVE = iow::<KvmXsave>(0xa5);
    /// On a vCPU: extended control registers.
    KVM_GET_XCRS = ior::<KvmXcrs>(0xa6);
    /// On a vCPU: extended control registers.
    KVM_SET_XCRS = iow::<KvmXcrs>(0xa7);
    /// On a vCPU: a register by id.
    KVM_GET_ONE_REG = iow::<KvmOneReg>(0xab);
    /// On a vCPU: a register by id.
    KVM_SET_ONE_REG = iow::<KvmOneReg>(0xac);
    /// On a vCPU: the guest was stopped by the host.
    KVM_KVMCLOCK_CTRL = io(0xad);
    /// On a vCPU: ids for `KVM_GET_ONE_REG`.
    KVM_GET_REG_LIST = iowr::<KvmRegList>(0xb0);
    /// On a vCPU: a system management interrupt.
    KVM_SMI = io(0xb7);
    /// On a vCPU: nested virtualization.
    KVM_GET_NESTED_STATE = iowr::<KvmNestedState>(0xbe);
    /// On a vCPU: nested virtualization.
    KVM_SET_NESTED_STATE = iow::<KvmNestedState>(0xbf);
    /// On a vCPU: system registers with PDPTEs.
    KVM_GET_SREGS2 = ior::<KvmSregs2>(0xcc);
    /// On a vCPU: system registers with PDPTEs.
    KVM_SET_SREGS2 = iow::<KvmSregs2>(0xcd);
    /// On a VM and a vCPU: a descriptor that reads as statistics.
    KVM_GET_STATS_FD = io(0xce);
    /// On a vCPU: XSAVE area of the size that `KVM_CAP_XSAVE2` tells.
    KVM_GET_XSAVE2 = ior::<KvmXsave>(0xcf);
    /// On a vCPU: map memory before it is used.
    KVM_PRE_FAULT_MEMORY = iowr::<KvmPreFaultMemory>(0xd5);
}

/// `KVM_REINJECT_CONTROL` takes this although its number says no size.
pub const KVM_REINJECT_CONTROL_SIZE: usize = size_of::<KvmReinjectControl>();

/// The name of a request, for messages.
pub fn ioctl_name(request: u32) -> Option<&'static str> {
    crate::wire::lookup(KVM_IOCTL_NAMES, request)
}
