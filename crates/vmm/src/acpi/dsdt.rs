//! The DSDT: devices that cannot be probed for, and the soft-off state.

use super::{Hardware, OEM, OEM_REVISION, OEM_TABLE};
use crate::devices::pm::SLP_TYP_S5;
use crate::layout::*;
use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::sdt::Sdt;

pub(super) fn build(hardware: Hardware) -> Sdt {
    let mut body = Vec::new();
    soft_off(&mut body);
    let mut devices = Vec::new();
    serial(&mut devices);
    clock(&mut devices);
    for index in 0..hardware.virtio {
        virtio(&mut devices, index);
    }
    body.extend(Scope::raw(Path::new("_SB_"), devices));
    // Revision 2 makes integers 64 bits wide.
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    sdt.append_slice(&body);
    sdt
}

/// `_S5`: what to write to the control register to switch the machine off.
fn soft_off(out: &mut Vec<u8>) {
    let zero = 0u8;
    let package = Package::new(vec![&SLP_TYP_S5, &SLP_TYP_S5, &zero, &zero]);
    Name::new(Path::new("_S5_"), &package).to_aml_bytes(out);
}

fn serial(out: &mut Vec<u8>) {
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(COM1_PORT, COM1_PORT, 1, 8),
                    &Interrupt::new(true, true, false, false, COM1_IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

fn clock(out: &mut Vec<u8>) {
    Device::new(
        Path::new("RTC0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&IO::new(CMOS_PORT, CMOS_PORT, 1, 2)])),
        ],
    )
    .to_aml_bytes(out);
}

fn virtio(out: &mut Vec<u8>, index: u32) {
    // The devices end far below 4 GiB.
    let base = (VIRTIO_BASE + u64::from(index) * VIRTIO_SIZE) as u32;
    Device::new(
        Path::new(&format!("VR{index:02}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, VIRTIO_SIZE as u32),
                    // Level triggered, active high.
                    &Interrupt::new(true, false, false, false, VIRTIO_GSI + index),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(sdt: &Sdt, bytes: &[u8]) -> bool {
        sdt.as_slice().windows(bytes.len()).any(|w| w == bytes)
    }

    #[test]
    fn virtio_devices_have_memory_and_interrupt() {
        let sdt = build(Hardware { cpus: 1, virtio: 2 });
        assert!(contains(&sdt, b"LNRO0005\0"));
        // Memory32Fixed, read-write, second device.
        assert!(contains(&sdt, &[0x86, 9, 0, 1, 0, 0x10, 0, 0xd0, 0, 0x10, 0, 0]));
        // Extended interrupt, consumer, level, high, exclusive, GSI 17.
        assert!(contains(&sdt, &[0x89, 6, 0, 1, 1, 17, 0, 0, 0]));
        assert!(!contains(&sdt, b"VR02"));
    }

    #[test]
    fn soft_off_names_the_type_that_the_register_knows() {
        // Name(_S5_, Package(4) { BytePrefix 5, ... })
        let sdt = build(Hardware { cpus: 1, virtio: 0 });
        assert!(contains(&sdt, &[0x08, b'_', b'S', b'5', b'_', 0x12, 8, 4, 0x0a, 5, 0x0a, 5, 0, 0]));
    }

    #[test]
    fn the_serial_port_has_its_isa_resources() {
        let sdt = build(Hardware { cpus: 1, virtio: 0 });
        assert!(contains(&sdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]));
        assert!(contains(&sdt, &[0x89, 6, 0, 0b11, 1, 4, 0, 0, 0]));
    }
}
