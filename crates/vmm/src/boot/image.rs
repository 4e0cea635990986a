//! The kernel image: a bzImage or an ELF `vmlinux`.

use super::file::{self, FileError};
use crate::layout::HIGH_RAM;
use crate::memory::GuestRam;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{self, KernelLoader};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// The kernel file cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// reading it failed: {0}
    #[error("reading it failed: {0}")]
    Read(std::io::Error),
    /// the file is empty
    #[error("the file is empty")]
    Empty,
    /// it is neither a bzImage nor an ELF kernel for x86-64
    #[error("it is neither a bzImage nor an ELF kernel for x86-64")]
    Unknown,
    /// it is a bzImage of a kernel from before 2.6.31
    #[error("it is a bzImage of a kernel from before 2.6.31")]
    TooOld,
    /// the file is truncated: its header promises {promised} bytes, there are {found}
    #[error("the file is truncated: its header promises {promised} bytes, there are {found}")]
    Truncated {
        /// Bytes the header speaks of.
        promised: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// it needs at least {0} MiB of guest memory
    #[error("it needs at least {0} MiB of guest memory")]
    NeedsMemory(u64),
    /// the file is damaged: {0}
    #[error("the file is damaged: {0}")]
    Damaged(loader::Error),
    /// the file is damaged: its entry point is not in what it loads
    #[error("the file is damaged: its entry point is not in what it loads")]
    Entry,
}

/// The guest-physical address at which the kernel is entered, and the mode in which it wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Long mode: boot.rst, "64-bit boot protocol".
    Long(u64),
    /// Protected mode without paging: boot.rst, "32-bit boot protocol".
    Protected(u64),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Image {
    /// Where it begins.
    pub entry: Entry,
    /// First address the kernel leaves alone before it reads the memory map.
    pub end: u64,
    /// The boot protocol's header, of the file or made up for an ELF image.
    pub header: setup_header,
}

/// Where `struct setup_header` begins in a bzImage.
const HEADER_OFFSET: u64 = 0x1f1;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Version of the header that brought `init_size` and `pref_address`.
const VERSION_INIT_SIZE: u16 = 0x020a;
/// Version of the header that brought `xloadflags`.
const VERSION_XLOADFLAGS: u16 = 0x020c;
/// Flag of `xloadflags`: there is a 64-bit entry point at offset 0x200.
const XLF_KERNEL_64: u16 = 1;
/// Bytes of RAM rounded up to MiB.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl Image {
    /// Loads the kernel at `path`.
    pub(super) fn load(ram: &GuestRam, path: &Path) -> Result<Self, ImageError> {
        let (mut file, len) = file::open(path)?;
        if len == 0 {
            return Err(ImageError::Empty);
        }
        let mut magic = [0u8; 20];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(ImageError::Unknown);
            }
            Err(e) => return Err(ImageError::Read(e)),
        }
        // ELF, 64 bit, little endian; machine 62 is x86-64.
        if magic.starts_with(b"\x7fELF") {
            if magic[4..6] != [2, 1] || magic[18..20] != [62, 0] {
                return Err(ImageError::Unknown);
            }
            load_elf(ram, &mut file, len)
        } else {
            load_bzimage(ram, &mut file, len)
        }
    }
}

fn load_bzimage(ram: &GuestRam, file: &mut File, len: u64) -> Result<Image, ImageError> {
    let mut header = setup_header::default();
    match file.read_exact_at(vm_memory::ByteValued::as_mut_slice(&mut header), HEADER_OFFSET) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(ImageError::Unknown),
        Err(e) => return Err(ImageError::Read(e)),
    }
    if header.header != HEADER_MAGIC || header.loadflags & 1 == 0 {
        return Err(ImageError::Unknown);
    }
    if header.version < VERSION_INIT_SIZE {
        return Err(ImageError::TooOld);
    }
    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let promised = (setup_sectors + 1) * 512 + u64::from(header.syssize) * 16;
    if len < promised {
        return Err(ImageError::Truncated { promised, found: len });
    }

    // At its preferred address a kernel need not move itself before it unpacks.
    let preferred = if header.relocatable_kernel != 0 { header.pref_address } else { 0 };
    let load = preferred.max(HIGH_RAM);
    let end = load.saturating_add(u64::from(header.init_size).max(len));
    require(ram, end)?;
    let result =
        loader::bzimage::BzImage::load(ram, Some(GuestAddress(load)), file, None).map_err(ImageError::Damaged)?;
    let header = result.setup_header.ok_or(ImageError::Unknown)?;
    let long = header.version >= VERSION_XLOADFLAGS && header.xloadflags & XLF_KERNEL_64 != 0;
    let entry = if long { Entry::Long(load + 0x200) } else { Entry::Protected(load) };
    Ok(Image { entry, end, header })
}

fn load_elf(ram: &GuestRam, file: &mut File, len: u64) -> Result<Image, ImageError> {
    // An explicit offset keeps the loader from looking for a PVH entry point.
    let result = loader::elf::Elf::load(ram, Some(GuestAddress(0)), file, None).map_err(|e| {
        match e {
            loader::Error::Elf(loader::elf::Error::ReadKernelImage) => {
                // Either the file ends early, or guest memory does.
                let end = ram.last_addr().0;
                match elf_extent(file) {
                    Some((in_file, _)) if in_file > len => ImageError::Truncated { promised: in_file, found: len },
                    Some((_, in_memory)) if in_memory > end => ImageError::NeedsMemory(mib(in_memory)),
                    _ => ImageError::Damaged(e),
                }
            }
            e => ImageError::Damaged(e),
        }
    })?;
    let entry = result.kernel_load.0;
    if entry < HIGH_RAM || entry >= result.kernel_end {
        return Err(ImageError::Entry);
    }
    require(ram, result.kernel_end)?;
    let header = setup_header {
        boot_flag: 0xaa55,
        header: HEADER_MAGIC,
        version: 0x020f,
        loadflags: 1,
        kernel_alignment: 0x100_0000,
        initrd_addr_max: 0x7fff_ffff,
        cmdline_size: 2047,
        ..Default::default()
    };
    Ok(Image { entry: Entry::Long(entry), end: result.kernel_end, header })
}

/// How far the loadable segments reach: in the file, in guest memory.
fn elf_extent(file: &File) -> Option<(u64, u64)> {
    let number = |offset: u64| -> Option<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let table = number(32)?;
    let count = (number(56)?) & 0xffff;
    let mut extent = (0, 0);
    for i in 0..count {
        let header = table.checked_add(i * 56)?;
        if number(header)? & 0xffff_ffff != 1 {
            continue;
        }
        extent.0 = extent.0.max(number(header + 8)?.checked_add(number(header + 32)?)?);
        extent.1 = extent.1.max(number(header + 24)?.checked_add(number(header + 40)?)?);
    }
    Some(extent)
}

/// The kernel needs RAM from its load address up to `end` without a hole.
fn require(ram: &GuestRam, end: u64) -> Result<(), ImageError> {
    let fits =
        usize::try_from(end.saturating_sub(HIGH_RAM)).is_ok_and(|len| ram.check_range(GuestAddress(HIGH_RAM), len));
    if fits { Ok(()) } else { Err(ImageError::NeedsMemory(mib(end))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    fn ram(mib: usize) -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A bzImage of one setup sector and 64 bytes of code.
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0u8; 1024 + 64];
        image[0x1f1] = 1;
        image[0x1f4..0x1f8].copy_from_slice(&4u32.to_le_bytes());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x234] = 1;
        image[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x20_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[1024..].fill(0x90);
        image
    }

    /// An ELF file with one segment of 16 bytes at 1 MiB.
    fn elf() -> Vec<u8> {
        let mut image = vec![0u8; 64 + 56 + 16];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 62;
        let mut put = |at: usize, value: u64, len: usize| {
            image[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        put(24, 0x10_0000, 8);
        put(32, 64, 8);
        put(54, 56, 2);
        put(56, 1, 2);
        put(64, 1, 4);
        put(64 + 8, 120, 8);
        put(64 + 24, 0x10_0000, 8);
        put(64 + 32, 16, 8);
        put(64 + 40, 4096, 8);
        image[120..].fill(0xf4);
        image
    }

    #[test]
    fn bzimage_is_loaded_at_its_preferred_address() {
        let ram = ram(8);
        let image = Image::load(&ram, file(&bzimage()).path()).unwrap();
        assert_eq!((image.entry, image.end), (Entry::Long(0x20_0200), 0x30_0000));
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap(), 0x90);
    }

    #[test]
    fn elf_is_loaded_at_its_addresses() {
        let ram = ram(8);
        let image = Image::load(&ram, file(&elf()).path()).unwrap();
        assert_eq!((image.entry, image.end), (Entry::Long(0x10_0000), 0x10_1000));
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x10_000f)).unwrap(), 0xf4);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let ram = ram(8);
        for whole in [bzimage(), elf()] {
            for len in 0..whole.len() {
                assert!(Image::load(&ram, file(&whole[..len]).path()).is_err(), "{len} bytes");
            }
        }
    }

    #[test]
    fn too_little_memory_is_told() {
        let error = Image::load(&ram(2), file(&bzimage()).path()).unwrap_err();
        assert!(matches!(error, ImageError::NeedsMemory(3)), "{error}");
        let mut huge = elf();
        huge[64 + 24..64 + 32].copy_from_slice(&0x4000_0000u64.to_le_bytes());
        let error = Image::load(&ram(2), file(&huge).path()).unwrap_err();
        assert!(matches!(error, ImageError::NeedsMemory(1025)), "{error}");
    }

    #[test]
    fn a_32_bit_kernel_is_entered_in_protected_mode() {
        let mut no_long_entry = bzimage();
        no_long_entry[0x236] = 0;
        let mut before_xloadflags = bzimage();
        before_xloadflags[0x206] = 0x0b;
        for kernel in [no_long_entry, before_xloadflags] {
            let image = Image::load(&ram(8), file(&kernel).path()).unwrap();
            assert_eq!((image.entry, image.end), (Entry::Protected(0x20_0000), 0x30_0000));
        }
    }

    #[test]
    fn a_very_old_kernel_is_named_as_such() {
        let mut old = bzimage();
        old[0x206] = 9;
        let error = Image::load(&ram(8), file(&old).path()).unwrap_err();
        assert!(matches!(error, ImageError::TooOld));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_files_do_not_panic(
            elf_file in proptest::bool::ANY,
            damage in proptest::collection::vec((0usize..1088, proptest::num::u8::ANY), 1..12),
        ) {
            let mut image = if elf_file { elf() } else { bzimage() };
            for (at, byte) in damage {
                let at = at % image.len();
                image[at] = byte;
            }
            let _ = Image::load(&ram(4), file(&image).path());
        }
    }
}
