//! `cargo xtask kvm-unit-tests`: builds the project kvm-unit-tests outside the tree, runs its flat guests in an unmodified QEMU
//! under `rekvm exec`, and compares each with what it does on Linux's own kvm-amd (`kvm-unit-tests.tsv` beside this file): no test
//! that passes there may fail here, and none may pass fewer checks. With `--cpu` they run in the lab, on Linux's module and on ours
//! ([`mod@lab`]).
mod compare;
mod config;
mod lab;
mod source;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    lab::Cpu,
    process::{cargo, check, die_with_us, need, release_binary, target_dir},
};
use compare::{Outcome, Peer, Verdict};
use config::Test;

/// Options of `kvm-unit-tests`.
#[derive(clap::Args)]
pub struct Options {
    /// A folder with a checkout of kvm-unit-tests in `source`, and with its builds in `x86_64` and `i386`.
    #[arg(long)]
    built: PathBuf,
    /// Only tests whose name contains this (may be repeated).
    #[arg(long = "filter")]
    filters: Vec<String>,
    /// Only guests of 32 or 64 bits.
    #[arg(long)]
    bits: Option<u32>,
    /// Seconds after which a test is given up.
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Run the guests of Hyper-V's interface and of nested virtualization too, which are not compared.
    #[arg(long)]
    all: bool,
    /// Run them on another accelerator of QEMU's, without rekvm (`kvm`, `tcg`), to see what the tests themselves do.
    #[arg(long)]
    accel: Option<String>,
    /// Run them in the lab on this processor, on Linux's module there and on ours, and compare these two.
    #[arg(long, value_name = "CPU", conflicts_with = "accel")]
    cpu: Option<Cpu>,
    /// Our module's file, which is built if not given.
    #[arg(long, value_name = "FILE", requires = "cpu")]
    module: Option<PathBuf>,
    /// Write the table to this file as well.
    #[arg(long)]
    table: Option<PathBuf>,
}

impl Options {
    /// The tests that it leaves in, as Linux's kvm-amd does them.
    fn peers(&self) -> impl Iterator<Item = Peer> {
        compare::peers().filter(|peer| {
            let wanted = self.filters.is_empty() || self.filters.iter().any(|f| peer.name.contains(f.as_str()));
            wanted && self.bits.is_none_or(|bits| bits == peer.bits) && (peer.compared() || self.all)
        })
    }
}

/// See the module.
pub fn kvm_unit_tests(options: &Options) -> Result<()> {
    need("qemu-system-x86_64", "qemu-system-x86")?;
    if let Some(cpu) = options.cpu {
        return lab::compare(options, cpu);
    }
    if options.accel.is_none() {
        check(cargo().args(["build", "--release", "--quiet", "--package", "rekvm", "--package", "rekvm-preload"]))?;
    }
    let built = source::find(&options.built)?;
    let tests = config::parse(&fs::read_to_string(built.source.join("x86/unittests.cfg"))?);
    let logs = logs()?;
    let mut table = String::from("bits\ttest\tresult\tchecks\tlinux\tlinux_checks\tverdict\n");
    let (mut ran, mut worse) = (0, Vec::new());
    for peer in options.peers() {
        let test = tests.iter().find(|test| test.name == peer.name);
        let test = test.with_context(|| format!("its unittests.cfg knows no test {}", peer.name))?;
        let log = logs.join(format!("{}-{}.log", peer.bits, peer.name));
        let flat = built.folder(peer.bits).join("x86").join(&test.file);
        let outcome = run(options, test, &flat, peer.bits, &log)?;
        let verdict = peer.verdict(&outcome);
        ran += 1;
        let line = row(&peer, &outcome, verdict);
        println!("{}", line.replace('\t', "  "));
        table.push_str(&line);
        table.push('\n');
        if verdict == Verdict::Worse {
            worse.push(format!("{} ({} bits), log {}", peer.name, peer.bits, log.display()));
        }
    }
    if let Some(path) = &options.table {
        fs::write(path, &table).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{ran} tests: {} as good as on Linux's kvm-amd or better, {} worse", ran - worse.len(), worse.len());
    ensure!(worse.is_empty(), "worse than on Linux's kvm-amd: {}", worse.join("; "));
    Ok(())
}

/// Where what the guests print is kept.
fn logs() -> Result<PathBuf> {
    let logs = target_dir().join("kvm-unit-tests-logs");
    fs::create_dir_all(&logs)?;
    Ok(logs)
}

fn row(peer: &Peer, outcome: &Outcome, verdict: Verdict) -> String {
    let Peer { bits, name, result, checks } = peer;
    format!("{bits}\t{name:<28}\t{:<8}\t{:<9}\t{result:<8}\t{checks:<9}\t{verdict}", outcome.result, outcome.checks)
}

/// What QEMU is told.
fn arguments(test: &Test, flat: &Path, accel: &str) -> Vec<String> {
    let devices =
        ["-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-device", "pci-testdev"];
    let mut words: Vec<_> = ["-nodefaults", "-display", "none", "-serial", "stdio"].map(str::to_owned).into();
    words.extend(devices.map(str::to_owned));
    words.extend(["-machine".into(), format!("accel={accel}"), "-kernel".into(), flat.display().to_string()]);
    words.extend(["-smp".into(), test.smp.to_string()]);
    if !test.args.is_empty() {
        words.extend(["-append".into(), test.command_line()]);
    }
    words.extend(test.qemu.iter().cloned());
    words
}

/// The guests of Linux's kvm-amd had AMD's processor, unless they ask for another, and some test something else on another. QEMU
/// would tell them of this machine's.
fn of_the_peers_vendor(mut words: Vec<String>) -> Vec<String> {
    const VENDOR: &str = ",vendor=AuthenticAMD";
    match words.iter().position(|word| word == "-cpu").and_then(|at| words.get_mut(at + 1)) {
        Some(model) if model.contains("vendor=") => {}
        Some(model) => model.push_str(VENDOR),
        None => words.extend(["-cpu".to_owned(), format!("qemu64{VENDOR}")]),
    }
    words
}

/// One test in a QEMU of its own.
fn run(options: &Options, test: &Test, flat: &Path, bits: u32, log: &Path) -> Result<Outcome> {
    let mut command = match &options.accel {
        None => {
            let mut command = Command::new(release_binary("rekvm"));
            command.args(["exec", "--quiet", "--"]).arg("qemu-system-x86_64");
            command
        }
        Some(_) => Command::new("qemu-system-x86_64"),
    };
    command.args(of_the_peers_vendor(arguments(test, flat, options.accel.as_deref().unwrap_or("kvm"))));
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut head = out.try_clone()?;
    writeln!(head, "# {} bits: {}", bits, crate::process::show(&command))?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let started = Instant::now();
    let mut child = die_with_us(&mut command).spawn().context("cannot start QEMU")?;
    let end = started + Duration::from_secs(options.limit);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    Ok(Outcome::of(status.map(|status| status.code().unwrap_or(-1)), &output))
}
