//! `cargo xtask fuzz`: the fuzz targets of the folder `fuzz`, with the address and leak sanitizers.
//!
//! The compiler's sanitizer options are unstable; `RUSTC_BOOTSTRAP` lets a stable compiler have them, so that no other
//! toolchain is needed. What a run has found is kept under `target/fuzz`, and the next run goes on from it.
use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, check, need, output, root};

/// What the sanitizers are built for.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The targets, as `fuzz/Cargo.toml` has them, and the longest inputs that are of use to them.
const TARGETS: [(&str, u32); 4] = [("emulator", 512), ("ioctls", 4096), ("mmu", 8192), ("nested", 4096)];

/// Options of `fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// The target; all, one after the other, if none is given.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Report which lines of the crates the inputs found so far reach, instead of looking for new ones.
    #[arg(long)]
    coverage: bool,
}

/// An input that takes longer is a hang. Generous: the machine may be busy.
const TIMEOUT: &str = "-timeout=30";
/// A process that uses more has a leak or an allocation without a bound. The sanitizer's own share is in it.
const MEMORY: &str = "-rss_limit_mb=3072";

/// See the module.
pub fn fuzz(options: &Options) -> Result<()> {
    need("c++", "g++")?;
    if !cargo().args(["fuzz", "--version"]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("xtask: installing cargo-fuzz");
        check(cargo().args(["install", "--locked", "--quiet", "cargo-fuzz"]))?;
    }
    let wanted = |name: &str| options.target.as_deref().is_none_or(|target| target == name);
    if !TARGETS.iter().any(|(name, _)| wanted(name)) {
        bail!("there is no such fuzz target; there are {TARGETS:?} (with the length of their inputs)");
    }
    TARGETS.iter().filter(|(name, _)| wanted(name)).try_for_each(|(name, length)| one(name, *length, options))
}

/// What CI does: the targets are as tidy as the rest, and each runs for a moment.
pub fn briefly() -> Result<()> {
    let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
    check(cargo().arg("fmt").args(manifest).arg("--check"))?;
    check(cargo().arg("clippy").args(manifest).args(["--quiet", "--", "-D", "warnings"]))?;
    fuzz(&Options { target: None, seconds: 20, coverage: false })
}

fn one(target: &str, length: u32, options: &Options) -> Result<()> {
    let cache = root().join("target/fuzz");
    let corpus = cache.join("corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let seeds = root().join("fuzz/seeds").join(target);
    if options.coverage {
        return coverage(target, &cache.join("coverage"), &[corpus, seeds]);
    }
    let (time, length) = (format!("-max_total_time={}", options.seconds), format!("-max_len={length}"));
    check(
        cargo()
            .args(["fuzz", "run", target, "--target-dir"])
            .arg(&cache)
            .args([&corpus, &seeds])
            .args(["--", &time, &length, TIMEOUT, MEMORY, "-detect_leaks=1", "-print_final_stats=1"])
            .env("RUSTC_BOOTSTRAP", "1")
            // Allocations that fail are part of what is tested.
            .env("ASAN_OPTIONS", "allocator_may_return_null=1:detect_leaks=1"),
    )
    .with_context(|| {
        format!("the input that did it is in fuzz/artifacts/{target}; run it again with `cargo fuzz run {target} FILE`")
    })
}

/// Prints how many lines of each file of the crates all inputs together reach.
fn coverage(target: &str, build: &Path, inputs: &[PathBuf]) -> Result<()> {
    let tools = Path::new(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim())
        .join("lib/rustlib")
        .join(TRIPLE)
        .join("bin");
    if !tools.join("llvm-cov").exists() {
        check(Command::new("rustup").args(["component", "add", "llvm-tools"]))?;
    }
    check(
        cargo()
            .args(["fuzz", "coverage", target, "--sanitizer", "none", "--target-dir"])
            .arg(build)
            .args(inputs)
            .env("RUSTC_BOOTSTRAP", "1"),
    )?;
    let profile = root().join("fuzz/coverage").join(target).join("coverage.profdata");
    check(
        Command::new(tools.join("llvm-cov"))
            .args(["report", "--ignore-filename-regex", "/.cargo/|/rustc/|/fuzz/src/|/fuzz_targets/"])
            .arg(format!("--instr-profile={}", profile.display()))
            .arg(build.join(TRIPLE).join("release").join(target)),
    )
}
