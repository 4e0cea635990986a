//! `cargo xtask run`: a Debian guest on rekvm.
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    guest::{self, Guest, Kind},
    process::{cache, cargo, check, release_binary},
};

/// Options of `run`.
#[derive(clap::Args)]
pub struct Options {
    /// Without a terminal: the guest tests itself and powers off; status 0 only if all of it held.
    #[arg(long)]
    check: bool,
    /// The guest's kernel.
    #[arg(long, default_value = "amd64")]
    guest: Kind,
    /// Number of virtual CPUs.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Guest memory, as `rekvm run` takes it.
    #[arg(long, default_value = "512M")]
    memory: String,
    /// Back end: auto, soft or kvm.
    #[arg(long, default_value = "soft")]
    accel: String,
    /// Seconds after which `--check` gives up.
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// More arguments for `rekvm run`.
    #[arg(last = true)]
    more: Vec<String>,
}

/// Builds rekvm as users build it.
pub fn build() -> Result<()> {
    eprintln!("xtask: building rekvm");
    check(cargo().args(["build", "--release", "--package", "rekvm", "--package", "rekvm-preload"]))
}

/// `rekvm run` with what every boot of `guest` has in common.
pub fn command(guest: &Guest, cpus: u32, memory: &str, append: &str) -> Command {
    let mut command = Command::new(release_binary("rekvm"));
    command.arg("run").arg("--kernel").arg(&guest.kernel).arg("--initrd").arg(&guest.initrd);
    command.args(["--memory", memory, "--cpus", &cpus.to_string(), "--append", append]);
    command
}

/// See the module.
pub fn run(options: &Options) -> Result<()> {
    build()?;
    let guest = guest::prepare(options.guest)?;
    if options.check {
        let more: Vec<_> =
            ["--accel".to_owned(), options.accel.clone()].into_iter().chain(options.more.clone()).collect();
        let limit = Duration::from_secs(options.timeout);
        let took = self_test(&guest, options.cpus, &options.memory, &more, limit, &mut show)?;
        let cpus = options.cpus;
        println!("xtask: the guest with {cpus} CPU(s) came up, passed its self-test and powered off in {took:.1?}");
        return Ok(());
    }
    let mut command = command(&guest, options.cpus, &options.memory, "console=ttyS0 quiet");
    let status =
        command.args(["--accel", &options.accel]).args(&options.more).status().context("cannot start rekvm")?;
    if !status.success() {
        bail!("rekvm ended with {status}");
    }
    Ok(())
}

/// The argument of `rekvm run` that has the shadow tables examined at the end.
pub const AUDIT: &str = "--audit";

/// Boots, and holds what the guest says and does against what it must; how long that took. `more` arguments go to
/// `rekvm run`, and what the guest says goes to `sink` by line.
pub fn self_test(
    guest: &Guest,
    cpus: u32,
    memory: &str,
    more: &[String],
    limit: Duration,
    sink: &mut dyn FnMut(&str),
) -> Result<Duration> {
    let disk = Disk::new()?;
    let mut command = command(guest, cpus, memory, "console=ttyS0 panic=-1 rekvm.check");
    command.arg("--disk").arg(disk.path()).args(more);
    let mut audited = false;
    let took = proven(&mut command, &disk, cpus, limit, &mut |line| {
        audited |= line.contains("audit: in order");
        sink(line);
    })?;
    if more.iter().any(|m| m == AUDIT) {
        ensure!(audited, "nothing was said about the shadow tables");
    }
    Ok(took)
}

/// The disk of a guest that tests itself; its file goes with it.
pub struct Disk {
    path: PathBuf,
    file: File,
}

impl Disk {
    /// An empty one.
    pub fn new() -> Result<Self> {
        let path = cache().join(format!("check-{}.img", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(16 << 20)?;
        Ok(Self { path, file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Runs `command`, in which a guest with `disk` tests itself, and holds what the guest says and does against what it
/// must; how long that took.
pub fn proven(
    command: &mut Command,
    disk: &Disk,
    cpus: u32,
    limit: Duration,
    sink: &mut dyn FnMut(&str),
) -> Result<Duration> {
    let start = Instant::now();
    proven_by(&watch(command, limit, sink)?, cpus)?;
    let mut written = vec![0; rekvm_selftest::DISK_BYTES];
    disk.file.read_exact_at(&mut written, 0).context("cannot read the disk back")?;
    let expected = rekvm_selftest::pattern(rekvm_selftest::DISK_BYTES, rekvm_selftest::DISK_SEED);
    ensure!(written == expected, "the disk does not hold what the guest wrote");
    Ok(start.elapsed())
}

/// Holds what a guest with `cpus` processors that tested itself has said against what it must say.
pub fn proven_by(lines: &[String], cpus: u32) -> Result<()> {
    let up = lines.iter().find(|l| l.contains(rekvm_selftest::UP)).context("the guest's init never spoke")?;
    ensure!(up.contains("Linux"), "the guest did not say what it is: {up}");
    ensure!(up.trim_end().ends_with(&format!("cpus={cpus}")), "the guest sees other processors: {up}");
    ensure!(lines.iter().any(|l| l.contains(rekvm_selftest::OK)), "the guest's self-test failed");
    Ok(())
}

/// Writes a line of the guest's where the caller sees it.
pub fn show(line: &str) {
    print!("{line}");
    let _ = std::io::stdout().flush();
}

/// Runs `command`, gives its output to `sink` by line and returns it; an error if it fails or takes too long.
pub fn watch(command: &mut Command, limit: Duration, sink: &mut dyn FnMut(&str)) -> Result<Vec<String>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the guest")?;
    let (send, receive) = mpsc::channel();
    let readers = [
        read_lines(child.stdout.take().context("no output")?, send.clone()),
        read_lines(child.stderr.take().context("no messages")?, send),
    ];
    let deadline = Instant::now() + limit;
    let mut lines = Vec::new();
    loop {
        match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                sink(&line);
                lines.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                end(&mut child);
                bail!("the guest was not done after {limit:?}");
            }
        }
    }
    for reader in readers {
        let _ = reader.join();
    }
    let status = child.wait()?;
    ensure!(status.success(), "rekvm ended with {status}");
    Ok(lines)
}

/// Sends what comes out of `from` by line until it ends.
pub fn read_lines(from: impl Read + Send + 'static, send: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if send.send(text).is_err() {
                return;
            }
            line.clear();
        }
    })
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
