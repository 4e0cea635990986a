//! The initramfs: busybox, the modules that Debian's kernel needs for a virtio disk, the self-test, and init.
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

use super::deb::Kernel;
use crate::process::{cache, cargo, check, root};

/// Modules in the order in which they depend on each other.
const MODULES: [&str; 4] = [
    "kernel/drivers/virtio/virtio_ring.ko",
    "kernel/drivers/virtio/virtio.ko",
    "kernel/drivers/virtio/virtio_mmio.ko",
    "kernel/drivers/block/virtio_blk.ko",
];

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;

/// Builds it and says where it is.
pub fn build(kernel: &Kernel, busybox: &Path) -> Result<PathBuf> {
    let selftest = selftest()?;
    let path = cache().join("initramfs");
    let part = path.with_extension("part");
    let mut archive = Archive { out: BufWriter::new(File::create(&part)?), inode: 1 };
    for dir in ["bin", "dev", "lib", "lib/modules", "proc", "sys", "tmp", "etc"] {
        archive.add(dir, DIRECTORY, &[])?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.add("bin/busybox", PROGRAM, &read(busybox)?)?;
    archive.add("init", PROGRAM, &read(&root().join("guest/init"))?)?;
    archive.add("selftest", PROGRAM, &read(&selftest)?)?;
    let mut order = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.add(&format!("lib/modules/{name}"), FILE, &read(&kernel.modules.join(module))?)?;
        order.push_str(&format!("{name}\n"));
    }
    archive.add("etc/modules", FILE, order.as_bytes())?;
    trailer(archive.out)?.flush()?;
    fs::rename(part, &path)?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Builds the self-test as a program that needs no libraries.
fn selftest() -> Result<PathBuf> {
    let target = cache().join("selftest");
    let mut command: Command = cargo();
    command
        .args(["build", "--quiet", "--release", "--package", "rekvm-selftest", "--target", "x86_64-unknown-linux-gnu"])
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    check(&mut command)?;
    Ok(target.join("x86_64-unknown-linux-gnu/release/selftest"))
}

struct Archive {
    out: BufWriter<File>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let mut entry =
            Builder::new(name).ino(self.inode).mode(mode).nlink(1).write(&mut self.out, content.len() as u32);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }

    fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.inode += 1;
        let builder = Builder::new(name).ino(self.inode).mode(CONSOLE).nlink(1);
        builder.rdev_major(major).rdev_minor(minor).write(&mut self.out, 0).finish()?;
        Ok(())
    }
}
