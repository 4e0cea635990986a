//! From kernel and initramfs files to a guest that is ready to run.
//!
//! The guest starts as the Linux boot protocol (Documentation/arch/x86/boot.rst) describes. A 64-bit kernel is entered
//! in long mode, the first 4 GiB mapped one to one, `RSI` pointing at `boot_params`; a 32-bit kernel in protected mode
//! without paging, `ESI` pointing there.

mod file;
mod image;
mod params;
mod state;

pub use file::FileError;
pub use image::{Entry, Image, ImageError};
pub use params::{BootParamsError, write as write_params};
pub use state::{StateError, prepare_memory, setup_bootstrap_vcpu, setup_every_vcpu};

use crate::memory::GuestRam;
use std::path::Path;

/// The guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel cannot be used.
    #[error("kernel {0}: {1}")]
    Kernel(String, ImageError),
    /// The initramfs cannot be used.
    #[error("initrd {0}: {1}")]
    Initrd(String, InitrdError),
    /// The command line or memory map cannot be handed over.
    #[error(transparent)]
    Params(#[from] BootParamsError),
    /// Descriptor or page tables could not be written.
    #[error("cannot write the guest's first page tables: {0}")]
    State(#[from] StateError),
}

/// The initramfs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No bytes in it.
    #[error("the file is empty")]
    Empty,
    /// It would overlap the kernel.
    #[error("{size} KiB do not fit beside the kernel in the guest's memory; give at least {needed} MiB")]
    TooLarge {
        /// Size of the file in KiB.
        size: u64,
        /// Memory with which it would fit, in MiB.
        needed: u64,
    },
    /// Reading stopped early.
    #[error("cannot read it into guest memory: {0}")]
    Read(vm_memory::GuestMemoryError),
}

/// Loads kernel, initramfs and boot parameters; answers the guest's entry point.
///
/// # Errors
/// [`BootError`], with the file's name.
pub fn load(
    ram: &GuestRam,
    kernel: &Path,
    initrd: Option<&Path>,
    cmdline: &str,
    rsdp: u64,
) -> Result<Entry, BootError> {
    let image = Image::load(ram, kernel).map_err(|e| BootError::Kernel(kernel.display().to_string(), e))?;
    let initrd = initrd
        .map(|path| {
            params::load_initrd(ram, path, &image).map_err(|e| BootError::Initrd(path.display().to_string(), e))
        })
        .transpose()?;
    params::write(ram, &image, initrd, cmdline, rsdp)?;
    state::prepare_memory(ram, image.entry)?;
    Ok(image.entry)
}
