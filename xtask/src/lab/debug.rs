//! The debug kernel: a small configuration (`debug.config`) of Debian's linux-source-6.1 that proves the order of locks, notices who
//! sleeps where nobody may, checks every access to memory (KASAN), looks for leaks, and lets allocations fail. It is built once, by
//! command, and kept.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    guest::deb::Kernel,
    process::{check, need, need_file, target_dir},
};

/// Where Debian's package linux-source-6.1 puts the source.
const SOURCE: &str = "/usr/src/linux-source-6.1.tar.xz";
/// What is not off.
const CONFIG: &str = include_str!("debug.config");

/// The kernel; its folder of modules is empty.
pub fn kernel() -> Result<Kernel> {
    let build = built()?;
    let modules = build.join("no-modules");
    fs::create_dir_all(&modules)?;
    Ok(Kernel { image: build.join("arch/x86/boot/bzImage"), modules })
}

/// What modules for it are built against: a folder as `/lib/modules/VERSION/build` is one.
pub fn headers() -> Result<PathBuf> {
    built()
}

/// The folder in which it is built, with what that needs.
fn built() -> Result<PathBuf> {
    let dir = std::path::absolute(target_dir().join("debug-kernel"))?;
    let (source, build) = (dir.join("linux-source-6.1"), dir.join("build"));
    let done = build.join(".complete");
    if fs::read_to_string(&done).is_ok_and(|config| config == CONFIG) {
        return Ok(build);
    }
    ensure!(Path::new(SOURCE).exists(), "there is no {SOURCE}: install Debian's package linux-source-6.1");
    for (program, package) in
        [("make", "make"), ("gcc-12", "gcc-12"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc")]
    {
        need(program, package)?;
    }
    need_file("/usr/include/libelf.h", "libelf-dev")?;
    eprintln!("xtask: building the debug kernel, which takes its time, in {}", build.display());
    fs::create_dir_all(&build)?;
    if !source.join("Makefile").exists() {
        check(Command::new("tar").arg("-xf").arg(SOURCE).arg("-C").arg(&dir))?;
    }
    let wanted = dir.join("debug.config");
    fs::write(&wanted, CONFIG)?;
    make(&source, &build, &["allnoconfig", &format!("KCONFIG_ALLCONFIG={}", wanted.display())])?;
    missing(&build)?;
    make(&source, &build, &["bzImage", "modules_prepare"])?;
    // There are no modules of its own whose symbols others could want.
    fs::copy(build.join("vmlinux.symvers"), build.join("Module.symvers"))?;
    fs::write(done, CONFIG)?;
    Ok(build)
}

/// Runs the kernel's make, in the background of whatever else this machine does.
fn make(source: &Path, build: &Path, what: &[&str]) -> Result<()> {
    let mut make = Command::new("nice");
    make.args(["-n", "15", "make", "-s", "CC=gcc-12", "-C"]).arg(source).arg(format!("O={}", build.display()));
    check(make.args(what).env_remove("MAKEFLAGS"))
}

/// A configuration that lacks something that was asked for says nothing about it.
fn missing(build: &Path) -> Result<()> {
    let config = fs::read_to_string(build.join(".config")).context("no configuration was made")?;
    for line in CONFIG.lines().filter(|line| line.starts_with("CONFIG_")) {
        let there = match line.strip_suffix("=n") {
            Some(name) => !config.lines().any(|has| has.starts_with(&format!("{name}="))),
            None => config.lines().any(|has| has == line),
        };
        ensure!(there, "the kernel does not take {line}");
    }
    Ok(())
}
