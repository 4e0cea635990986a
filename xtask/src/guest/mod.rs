//! The guest that `cargo xtask run` boots: Debian's cloud kernel and an initramfs made from its modules,
//! busybox and the self-test. Nothing is installed; packages are downloaded, unpacked and kept under `target/guest`.
pub mod archive;
pub mod deb;
mod initramfs;

use std::path::PathBuf;

use anyhow::Result;

use crate::process::{add_target, cache, cargo, check};

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

/// The target of programs that run inside guests: they need no libraries.
pub const STATIC: &str = "x86_64-unknown-linux-gnu";

/// Builds `binary` of `package`, with `more` arguments for cargo, as a program that needs no libraries.
pub fn program(package: &str, binary: &str, more: &[&str]) -> Result<PathBuf> {
    add_target(STATIC)?;
    let target = cache().join("programs");
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--release", "--package", package, "--bin", binary, "--target", STATIC])
        .arg("--target-dir")
        .arg(&target)
        .args(more)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    check(&mut command)?;
    Ok(target.join(STATIC).join("release").join(binary))
}
