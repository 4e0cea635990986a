//! The sources of kvm-unit-tests, fetched and built under cargo's folder.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::process::{cache, check, need, need_file};

/// Where they come from unless something else is asked for.
pub const URL: &str = "https://gitlab.com/kvm-unit-tests/kvm-unit-tests.git";
/// The commit that the table was made with.
const COMMIT: &str = "1da1819e49fc4938985edca67df669099b4c87a7";

/// What was built.
pub struct Built {
    /// The checkout.
    pub source: PathBuf,
    root: PathBuf,
}

impl Built {
    /// Where the guests of `bits` bits are.
    pub fn folder(&self, bits: u32) -> PathBuf {
        self.root.join(arch(bits))
    }
}

fn arch(bits: u32) -> &'static str {
    if bits == 32 { "i386" } else { "x86_64" }
}

/// Fetches and builds what is not there yet.
pub fn prepare(from: &str) -> Result<Built> {
    need("git", "git")?;
    need("make", "make")?;
    need("gcc", "gcc")?;
    // The 32-bit guests are linked with the compiler's 32-bit library.
    need_file("/usr/lib/gcc/x86_64-linux-gnu/12/32/libgcc.a", "gcc-multilib")?;
    let root = std::path::absolute(cache().join("kvm-unit-tests"))?;
    let source = root.join("source");
    if !source.join("configure").exists() {
        fs::create_dir_all(&root)?;
        eprintln!("xtask: fetching kvm-unit-tests from {from}");
        check(Command::new("git").args(["clone", "--quiet", from]).arg(&source))?;
        check(Command::new("git").arg("-C").arg(&source).args(["checkout", "--quiet", COMMIT]))?;
    }
    let built = Built { source, root };
    for bits in [64, 32] {
        let folder = built.folder(bits);
        let done = folder.join("built");
        if !done.exists() {
            build(&built.source, &folder, arch(bits))?;
            fs::write(&done, COMMIT).with_context(|| format!("cannot write {}", done.display()))?;
        }
    }
    Ok(built)
}

/// Builds in a folder of its own, with the log beside it.
fn build(source: &Path, folder: &Path, arch: &str) -> Result<()> {
    eprintln!("xtask: building kvm-unit-tests for {arch}");
    fs::create_dir_all(folder)?;
    let log = fs::File::create(folder.with_extension("log"))?;
    for (program, arguments) in [(source.join("configure"), vec![format!("--arch={arch}")]), ("make".into(), vec![])] {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).stdout(Stdio::from(log.try_clone()?)).stderr(log.try_clone()?);
        check(&mut command).with_context(|| format!("its log is {}", folder.with_extension("log").display()))?;
    }
    Ok(())
}
