//! `boot_params`: command line, memory map, initramfs.

use super::InitrdError;
use super::file;
use super::image::Image;
use crate::layout::*;
use crate::memory::GuestRam;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

/// The boot parameters cannot be handed over.
#[derive(Debug, thiserror::Error)]
pub enum BootParamsError {
    /// the command line has {len} characters; this kernel takes at most {max}
    #[error("the command line has {len} characters; this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Length given.
        len: usize,
        /// Length possible.
        max: usize,
    },
    /// the command line contains a NUL character
    #[error("the command line contains a NUL character")]
    CmdlineNul,
    /// cannot write the boot parameters: {0}
    #[error("cannot write the boot parameters: {0}")]
    Write(#[from] GuestMemoryError),
}

/// Memory types of the e820 map.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Where an initramfs was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Reads the initramfs to the highest place the kernel can reach it at.
pub(super) fn load_initrd(ram: &GuestRam, path: &Path, image: &Image) -> Result<Initrd, InitrdError> {
    let (mut file, len) = file::open(path)?;
    if len == 0 {
        return Err(InitrdError::Empty);
    }
    let low_end = ram.iter().next().map_or(0, |region| region.len());
    let top = low_end.min(u64::from(image.header.initrd_addr_max).saturating_add(1));
    let start = top.saturating_sub(len) & !0xfff;
    if len > top || start < image.end {
        return Err(InitrdError::TooLarge {
            size: len.div_ceil(1024),
            needed: image.end.saturating_add(len).div_ceil(1 << 20).saturating_add(1),
        });
    }
    // The length was checked against the guest's memory, so it fits usize.
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, len as usize).map_err(InitrdError::Read)?;
    Ok(Initrd { start, len })
}

/// Writes command line and `boot_params`.
///
/// # Errors
/// [`BootParamsError`] for a command line that the kernel cannot take.
pub fn write(
    ram: &GuestRam,
    image: &Image,
    initrd: Option<Initrd>,
    cmdline: &str,
    rsdp: u64,
) -> Result<(), BootParamsError> {
    let room = (LOW_RAM_END - CMDLINE) as usize - 1;
    let max = (image.header.cmdline_size as usize).min(room);
    if cmdline.len() > max {
        return Err(BootParamsError::CmdlineTooLong { len: cmdline.len(), max });
    }
    if cmdline.contains('\0') {
        return Err(BootParamsError::CmdlineNul);
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    ram.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;

    let mut params = boot_params { hdr: image.header, ..Default::default() };
    // "Unregistered" boot loader.
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    if let Some(initrd) = initrd {
        // Both lie below initrd_addr_max, a 32-bit address.
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
    }
    params.acpi_rsdp_addr = rsdp;
    for (entry, slot) in e820(ram).into_iter().zip(params.e820_table.iter_mut()) {
        *slot = entry;
        params.e820_entries += 1;
    }
    ram.write_obj(params, GuestAddress(BOOT_PARAMS))?;
    Ok(())
}

/// The memory map.
fn e820(ram: &GuestRam) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, kind| boot_e820_entry { addr: start, size: end - start, r#type: kind };
    let mut map = vec![
        entry(0, LOW_RAM_END, E820_RAM),
        entry(LOW_RAM_END, 0xa_0000, E820_RESERVED),
        entry(ACPI_TABLES, ACPI_TABLES_END, E820_RESERVED),
    ];
    for region in ram.iter() {
        let start = region.start_addr().0;
        let end = start + region.len();
        let start = start.max(HIGH_RAM);
        if end > start {
            map.push(entry(start, end, E820_RAM));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_loader::loader::bootparam::setup_header;
    use std::io::Write;

    fn ram(mib: usize) -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
    }

    fn image() -> Image {
        let header =
            setup_header { header: 0x5372_6448, initrd_addr_max: 0x7fff_ffff, cmdline_size: 100, ..Default::default() };
        Image { entry: crate::boot::Entry::Long(0x20_0200), end: 0x30_0000, header }
    }

    #[test]
    fn parameters_arrive() {
        let ram = ram(8);
        let initrd = Initrd { start: 0x60_0000, len: 0x1234 };
        write(&ram, &image(), Some(initrd), "console=ttyS0", 0xe_0000).unwrap();
        let params: boot_params = ram.read_obj(GuestAddress(BOOT_PARAMS)).unwrap();
        let hdr = params.hdr;
        assert_eq!({ hdr.ramdisk_image }, 0x60_0000);
        assert_eq!({ hdr.ramdisk_size }, 0x1234);
        assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
        let mut text = [0; 14];
        ram.read_slice(&mut text, GuestAddress(u64::from(hdr.cmd_line_ptr))).unwrap();
        assert_eq!(&text, b"console=ttyS0\0");
        let map = params.e820_table;
        let last = map[usize::from(params.e820_entries) - 1];
        assert_eq!(({ last.addr }, { last.size }, { last.r#type }), (1 << 20, 7 << 20, E820_RAM));
    }

    #[test]
    fn e820_entries_do_not_overlap_and_keep_the_hole() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), HOLE_START as usize), (GuestAddress(HOLE_END), 1 << 30)])
            .unwrap();
        let mut end = 0;
        let map = e820(&ram);
        for entry in &map {
            assert!(entry.addr >= end);
            end = entry.addr + entry.size;
        }
        assert_eq!(end, HOLE_END + (1 << 30));
        assert!(!map.iter().any(|e| e.addr < HOLE_END && e.addr + e.size > HOLE_START));
    }

    #[test]
    fn command_lines_that_do_not_fit() {
        let ram = ram(8);
        let long = "x".repeat(101);
        let error = write(&ram, &image(), None, &long, 0).unwrap_err();
        assert!(matches!(error, BootParamsError::CmdlineTooLong { len: 101, max: 100 }));
        let error = write(&ram, &image(), None, "a\0b", 0).unwrap_err();
        assert!(matches!(error, BootParamsError::CmdlineNul));
    }

    #[test]
    fn initrd_goes_to_the_top() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let initrd = load_initrd(&ram(8), file.path(), &image()).unwrap();
        assert_eq!(initrd, Initrd { start: (8 << 20) - 8192, len: 5000 });
    }

    #[test]
    fn initrd_larger_than_memory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(6 << 20).unwrap();
        let error = load_initrd(&ram(8), file.path(), &image()).unwrap_err();
        assert!(matches!(error, InitrdError::TooLarge { .. }), "{error}");
        file.as_file().set_len(1 << 40).unwrap();
        assert!(load_initrd(&ram(8), file.path(), &image()).is_err());
    }
}
