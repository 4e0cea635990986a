//! L1's initramfs. It is three archives one behind the other, which Linux unpacks one over the other: what every run
//! has in common, the program with its files, and the command line. The first two are kept and made again only when
//! something that went into them has changed.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use rekvm_lab_init::{ARGUMENTS, ENVIRONMENT, MODULE_DIR, MODULES};

use super::{Job, debug};
use crate::{
    guest::{
        self, Kind,
        archive::{Archive, read},
        deb, modules,
    },
    process::cache,
};

/// What goes into an archive: its place there, its place here.
type Files = BTreeMap<String, PathBuf>;

/// The prefix of a program that is not carried over.
const OWN: &str = "l1:";

/// Images that nobody has used for this long are removed.
const UNUSED: Duration = Duration::from_secs(3 * 24 * 3600);

/// The kernel to boot, and the initramfs for `job`, which is made in `work`.
pub fn prepare(job: &Job, work: &Path) -> Result<(PathBuf, PathBuf)> {
    let kernel = if job.debug_kernel { debug::kernel()? } else { deb::kernel(Kind::Amd64)? };
    let (mut files, list) = common(job, &kernel)?;
    let base = archive(&mut files, Some(&list))?;
    let (mut files, arguments) = payload(job)?;
    let payload = archive(&mut files, None)?;
    let last = work.join("command");
    let mut archive = Archive::create(&last)?;
    archive.directory("lab")?;
    archive.file(place(ARGUMENTS), &strings(&arguments)?)?;
    archive.file(place(ENVIRONMENT), &strings(&environment(job))?)?;
    archive.finish()?;
    let initrd = work.join("initrd");
    let mut whole = File::create(&initrd)?;
    for part in [base, payload, last] {
        let mut part = File::open(&part).with_context(|| format!("cannot read {}", part.display()))?;
        io::copy(&mut part, &mut whole)?;
    }
    Ok((kernel.image, initrd))
}

/// The first process, the shell and the modules, and the list that says how the modules are loaded.
fn common(job: &Job, kernel: &deb::Kernel) -> Result<(Files, String)> {
    let mut files = Files::new();
    files.insert("init".into(), guest::program(Kind::Amd64, "rekvm-lab-init", "lab-init", &[])?);
    files.insert("bin/busybox".into(), deb::busybox(Kind::Amd64)?);
    let wanted = match job.module.as_str() {
        "linux" => vec![job.cpu.module().to_owned()],
        "none" => Vec::new(),
        file => vec![std::path::absolute(file)?.to_string_lossy().into_owned()],
    };
    let parameters = job.parameters.as_deref().unwrap_or(job.cpu.parameters());
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    let order = modules::in_order(&kernel.modules, &wanted)?;
    let mut list = String::new();
    for (i, file) in order.iter().enumerate() {
        let name = file.file_name().context("a module without a name")?.to_string_lossy().into_owned();
        let parameters = if i + 1 == order.len() { parameters } else { "" };
        list.push_str(&format!("{} {parameters}\n", name));
        files.insert(format!("{}/{name}", place(MODULE_DIR)), file.clone());
    }
    Ok((files, list))
}

/// What `job` carries over, and its program's arguments as they are there.
fn payload(job: &Job) -> Result<(Files, Vec<String>)> {
    let mut files = Files::new();
    for (host, guest) in &job.files {
        carry(host, guest, &mut files)?;
    }
    let mut arguments = job.program.clone();
    let program = arguments.first_mut().context("no program")?;
    if let Some(own) = program.strip_prefix(OWN) {
        *program = own.to_owned();
    } else {
        // It keeps its path: some programs look for their files beside themselves.
        let path = std::path::absolute(find(program)?)?;
        *program = path.to_string_lossy().into_owned();
        carry(&path, program, &mut files)?;
    }
    Ok((files, arguments))
}

/// A program by its path or by its name in PATH.
fn find(program: &str) -> Result<PathBuf> {
    let path = if program.contains('/') {
        Some(PathBuf::from(program)).filter(|p| p.is_file())
    } else {
        std::env::var_os("PATH")
            .and_then(|path| std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file()))
    };
    path.with_context(|| format!("there is no program {program} here (l1:/bin/sh would be one that L1 has itself)"))
}

/// Adds the file or folder `host` as `guest`, and the libraries that programs among it need.
fn carry(host: &Path, guest: &str, files: &mut Files) -> Result<()> {
    let meta = fs::metadata(host).with_context(|| format!("cannot read {}", host.display()))?;
    if meta.is_dir() {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            carry(&entry.path(), &format!("{guest}/{}", entry.file_name().to_string_lossy()), files)?;
        }
        return Ok(());
    }
    ensure!(meta.is_file(), "{} is neither a file nor a folder", host.display());
    files.insert(place(guest).to_owned(), host.to_owned());
    if is_elf(host)? {
        for library in libraries(host)? {
            files.entry(place(&library.to_string_lossy()).to_owned()).or_insert(library);
        }
    }
    Ok(())
}

fn is_elf(path: &Path) -> Result<bool> {
    let mut head = [0; 4];
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    match io::Read::read_exact(&mut file, &mut head) {
        Ok(()) => Ok(head == *b"\x7fELF"),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The libraries of a program and the loader that it names; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut libraries = Vec::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{} needs a library that is not here:{line}", program.display());
        }
        libraries.extend(line.split_whitespace().find(|w| w.starts_with('/') && !w.ends_with(':')).map(PathBuf::from));
    }
    Ok(libraries)
}

/// The program's environment: enough to run, and what was asked for.
fn environment(job: &Job) -> Vec<String> {
    let mut all = vec!["PATH=/bin:/usr/bin:/sbin:/usr/sbin".to_owned(), "HOME=/tmp".into(), "TMPDIR=/tmp".into()];
    all.extend(job.environment.iter().cloned());
    all
}

fn strings(list: &[String]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for text in list {
        ensure!(!text.contains('\0'), "an argument holds a zero byte");
        bytes.extend(text.as_bytes());
        bytes.push(0);
    }
    Ok(bytes)
}

/// An absolute path as archives spell it.
fn place(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// The archive of `files` and of the list of modules, if there is one: an old one if nothing has changed.
fn archive(files: &mut Files, list: Option<&str>) -> Result<PathBuf> {
    let dir = cache().join("lab").join("images");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{:016x}", key(files, list)?));
    if let Ok(file) = File::options().append(true).open(&path) {
        // Its time says when it was last used.
        file.set_modified(SystemTime::now())?;
        return Ok(path);
    }
    forget(&dir);
    let mut archive = Archive::create(&path)?;
    if let Some(list) = list {
        for dir in ["bin", "dev", "proc", "sys", "tmp"] {
            archive.directory(dir)?;
        }
        archive.console()?;
        archive.directory("lab")?;
        archive.file(place(MODULES), list.as_bytes())?;
    }
    for (place, file) in files.iter() {
        if let Some((dir, _)) = place.rsplit_once('/') {
            archive.directory(dir)?;
        }
        archive.program(place, &read(file)?)?;
    }
    archive.finish()?;
    Ok(path)
}

/// A number that changes when one of `files` does.
fn key(files: &Files, list: Option<&str>) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    list.hash(&mut hasher);
    for (place, file) in files {
        let meta = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        (place, file, meta.len(), meta.ino(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Removes images that have not been used for long.
fn forget(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if age.is_some_and(|age| age > UNUSED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
