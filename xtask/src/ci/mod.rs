//! `cargo xtask test`: everything that CI runs, in an order in which cheap failures come first. The last lines are
//! the test runner's own summary.
mod allocation;

use std::time::Instant;

use anyhow::{Context, Result};

use crate::process::{add_target, cargo, check, need};

/// Options of `test`.
#[derive(clap::Args)]
pub struct Options {
    /// Leave out what takes longest: the guests that are booted, Linux's KVM in the lab, and fuzzing.
    #[arg(long)]
    quick: bool,
}

/// Crates that must build without the standard library.
const NO_STD: [&str; 7] =
    ["rekvm-abi", "rekvm-x86", "rekvm-platform", "rekvm-emulate", "rekvm-mmu", "rekvm-irqchip", "rekvm-hv"];

/// A target without std, and a 32-bit one.
const NO_STD_TARGETS: [&str; 2] = [BARE, "i686-unknown-linux-gnu"];

/// The kernel module's back ends, which are 64-bit code.
const BACK_ENDS: [&str; 3] = ["rekvm-hardware", "rekvm-svm", "rekvm-vmx"];
const BARE: &str = "x86_64-unknown-none";

type Step = (&'static str, fn(&Options) -> Result<()>);

const STEPS: [Step; 9] = [
    ("formatting", |_| check(cargo().args(["fmt", "--all", "--check"]))),
    ("no_std crates without std and for 32 bits", |_| no_std()),
    ("clippy", |_| check(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))),
    ("no infallible allocation in the core", |_| allocation::check()),
    ("documentation", |_| {
        check(cargo().env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps", "--quiet"]))
    }),
    ("conformance", conformance),
    ("the kernel module on AMD-V and VT-x", |options| if options.quick { Ok(()) } else { kernel_module() }),
    ("fuzz targets for a moment", |options| if options.quick { Ok(()) } else { crate::fuzz::briefly() }),
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
        let back_ends = if target == BARE { &BACK_ENDS[..] } else { &[] };
        NO_STD.iter().chain(back_ends).for_each(|package| {
            command.args(["--package", package]);
        });
        check(&mut command)?;
    }
    Ok(())
}

/// Modes of the software CPU that the suite is run in.
const SOFT: [&str; 6] =
    ["soft", "soft-adversarial", "soft-shadow", "soft-shadow-adversarial", "soft-nested", "soft-nested-adversarial"];
/// The oracle beside them: Linux's KVM on the emulator that starts fastest.
const ORACLE: &str = "linux-amd-npt";

/// The suite as a client of `rekvm exec`, with a C library to stand before and without one.
const CLIENT: [&str; 4] = ["--on", "exec", "--on", "exec-static"];

/// The suite on ourselves, and on Linux's KVM.
fn conformance(options: &Options) -> Result<()> {
    let on = SOFT.into_iter().flat_map(|target| ["--on", target]);
    check(cargo().args(["xtask", "conformance"]).args(on))?;
    check(cargo().args(["xtask", "conformance"]).args(CLIENT))?;
    if options.quick {
        return Ok(());
    }
    check(cargo().args(["xtask", "conformance", "--on", ORACLE]))
}

/// What of the suite the kernel module is asked in CI, beside being loaded and unloaded: all of it with nested paging, and what
/// shadow paging is about; of VT-x, whose emulator is slow, what a guest cannot do without. The rest is run there by command.
const MODULE: [&[&str]; 3] = [
    &["--on", "amd-npt"],
    &["--on", "amd-shadow", "--filter", "mmu/"],
    &["--on", "intel-ept", "--on", "intel-penryn", "--filter", "pio/"],
];

/// Boots in QEMU on it.
const MODULE_BOOTS: [&[&str]; 3] = [
    &["--cpu", "amd-npt", "--guest", "amd64", "--machine", "pc", "--irqchip", "on", "--cpus", "2"],
    &["--cpu", "amd-shadow", "--guest", "amd64", "--machine", "microvm", "--irqchip", "split", "--cpus", "1"],
    &["--cpu", "intel-ept", "--guest", "amd64", "--machine", "pc", "--irqchip", "on", "--cpus", "1"],
];

/// The module is built, loaded and unloaded, asked, and boots guests.
fn kernel_module() -> Result<()> {
    // A workspace of its own.
    let module = ["--manifest-path", "linux/Cargo.toml"];
    check(cargo().arg("fmt").args(module).arg("--check"))?;
    let clippy = ["--quiet", "--target", NO_STD_TARGETS[0], "--target-dir", "target/module/clippy"];
    check(cargo().arg("clippy").args(module).args(clippy).args(["--", "-D", "warnings"]))?;
    check(cargo().args(["xtask", "module", "--check"]))?;
    for asked in MODULE {
        check(cargo().args(["xtask", "conformance"]).args(asked))?;
    }
    for boots in MODULE_BOOTS {
        check(cargo().args(["xtask", "clients"]).args(boots))?;
    }
    Ok(())
}

/// Boots: what each takes of the table of guests, numbers of CPUs and modes.
const BOOTS: [&[&str]; 3] = [
    &["--guest", "amd64", "--cpus", "1", "--cpus", "2", "--mode", "soft"],
    &["--guest", "amd64", "--cpus", "2", "--mode", "soft-shadow", "--mode", "soft-nested"],
    &["--guest", "i686", "--guest", "i686-pae", "--cpus", "1", "--mode", "soft", "--mode", "soft-shadow"],
];

/// The same for Debian's QEMU on `rekvm exec`.
const CLIENTS: [&[&str]; 4] = [
    &["--guest", "amd64", "--machine", "pc", "--irqchip", "on", "--cpus", "1"],
    &["--guest", "amd64", "--machine", "q35", "--irqchip", "split", "--cpus", "2"],
    &["--guest", "amd64", "--machine", "microvm", "--irqchip", "off", "--cpus", "1"],
    &["--migrate", "--machine", "pc", "--irqchip", "on", "--cpus", "1"],
];

/// The guests come first, so that the test runner's summary is what ends the output.
fn tests(options: &Options) -> Result<()> {
    if !options.quick {
        for boots in BOOTS {
            check(cargo().args(["xtask", "boots"]).args(boots))?;
        }
        for clients in CLIENTS {
            check(cargo().args(["xtask", "clients"]).args(clients))?;
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
