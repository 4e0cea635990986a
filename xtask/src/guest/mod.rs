//! The guests that `cargo xtask run` boots: one of Debian's kernels and an initramfs made from its modules,
//! busybox and the self-test. Nothing is installed; packages are downloaded, unpacked and kept under `target/guest`.
pub mod archive;
pub mod deb;
mod initramfs;
pub mod modules;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::process::{add_target, cache, cargo, check};

/// Files to boot from.
pub struct Guest {
    /// bzImage of Debian's kernel.
    pub kernel: PathBuf,
    /// The initramfs, not compressed.
    pub initrd: PathBuf,
}

/// Which of Debian's kernels a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The cloud kernel for 64 bits.
    Amd64,
    /// The kernel for 32 bits whose page tables are those of 32-bit paging.
    I686,
    /// The kernel for 32 bits with PAE.
    I686Pae,
}

impl Kind {
    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::I686 => "i686",
            Self::I686Pae => "i686-pae",
        }
    }

    /// Debian's package that depends on the current kernel.
    fn package(self) -> &'static str {
        match self {
            Self::Amd64 => "linux-image-cloud-amd64",
            Self::I686 => "linux-image-686",
            Self::I686Pae => "linux-image-686-pae",
        }
    }

    /// Debian's name of the architecture.
    fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::I686 | Self::I686Pae => "i386",
        }
    }

    /// Rust's target for programs in it, and how such a program is linked.
    fn target(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("x86_64-unknown-linux-gnu", ""),
            // Rust's own linker: a C compiler for 32 bits is not to be expected.
            Self::I686 | Self::I686Pae => ("i686-unknown-linux-musl", " -C linker=rust-lld -C linker-flavor=ld.lld"),
        }
    }
}

/// Fetches and builds what is not there yet.
pub fn prepare(kind: Kind) -> Result<Guest> {
    let kernel = deb::kernel(kind)?;
    let initrd = initramfs::build(kind, &kernel)?;
    Ok(Guest { kernel: kernel.image, initrd })
}

/// Builds `binary` of `package`, with `more` arguments for cargo, as a program that needs no libraries.
pub fn program(kind: Kind, package: &str, binary: &str, more: &[&str]) -> Result<PathBuf> {
    let (target, linker) = kind.target();
    add_target(target)?;
    let dir = cache().join("programs");
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--release", "--package", package, "--bin", binary, "--target", target])
        .arg("--target-dir")
        .arg(&dir)
        .args(more)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("-C target-feature=+crt-static -C strip=symbols{linker}"));
    check(&mut command)?;
    Ok(dir.join(target).join("release").join(binary))
}
