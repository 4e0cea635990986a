//! Debian packages, downloaded and unpacked without installing them and without root.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

use super::Kind;
use crate::process::{cache, check, output};

/// An unpacked kernel package.
pub struct Kernel {
    /// Its bzImage.
    pub image: PathBuf,
    /// Its `lib/modules/VERSION` folder.
    pub modules: PathBuf,
}

/// Debian's current kernel of a kind.
pub fn kernel(kind: Kind) -> Result<Kernel> {
    let name = kind.package();
    let dir = package(name, kind.architecture(), |apt| {
        let depends = output(apt.command("apt-cache").args(["depends", name]))?;
        depends
            .lines()
            .find_map(|l| l.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with("linux-image-"))
            .map(str::to_owned)
            .with_context(|| format!("the package {name} names no kernel image"))
    })?;
    let image = only(&dir.join("boot"), "vmlinuz-")?;
    let modules = only(&dir.join("lib/modules"), "")?;
    Ok(Kernel { image, modules })
}

/// A busybox that needs no libraries.
pub fn busybox(kind: Kind) -> Result<PathBuf> {
    let dir = package("busybox-static", kind.architecture(), |_| Ok("busybox-static".into()))?;
    Ok(dir.join("bin/busybox"))
}

/// The folder in which Debian's package `name` is unpacked.
pub fn unpacked(name: &str) -> Result<PathBuf> {
    package(name, NATIVE, |_| Ok(name.to_owned()))
}

/// The headers for modules of `kernel`: a folder as `/lib/modules/VERSION/build` is one.
pub fn headers(kernel: &Kernel) -> Result<PathBuf> {
    let version = kernel.modules.file_name().context("a kernel without a version")?.to_string_lossy().into_owned();
    // 6.1.0-56-cloud-amd64: what the flavours have in common, and the tools, are packages of their own.
    let mut parts = version.splitn(3, '-');
    let (number, build) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let series: Vec<_> = number.split('.').take(2).collect();
    let common = format!("linux-headers-{number}-{build}-common");
    let flavour = format!("linux-headers-{version}");
    let names = [flavour.clone(), common.clone(), format!("linux-kbuild-{}", series.join("."))];
    let dir = packages(&flavour, NATIVE, |_| Ok(names.to_vec()))?;
    let source = std::path::absolute(dir.join("usr/src"))?;
    let headers = source.join(&flavour);
    // The package's own makefile names the place where it would be installed.
    fs::write(headers.join("Makefile"), format!("include {}\n", source.join(common).join("Makefile").display()))?;
    Ok(headers)
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

/// The architecture whose package lists a system has.
const NATIVE: &str = "amd64";

/// The folder in which the package that `resolve` names is unpacked, kept under `name`.
fn package(name: &str, architecture: &str, resolve: impl Fn(&Apt) -> Result<String>) -> Result<PathBuf> {
    packages(name, architecture, |apt| Ok(vec![resolve(apt)?]))
}

/// The folder in which the packages that `resolve` names are unpacked, one over the other, kept under `name`.
fn packages(name: &str, architecture: &str, resolve: impl Fn(&Apt) -> Result<Vec<String>>) -> Result<PathBuf> {
    let dir = cache().join(if architecture == NATIVE { name.to_owned() } else { format!("{name}-{architecture}") });
    if dir.join(".complete").exists() {
        return Ok(dir);
    }
    eprintln!("xtask: fetching Debian's {name} for {architecture}");
    // The machine's own package lists will do if they are for this architecture, and not old or missing. Otherwise
    // we keep a set of our own: they are not ours to change.
    let fetched = match architecture {
        NATIVE => Apt::System.fetch(&dir, &resolve),
        _ => Err(anyhow!("the system's package lists are for another architecture")),
    };
    fetched
        .or_else(|_| Apt::private(architecture)?.fetch(&dir, &resolve))
        .with_context(|| format!("cannot fetch Debian's {name}: is this a Debian system with a package mirror?"))?;
    Ok(dir)
}

/// Whose package lists are used.
enum Apt {
    System,
    Private { dir: PathBuf, architecture: String },
}

impl Apt {
    fn private(architecture: &str) -> Result<Self> {
        let dir = cache().join(format!("apt-{architecture}"));
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let apt = Self::Private { dir, architecture: architecture.to_owned() };
        eprintln!("xtask: reading Debian's package lists for {architecture}");
        // It fails if one of many lists cannot be had. Whether that is one we need shows at the download.
        let _ = apt.command("apt-get").args(["update", "-qq"]).status();
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stderr(Stdio::null());
        if let Self::Private { dir, architecture } = self {
            for (option, sub) in [("State::Lists", "lists"), ("State::status", "status"), ("Cache", "cache")] {
                command.arg("-o").arg(format!("Dir::{option}={}", dir.join(sub).display()));
            }
            for option in ["APT::Architecture", "APT::Architectures"] {
                command.arg("-o").arg(format!("{option}={architecture}"));
            }
        }
        command
    }

    fn fetch(&self, dir: &Path, resolve: &impl Fn(&Self) -> Result<Vec<String>>) -> Result<()> {
        let packages = resolve(self)?;
        let work = dir.with_extension(format!("new{}", std::process::id()));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        check(self.command("apt-get").args(["download", "-qq"]).args(&packages).current_dir(&work))?;
        for package in packages {
            let deb = only(&work, &format!("{package}_"))?;
            check(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&work))?;
            fs::remove_file(deb)?;
        }
        fs::write(work.join(".complete"), "")?;
        fs::rename(&work, dir)?;
        Ok(())
    }
}
