//! Where things lie in the guest's physical address space and port space.

/// Global descriptor table the guest starts with.
pub const GDT: u64 = 0x500;
/// The Linux boot protocol's `boot_params` ("zero page").
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top of the stack the guest starts with.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables the guest starts with: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// End of the conventional memory that the guest may use.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables; the root pointer comes first, where a BIOS has it too.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// End of the space for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0x10_0000;
/// First byte above the legacy megabyte.
pub const HIGH_RAM: u64 = 0x10_0000;

/// RAM below 4 GiB ends here at the latest (3.25 GiB); devices live above.
pub const HOLE_START: u64 = 0xd000_0000;
/// RAM continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio device.
pub const VIRTIO_BASE: u64 = HOLE_START;
/// Each virtio-mmio device owns one page.
pub const VIRTIO_SIZE: u64 = 0x1000;
/// Interrupt of the first virtio-mmio device; the next has the next number.
pub const VIRTIO_GSI: u32 = 16;
/// Devices there can be: IOAPIC inputs 16 to 23, one each.
pub const VIRTIO_MAX: usize = 8;

/// I/O APIC, where the hypervisor has it.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs, where processors have them after reset.
pub const LAPIC: u32 = 0xfee0_0000;
/// One page that `KVM_SET_IDENTITY_MAP_ADDR` asks for.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that `KVM_SET_TSS_ADDR` asks for.
pub const TSS: u32 = 0xfffb_d000;

/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Its ISA interrupt.
pub const COM1_IRQ: u32 = 4;
/// Clock and its memory: index and data port.
pub const CMOS_PORT: u16 = 0x70;
/// Keyboard controller: data port; its command port is four above.
pub const I8042_PORT: u16 = 0x60;
/// Keyboard controller's command port.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// ACPI power management: event block (4 bytes), control block (2), timer (4) at 8.
pub const PM_PORT: u16 = 0x600;
/// ACPI's interrupt.
pub const SCI_IRQ: u32 = 9;
