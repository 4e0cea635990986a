//! Other programs: run with their output shown, or refuse with a sentence that helps.
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Cargo's folder for what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where things are kept that are fetched or built outside cargo.
pub fn cache() -> PathBuf {
    target_dir().join("guest")
}

/// Where cargo puts `name` when it builds with `--release`.
pub fn release_binary(name: &str) -> PathBuf {
    target_dir().join("release").join(name)
}

/// Runs `command` to its end; an error if it cannot be started or fails.
pub fn check(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Runs `command` for at most `limit`, then ends it with all that it has started. Whether it succeeded, if it ended by itself.
pub fn within(command: &mut Command, limit: Duration) -> Result<Option<bool>> {
    let mut child = command.process_group(0).spawn().with_context(|| format!("cannot start `{}`", show(command)))?;
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    check(Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]))?;
    child.wait()?;
    Ok(None)
}

/// Makes `command` end when we do, even if we are killed.
pub fn die_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: the closure only makes a system call.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

/// The standard output of `command`; an error if it cannot be started or fails.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !out.status.success() {
        bail!("`{shown}` ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A cargo command in the checkout, with the toolchain that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Makes sure that a program exists, by installing Debian's `package` if it does not.
pub fn need(program: &str, package: &str) -> Result<()> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if found {
        return Ok(());
    }
    install(package, program)
}

/// Makes sure that a file which no program stands for exists, by installing Debian's `package` if it does not.
pub fn need_file(file: &str, package: &str) -> Result<()> {
    if Path::new(file).exists() { Ok(()) } else { install(package, file) }
}

fn install(package: &str, wanted: &str) -> Result<()> {
    eprintln!("xtask: installing Debian's {package} for `{wanted}`");
    let install = |what: &[&str]| {
        check(
            Command::new("apt-get")
                .args(what)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(std::process::Stdio::null()),
        )
    };
    let quiet = ["install", "-y", "-qq", "--no-install-recommends", package];
    if install(&quiet).is_err() {
        install(&["update", "-qq"]).and_then(|()| install(&quiet)).with_context(|| {
            format!("`{wanted}` is missing: install Debian's package {package} (as root: apt-get install {package})")
        })?;
    }
    Ok(())
}

/// Makes sure that rustup has the standard library for `target`.
pub fn add_target(target: &str) -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(target).exists() {
        return Ok(());
    }
    eprintln!("xtask: adding the Rust target {target}");
    check(Command::new("rustup").args(["target", "add", target]))
        .with_context(|| format!("the Rust target {target} is missing and could not be added"))
}
