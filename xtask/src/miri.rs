//! `cargo xtask miri`: the tests of the pure crates in Miri, which sees undefined behaviour, data races and leaks.
use std::process::Command;

use anyhow::Result;

use crate::process::{check, root};

/// Options of `miri`.
#[derive(clap::Args)]
pub struct Options {
    /// One crate (`mmu`, `irqchip`, ...) instead of all.
    #[arg(value_parser = CRATES)]
    only: Option<String>,
}

/// Crates whose tests need no host that Miri does not know.
const CRATES: [&str; 5] = ["abi", "x86", "platform", "irqchip", "mmu"];

/// See the module. Miri is a component of nightly toolchains: without one nothing is tested, which is said.
pub fn miri(options: &Options) -> Result<()> {
    let has = || {
        Command::new("rustup")
            .args(["run", "nightly", "cargo", "miri", "--version"])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    let add = |what: &[&str]| Command::new("rustup").args(what).status().is_ok_and(|s| s.success());
    if !has() {
        eprintln!("xtask: installing Miri");
        let all = ["toolchain", "install", "nightly", "--profile", "minimal", "-c", "miri", "-c", "rust-src"];
        add(&all);
    }
    if !has() {
        eprintln!(
            "xtask: SKIPPED: no Miri: `rustup toolchain install nightly -c miri -c rust-src` does not give one here"
        );
        return Ok(());
    }
    for name in CRATES.iter().filter(|name| options.only.as_deref().is_none_or(|only| only == **name)) {
        eprintln!("xtask: Miri on {name}");
        check(
            Command::new("rustup")
                .args(["run", "nightly", "cargo", "miri", "test", "--quiet", "--package", &format!("rekvm-{name}")])
                .args(["--target-dir", "target/miri"])
                // Miri is slower by a factor of hundreds.
                .env("PROPTEST_CASES", "4")
                // The clock seeds proptest, whose cases differ from run to run as they do outside of Miri.
                .env("MIRIFLAGS", "-Zmiri-disable-isolation")
                .current_dir(root()),
        )?;
    }
    Ok(())
}
