//! `cargo xtask test`: everything that CI runs, in an order in which cheap failures come first. The last lines are
//! the test runner's own summary.
use std::time::Instant;

use anyhow::{Context, Result};

use crate::process::{add_target, cargo, check, need};

/// Options of `test`.
#[derive(clap::Args)]
pub struct Options {
    /// Leave out what takes longest: the guests that are booted.
    #[arg(long)]
    quick: bool,
}

/// Crates that must build without the standard library.
const NO_STD: [&str; 7] =
    ["rekvm-abi", "rekvm-x86", "rekvm-platform", "rekvm-emulate", "rekvm-mmu", "rekvm-irqchip", "rekvm-hv"];

/// A target without std, and a 32-bit one.
const NO_STD_TARGETS: [&str; 2] = ["x86_64-unknown-none", "i686-unknown-linux-gnu"];

type Step = (&'static str, fn(&Options) -> Result<()>);

const STEPS: [Step; 5] = [
    ("formatting", |_| check(cargo().args(["fmt", "--all", "--check"]))),
    ("no_std crates without std and for 32 bits", |_| no_std()),
    ("clippy", |_| check(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))),
    ("documentation", |_| {
        check(cargo().env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps", "--quiet"]))
    }),
    ("unit tests and guests", tests),
];

/// See the module.
pub fn test(options: &Options) -> Result<()> {
    need("cc", "gcc")?;
    for (i, (name, step)) in STEPS.iter().enumerate() {
        eprintln!("xtask: [{}/{}] {name}", i + 1, STEPS.len());
        let start = Instant::now();
        step(options).with_context(|| format!("step failed: {name}"))?;
        eprintln!("xtask: [{}/{}] {name}: {:.0?}", i + 1, STEPS.len(), start.elapsed());
    }
    Ok(())
}

fn no_std() -> Result<()> {
    for target in NO_STD_TARGETS {
        add_target(target)?;
        let mut command = cargo();
        command.args(["check", "--quiet", "--target", target]);
        NO_STD.iter().for_each(|package| {
            command.args(["--package", package]);
        });
        check(&mut command)?;
    }
    Ok(())
}

/// The guests come first, so that the test runner's summary is what ends the output.
fn tests(options: &Options) -> Result<()> {
    if !options.quick {
        for cpus in ["1", "2"] {
            check(cargo().args(["xtask", "run", "--check", "--cpus", cpus]))?;
        }
    }
    check(cargo().args(["test", "--workspace", "--doc", "--quiet"]))?;
    let nextest = cargo().args(["nextest", "--version"]).output().is_ok_and(|o| o.status.success());
    if nextest {
        check(cargo().args(["nextest", "run", "--workspace", "--no-fail-fast"]))
    } else {
        check(cargo().args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"]))
    }
}
