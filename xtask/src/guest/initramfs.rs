//! The initramfs: busybox, the modules that Debian's kernel needs for a virtio disk, the self-test, and init.
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{
    Kind,
    archive::{Archive, read},
    deb::{self, Kernel},
    modules, program,
};
use crate::process::{cache, root};

/// The modules for a virtio disk, with PCI or without; what they need is found.
const MODULES: [&str; 3] = ["virtio_mmio", "virtio_pci", "virtio_blk"];

/// Builds it and says where it is.
pub fn build(kind: Kind, kernel: &Kernel) -> Result<PathBuf> {
    let selftest = program(kind, "rekvm-selftest", "selftest", &[])?;
    let path = cache().join(format!("initramfs-{}", kind.name()));
    let mut archive = Archive::create(&path)?;
    for dir in ["bin", "dev", "lib", "lib/modules", "proc", "sys", "tmp", "etc"] {
        archive.directory(dir)?;
    }
    archive.console()?;
    archive.program("bin/busybox", &read(&deb::busybox(kind)?)?)?;
    archive.program("init", &read(&root().join("guest/init"))?)?;
    archive.program("selftest", &read(&selftest)?)?;
    let mut order = String::new();
    for module in modules::in_order(&kernel.modules, &MODULES)? {
        let name = module.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        archive.file(&format!("lib/modules/{name}"), &read(&module)?)?;
        order.push_str(&format!("{name}\n"));
    }
    archive.file("etc/modules", order.as_bytes())?;
    archive.finish()?;
    Ok(path)
}
