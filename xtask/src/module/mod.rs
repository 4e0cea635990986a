//! `cargo xtask module`: builds the kernel module, for the kernel that the lab boots or for other headers. Nothing is
//! installed: Debian's header packages are unpacked beside the kernel's.
//!
//! `linux/Makefile` builds; this fetches what it needs, lets no warning of the kernel's own tools pass, and says how many calls
//! of core's panic functions are left and how deep the largest stack frames are.
mod check;
mod living;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    guest::{Kind, deb},
    lab::{self, Cpu},
    process::{check, need, output, root, show, target_dir},
};

/// Options of `module`.
#[derive(clap::Args)]
pub struct Options {
    /// A folder of kernel headers, as `/lib/modules/VERSION/build`; those of the lab's kernel if not given.
    #[arg(long, value_name = "DIR")]
    headers: Option<PathBuf>,
    /// Where the module and all that it is built from goes.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Then load it in the lab, have it refused, load and unload it again and again with guests in between, and let the host live
    /// on meanwhile; or one part of that.
    #[arg(long, value_name = "PART", num_args = 0..=1, default_missing_value = "all", conflicts_with_all = ["headers", "out"])]
    check: Option<check::Part>,
    /// Check it on the lab's debug kernel.
    #[arg(long, requires = "check", conflicts_with = "linux")]
    debug_kernel: bool,
    /// Check Linux's own module instead, where that makes sense.
    #[arg(long, requires = "check")]
    linux: bool,
    /// The lab's processor for that.
    #[arg(long, default_value = "amd-npt", requires = "check")]
    cpu: Cpu,
}

/// What the module says in the kernel's log when it goes and has given back everything.
pub const NOTHING_LEFT: &str = "rekvm: unloaded, 0 allocations left";

/// See the module.
pub fn command(options: &Options) -> Result<()> {
    if let Some(part) = options.check {
        return check::check(part, options.cpu, options.linux, options.debug_kernel);
    }
    let out = options.out.clone().unwrap_or_else(|| target_dir().join("module"));
    let built = build(options.headers.as_deref(), &std::path::absolute(out)?, "")?;
    println!("{}", built.module.display());
    Ok(())
}

/// The module for the lab's kernel, or its debug kernel: `built`, if it has been already.
pub fn for_lab(built: Option<&Path>, debug_kernel: bool) -> Result<PathBuf> {
    match built {
        Some(file) => Ok(std::path::absolute(file)?),
        None => Ok(for_lab_built(debug_kernel, "")?.module),
    }
}

/// The same with `features` of the module's.
fn for_lab_built(debug_kernel: bool, features: &str) -> Result<Built> {
    let name = ["module", if debug_kernel { "debug" } else { "" }, features];
    let name: Vec<_> = name.into_iter().filter(|part| !part.is_empty()).collect();
    let headers = if debug_kernel { Some(lab::debug::headers()?) } else { None };
    build(headers.as_deref(), &target_dir().join(name.join("-")), features)
}

/// The module, and what its code shows.
struct Built {
    module: PathBuf,
    look: Look,
}

fn build(headers: Option<&Path>, out: &Path, features: &str) -> Result<Built> {
    need("make", "make")?;
    need("gcc-12", "gcc-12")?;
    need("objdump", "binutils")?;
    rust_source()?;
    let headers = match headers {
        Some(dir) => std::path::absolute(dir)?,
        None => deb::headers(&deb::kernel(Kind::Amd64)?)?,
    };
    let mut make = Command::new("make");
    make.arg("-C").arg(root().join("linux"));
    make.arg(format!("KDIR={}", headers.display())).arg(format!("OUT={}", out.display()));
    // The one that Debian's kernels are built with; their own headers name it, others warn of another.
    make.arg(format!("FEATURES={features}")).arg("CC=gcc-12");
    // Cargo tells what it runs about itself, and that is not what builds this.
    for variable in ["CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "MAKEFLAGS", "RUSTC", "RUSTC_WRAPPER"]
    {
        make.env_remove(variable);
    }
    let log = make.output().with_context(|| format!("cannot start `{}`", show(&make)))?;
    let text = [String::from_utf8_lossy(&log.stdout), String::from_utf8_lossy(&log.stderr)].concat();
    if !log.status.success() {
        bail!("`{}` ended with {}:\n{text}", show(&make), log.status);
    }
    let warnings: Vec<_> = text.lines().filter(|line| is_warning(line)).collect();
    if !warnings.is_empty() {
        bail!("the kernel's tools warn:\n{}", warnings.join("\n"));
    }
    let code = output(Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(out.join("kbuild/core.o")))?;
    let look = Look::at(&code);
    eprintln!("xtask: {} calls of core's panic functions are left in the module", look.panics);
    for (bytes, name) in look.frames.iter().take(3) {
        eprintln!("xtask: stack frame of {bytes} bytes: {name}");
    }
    Ok(Built { module: out.join("rekvm.ko"), look })
}

/// Whether a line of Kbuild's output says that something is not as it should be: objtool and modpost go on after that.
fn is_warning(line: &str) -> bool {
    ["warning:", "WARNING:", "error:"].iter().any(|word| line.contains(word))
}

/// core's source, of which the module's own core is built.
fn rust_source() -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").exists() {
        return Ok(());
    }
    eprintln!("xtask: adding Rust's component rust-src");
    check(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(root()))
        .context("the module is built with a core of its own: install the component (rustup component add rust-src)")
}

/// What the module's code shows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    /// Calls of functions that end in a panic.
    panics: usize,
    /// Bytes that functions take from the stack at once, largest first.
    frames: Vec<(u64, String)>,
}

/// Parts of the names of core's and alloc's functions that panic.
const PANICS: [&str; 7] = [
    "panicking",
    "unwrap_failed",
    "expect_failed",
    "index_fail",
    "error_fail",
    "handle_alloc_error",
    "capacity_overflow",
];

/// A frame from which on it is told.
const LARGE: u64 = 1024;

impl Look {
    /// Reads `objdump -d`.
    fn at(code: &str) -> Self {
        let mut look = Self::default();
        let mut name = "";
        for line in code.lines() {
            if let Some(start) = line.strip_suffix(">:") {
                name = start.split_once('<').map_or(start, |(_, name)| name);
                continue;
            }
            let Some((_, instruction)) = line.split_once('\t') else { continue };
            let (mnemonic, operands) = instruction.split_once(' ').unwrap_or((instruction, ""));
            let called = operands.trim().split_once('<').map_or("", |(_, name)| name);
            if matches!(mnemonic, "call" | "jmp") && PANICS.iter().any(|part| called.contains(part)) {
                look.panics += 1;
            }
            let taken = operands.trim().strip_prefix("$0x").and_then(|rest| rest.strip_suffix(",%rsp"));
            if mnemonic == "sub"
                && let Some(Ok(bytes)) = taken.map(|digits| u64::from_str_radix(digits, 16))
                && (LARGE..1 << 32).contains(&bytes)
            {
                look.frames.push((bytes, name.to_owned()));
            }
        }
        look.frames.sort_by(|a, b| b.cmp(a));
        look
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "\n0000 <small>:\n   0:\tsub    $0x18,%rsp\n   4:\tcall   9 <_ZN4core9panicking5panic17h1E>\n\
        \n0010 <large>:\n  10:\tsub    $0x1200,%rsp\n  14:\tjmp    20 <_ZN4core6option13unwrap_failed17h2E>\n  \
        18:\tcall   30 <small>\n  1c:\tjmp    40 <large+0x8>\n";

    #[test]
    fn panics_and_large_frames_are_found() {
        let look = Look::at(CODE);
        assert_eq!(look, Look { panics: 2, frames: vec![(0x1200, "large".into())] });
    }

    #[test]
    fn what_the_kernels_tools_complain_of_is_seen() {
        assert!(is_warning("core.o: warning: objtool: f+0x1: unannotated intra-function call"));
        assert!(is_warning("WARNING: modpost: missing MODULE_LICENSE()"));
        assert!(!is_warning("Skipping BTF generation for rekvm.ko due to unavailability of vmlinux"));
    }
}
