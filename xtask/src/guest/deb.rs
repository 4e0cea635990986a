//! Debian packages, downloaded and unpacked without installing them and without root.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::process::{cache, check, output};

/// An unpacked kernel package.
pub struct Kernel {
    /// Its bzImage.
    pub image: PathBuf,
    /// Its `lib/modules/VERSION` folder.
    pub modules: PathBuf,
}

/// Debian's current cloud kernel.
pub fn kernel() -> Result<Kernel> {
    let dir = package("linux-image-cloud-amd64", |apt| {
        let depends = output(apt.command("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
        depends
            .lines()
            .find_map(|l| l.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .context("the package linux-image-cloud-amd64 names no kernel image")
    })?;
    let image = only(&dir.join("boot"), "vmlinuz-")?;
    let modules = only(&dir.join("lib/modules"), "")?;
    Ok(Kernel { image, modules })
}

/// A busybox that needs no libraries.
pub fn busybox() -> Result<PathBuf> {
    let dir = package("busybox-static", |_| Ok("busybox-static".into()))?;
    Ok(dir.join("bin/busybox"))
}

/// The one entry of `dir` whose name begins with `prefix`.
fn only(dir: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("{} holds no {prefix}*", dir.display())
}

/// The folder in which the package that `resolve` names is unpacked, kept under `name`.
fn package(name: &str, resolve: impl Fn(&Apt) -> Result<String>) -> Result<PathBuf> {
    let dir = cache().join(name);
    if dir.join(".complete").exists() {
        return Ok(dir);
    }
    eprintln!("xtask: fetching Debian's {name}");
    let fetched = Apt::System.fetch(name, &dir, &resolve).or_else(|_| {
        // The machine's package lists are old, missing, or not ours to update: keep a set of our own.
        let apt = Apt::private()?;
        apt.fetch(name, &dir, &resolve)
    });
    fetched.with_context(|| format!("cannot fetch Debian's {name}: is this a Debian system with a package mirror?"))?;
    Ok(dir)
}

/// Whose package lists are used.
enum Apt {
    System,
    Private(PathBuf),
}

impl Apt {
    fn private() -> Result<Self> {
        let dir = cache().join("apt");
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let apt = Self::Private(dir);
        eprintln!("xtask: reading Debian's package lists");
        check(apt.command("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stderr(Stdio::null());
        if let Self::Private(dir) = self {
            for (option, sub) in [("State::Lists", "lists"), ("State::status", "status"), ("Cache", "cache")] {
                command.arg("-o").arg(format!("Dir::{option}={}", dir.join(sub).display()));
            }
        }
        command
    }

    fn fetch(&self, name: &str, dir: &Path, resolve: &impl Fn(&Self) -> Result<String>) -> Result<()> {
        let package = resolve(self)?;
        let work = cache().join(format!("{name}.new"));
        let _ = fs::remove_dir_all(&work);
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(&work)?;
        check(self.command("apt-get").args(["download", "-qq", &package]).current_dir(&work))?;
        let deb = only(&work, &package)?;
        check(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&work))?;
        fs::remove_file(deb)?;
        fs::write(work.join(".complete"), "")?;
        fs::rename(&work, dir)?;
        Ok(())
    }
}
