//! kvm-unit-tests as the user has built them: a checkout, and a build of it for each width.
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// What was built.
pub struct Built {
    /// The checkout.
    pub source: PathBuf,
    root: PathBuf,
}

impl Built {
    /// Where the guests of `bits` bits are.
    pub fn folder(&self, bits: u32) -> PathBuf {
        self.root.join(if bits == 32 { "i386" } else { "x86_64" })
    }
}

/// Finds the checkout (`source`) and the builds (`x86_64`, `i386`) in `root`.
pub fn find(root: &Path) -> Result<Built> {
    let root = std::path::absolute(root)?;
    let built = Built { source: root.join("source"), root };
    for folder in [built.source.clone(), built.folder(64), built.folder(32)] {
        ensure!(
            folder.join("x86").is_dir(),
            "{} holds no kvm-unit-tests: --built names a folder with a checkout in `source`, and its builds in `x86_64` and `i386`",
            folder.display()
        );
    }
    Ok(built)
}
