//! The initramfs: busybox, the modules that Debian's kernel needs for a virtio disk, the self-test, and init.
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    archive::{Archive, read},
    deb::Kernel,
    program,
};
use crate::process::{cache, root};

/// Modules in the order in which they depend on each other.
const MODULES: [&str; 4] = [
    "kernel/drivers/virtio/virtio_ring.ko",
    "kernel/drivers/virtio/virtio.ko",
    "kernel/drivers/virtio/virtio_mmio.ko",
    "kernel/drivers/block/virtio_blk.ko",
];

/// Builds it and says where it is.
pub fn build(kernel: &Kernel, busybox: &Path) -> Result<PathBuf> {
    let selftest = program("rekvm-selftest", "selftest", &[])?;
    let path = cache().join("initramfs");
    let mut archive = Archive::create(&path)?;
    for dir in ["bin", "dev", "lib", "lib/modules", "proc", "sys", "tmp", "etc"] {
        archive.directory(dir)?;
    }
    archive.console()?;
    archive.program("bin/busybox", &read(busybox)?)?;
    archive.program("init", &read(&root().join("guest/init"))?)?;
    archive.program("selftest", &read(&selftest)?)?;
    let mut order = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.file(&format!("lib/modules/{name}"), &read(&kernel.modules.join(module))?)?;
        order.push_str(&format!("{name}\n"));
    }
    archive.file("etc/modules", order.as_bytes())?;
    archive.finish()?;
    Ok(path)
}
