//! The ACPI tables: how the guest finds processors, interrupt controllers,
//! devices, power-off and reset. Debian's cloud kernel reads nothing else (no
//! MP table, no virtio-mmio command line).
//!
//! The machine has ACPI's classic fixed hardware (power-management event and
//! control registers, timer), not the hardware-reduced kind: on a
//! hardware-reduced PC Linux ignores PIC and PIT, and could calibrate its
//! clocks only where a paravirtual clock is offered.

mod dsdt;

use crate::layout::*;
use crate::memory::GuestRam;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, facs::FACS};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// The tables could not be built.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// the ACPI tables for this many processors do not fit their space
    #[error("the ACPI tables for this many processors do not fit their space")]
    TooLarge,
    /// cannot write the ACPI tables: {0}
    #[error("cannot write the ACPI tables: {0}")]
    Write(#[from] GuestMemoryError),
}

const OEM: [u8; 6] = *b"REKVM ";
const OEM_TABLE: [u8; 8] = *b"REKVM VM";
const OEM_REVISION: u32 = 1;

/// What the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Hardware {
    /// Processors; their local APIC ids are 0, 1, 2, ...
    pub cpus: u32,
    /// virtio-mmio devices, from [`VIRTIO_BASE`] up.
    pub virtio: u32,
}

/// Writes all tables; answers the address of the root pointer.
///
/// # Errors
/// [`AcpiError::TooLarge`] for thousands of processors.
pub fn write(ram: &GuestRam, hardware: Hardware) -> Result<u64, AcpiError> {
    let mut placer = Placer { ram, next: ACPI_TABLES };
    // The root pointer is searched for on 16-byte boundaries; it is written
    // last but lies first.
    let root = placer.next;
    placer.next += align(Rsdp::len() as u64);
    let facs = placer.place(&bytes(&FACS::new()))?;
    let dsdt = placer.place(dsdt::build(hardware).as_slice())?;
    let fadt = placer.place(&bytes(&fadt(facs, dsdt)))?;
    let madt = placer.place(madt(hardware).as_slice())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = placer.place(&bytes(&xsdt))?;
    ram.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(root))?;
    Ok(root)
}

/// Tables start on 64-byte boundaries, which the FACS demands.
fn align(len: u64) -> u64 {
    len.next_multiple_of(64)
}

struct Placer<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Placer<'_> {
    fn place(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let at = self.next;
        self.next += align(table.len() as u64);
        if self.next > ACPI_TABLES_END {
            return Err(AcpiError::TooLarge);
        }
        self.ram.write_slice(table, GuestAddress(at))?;
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed ACPI description table (ACPI 6.5, 5.2.9).
fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    /// A CMOS clock exists, there is no VGA to probe for and no keyboard controller to drive.
    const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
    let pm = u32::from(PM_PORT);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No fixed power or sleep button; the clock cannot wake the machine.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.sci_int = (SCI_IRQ as u16).into();
    fadt.pm1a_evt_blk = pm.into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = (pm + 4).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = (pm + 8).into();
    fadt.pm_tmr_len = 4;
    // No processor power states beyond C1.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = crate::devices::cmos::CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCH_NO_VGA.into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(I8042_COMMAND_PORT));
    fadt.reset_value = crate::devices::i8042::RESET;
    fadt.finalize()
}

/// Multiple APIC description table (ACPI 6.5, 5.2.12).
fn madt(hardware: Hardware) -> Sdt {
    /// The machine has 8259 PICs too.
    const PCAT_COMPAT: u32 = 1;
    /// Level triggered, active high, as interrupt source overrides encode it.
    const LEVEL_HIGH: u16 = 0b11_01;
    let mut body = Vec::new();
    body.extend_from_slice(&LAPIC.to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for id in 0..hardware.cpus {
        match u8::try_from(id) {
            // 255 addresses all local APICs.
            Ok(id) if id < 255 => {
                ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
            }
            _ => {
                // Processor Local x2APIC: type, length, reserved, id, enabled, uid.
                body.extend_from_slice(&[9, 16, 0, 0]);
                for field in [id, 1, id] {
                    body.extend_from_slice(&field.to_le_bytes());
                }
            }
        }
    }
    IoApic::new(0, IOAPIC, 0).to_aml_bytes(&mut body);
    // Interrupt source override: type, length, ISA bus, source, GSI, flags.
    body.extend_from_slice(&[2, 10, 0, SCI_IRQ as u8]);
    body.extend_from_slice(&SCI_IRQ.to_le_bytes());
    body.extend_from_slice(&LEVEL_HIGH.to_le_bytes());
    // LINT1 is the NMI of every local APIC.
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    let mut sdt = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(&body);
    sdt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
    }

    fn read(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    /// A table by its address, its checksum verified.
    fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
        let len: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let bytes = read(ram, at, len as usize);
        assert_eq!(sum(&bytes), 0, "checksum of {}", String::from_utf8_lossy(&bytes[..4]));
        bytes
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn tables(ram: &GuestRam, hardware: Hardware) -> (Vec<u8>, Vec<u8>) {
        let root = read(ram, write(ram, hardware).unwrap(), 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
        let xsdt = table(ram, u64_at(&root, 24));
        assert_eq!(xsdt.len(), 36 + 16);
        (table(ram, u64_at(&xsdt, 36)), table(ram, u64_at(&xsdt, 44)))
    }

    #[test]
    fn fadt_leads_to_power_off_and_reset() {
        let ram = ram();
        let (fadt, _) = tables(&ram, Hardware { cpus: 1, virtio: 0 });
        assert_eq!(&fadt[..4], b"FACP");
        let flags = u32_at(&fadt, 112);
        assert_eq!(flags & 1 << 10, 1 << 10, "reset register supported");
        assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
        assert_eq!(&fadt[116..120], [1, 8, 0, 1], "reset register is one byte of I/O space");
        assert_eq!(u64_at(&fadt, 120), 0x64);
        assert_eq!(fadt[128], 0xfe);
        assert_eq!(u32_at(&fadt, 56), 0x600);
        assert_eq!(u32_at(&fadt, 64), 0x604);
        assert_eq!(u32_at(&fadt, 76), 0x608);
        assert_eq!(&table(&ram, u64_at(&fadt, 140))[..4], b"DSDT");
        let facs = u64::from(u32_at(&fadt, 36));
        assert_eq!(facs % 64, 0);
        assert_eq!(read(&ram, facs, 4), b"FACS");
    }

    #[test]
    fn madt_lists_every_processor() {
        let ram = ram();
        let (_, madt) = tables(&ram, Hardware { cpus: 300, virtio: 1 });
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(u32_at(&madt, 36), 0xfee0_0000);
        assert_eq!(u32_at(&madt, 40), 1);
        let (mut ids, mut kinds) = (Vec::new(), Vec::new());
        let mut at = 44;
        while at < madt.len() {
            let (kind, len) = (madt[at], usize::from(madt[at + 1]));
            match kind {
                0 => ids.push(u32::from(madt[at + 3])),
                9 => ids.push(u32_at(&madt, at + 4)),
                _ => kinds.push(kind),
            }
            at += len;
        }
        assert_eq!(at, madt.len());
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
        assert_eq!(kinds, [1, 2, 4]);
    }

    #[test]
    fn absurdly_many_processors_are_refused() {
        assert!(matches!(write(&ram(), Hardware { cpus: 100_000, virtio: 0 }), Err(AcpiError::TooLarge)));
    }
}
