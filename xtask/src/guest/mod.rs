//! The guest that `cargo xtask run` boots: Debian's cloud kernel and an initramfs made from its modules,
//! busybox and the self-test. Nothing is installed; packages are downloaded, unpacked and kept under `target/guest`.
mod deb;
mod initramfs;

use std::path::PathBuf;

use anyhow::Result;

/// Files to boot from.
pub struct Guest {
    /// bzImage of Debian's cloud kernel.
    pub kernel: PathBuf,
    /// The initramfs, not compressed.
    pub initrd: PathBuf,
}

/// Fetches and builds what is not there yet.
pub fn prepare() -> Result<Guest> {
    let kernel = deb::kernel()?;
    let busybox = deb::busybox()?;
    let initrd = initramfs::build(&kernel, &busybox)?;
    Ok(Guest { kernel: kernel.image, initrd })
}
