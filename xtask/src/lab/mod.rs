//! `cargo xtask lab`: runs one program beside Linux's own KVM module, on an emulated processor that has AMD-V or VT-x.
//! "L1" is a stock Debian kernel in an emulator; the guests that the program makes with `/dev/kvm` are its L2.
//!
//! No processor with virtualization is needed, and the host's own `/dev/kvm` is never touched.
mod clock;
pub mod debug;
mod image;
mod machine;
mod watch;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

pub use watch::{Ending, Stream};

use crate::process::{cache, target_dir};

/// The processor of L1, and how KVM uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cpu {
    /// AMD-V with nested paging, in QEMU.
    AmdNpt,
    /// AMD-V with shadow paging, in QEMU.
    AmdShadow,
    /// VT-x with EPT and unrestricted guest, in Bochs.
    IntelEpt,
    /// The same processor with shadow paging.
    IntelShadow,
    /// VT-x without EPT and unrestricted guest, in Bochs: a processor of 2007.
    IntelPenryn,
}

impl Cpu {
    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AmdNpt => "amd-npt",
            Self::AmdShadow => "amd-shadow",
            Self::IntelEpt => "intel-ept",
            Self::IntelShadow => "intel-shadow",
            Self::IntelPenryn => "intel-penryn",
        }
    }

    /// Whether the emulator is QEMU, and virtualization AMD's; else they are Bochs and Intel's.
    pub fn in_qemu(self) -> bool {
        matches!(self, Self::AmdNpt | Self::AmdShadow)
    }

    /// By how much time limits of programs in L1 are stretched. QEMU's guest sees the time of this machine, which may be busy;
    /// Bochs's clock counts instructions, and is as slow as the guest itself.
    pub fn slowness(self) -> u32 {
        if self.in_qemu() { 5 } else { 1 }
    }

    /// Linux's module for it.
    fn module(self) -> &'static str {
        if self.in_qemu() { "kvm-amd" } else { "kvm-intel" }
    }

    /// What Linux's module is told. The processor of `intel-penryn` leaves it no choice.
    fn parameters(self) -> &'static str {
        match self {
            Self::AmdNpt => "npt=1",
            Self::AmdShadow => "npt=0",
            Self::IntelEpt => "ept=1",
            Self::IntelShadow => "ept=0",
            Self::IntelPenryn => "",
        }
    }
}

/// Options of `lab`.
#[derive(clap::Args)]
pub struct Options {
    /// The processor of L1, and how KVM uses it.
    #[arg(long)]
    cpu: Cpu,
    /// Processors of L1.
    #[arg(long, default_value_t = 1)]
    smp: u32,
    /// Memory of L1 in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Seconds after which the program is given up, counted from when it starts, without those in which the emulator had to
    /// wait for a processor.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// A file or folder to carry along, under its own path or under GUEST; a program brings its libraries.
    #[arg(long, value_name = "HOST[:GUEST]")]
    file: Vec<String>,
    /// An environment variable for the program.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The KVM module: linux, or a module's file, which is loaded in place of it.
    #[arg(long, default_value = "linux")]
    module: String,
    /// The module's parameters, in place of those that choose between nested and shadow paging.
    #[arg(long)]
    parameters: Option<String>,
    /// More for the kernel's command line.
    #[arg(long, default_value = "")]
    append: String,
    /// L1's kernel is one that watches itself: built, once, of Debian's linux-source-6.1. It has no KVM of its own.
    #[arg(long)]
    debug_kernel: bool,
    /// The program, carried over with its libraries, and its arguments. `l1:/bin/sh` means one that L1 has itself.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// One program to run in L1.
pub struct Job {
    pub cpu: Cpu,
    pub smp: u32,
    /// MiB.
    pub memory: u32,
    /// For the program, from when it starts, without the time in which the emulator waits for a processor.
    pub timeout: Duration,
    /// How long the program may write nothing, if that is bounded; in the same time.
    pub quiet: Option<Duration>,
    /// What is carried along: its place here, its place in L1.
    pub files: Vec<(PathBuf, String)>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// Whether L1's processor has virtualization.
    pub virtualization: bool,
    /// Whether time in L1 is the number of instructions that it has executed, so that what is measured there repeats. Bochs
    /// always counts so.
    pub counted: bool,
    /// `linux`, a file, or `none`.
    pub module: String,
    /// The module's parameters, if not the usual ones.
    pub parameters: Option<String>,
    /// More for the kernel's command line.
    pub append: String,
    /// Whether L1's kernel is the one of [`debug`].
    pub debug_kernel: bool,
    /// The program and its arguments.
    pub program: Vec<String>,
}

impl Job {
    /// `program` beside Linux's KVM on `cpu`.
    pub fn new(cpu: Cpu, program: Vec<String>) -> Self {
        Self {
            cpu,
            smp: 1,
            memory: 1024,
            timeout: Duration::from_secs(600),
            quiet: None,
            files: Vec::new(),
            environment: Vec::new(),
            virtualization: true,
            counted: false,
            module: "linux".into(),
            parameters: None,
            append: String::new(),
            debug_kernel: false,
            program,
        }
    }
}

/// How a job ended.
pub struct Outcome {
    pub ending: Ending,
    /// How long its program ran, in the time that [`Job::timeout`] is in.
    pub took: Duration,
    /// The file with everything that L1's kernel said.
    pub console: PathBuf,
}

impl Outcome {
    /// Everything that L1's kernel said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The same, of a job whose program has ended well and whose kernel does not complain.
    pub fn clean(&self) -> Result<String> {
        ensure!(self.ending == Ending::Exit(0), "{}; L1's console log is {}", self.ending, self.console.display());
        let said = self.said();
        let complaints = complaints(&said);
        ensure!(complaints.is_empty(), "L1's kernel complains: {}", complaints.join("; "));
        Ok(said)
    }
}

/// Exit status of the command if the program took too long.
const TIMED_OUT: u8 = 124;
/// Exit status of the command if the lab rather than the program failed.
const LAB_FAILED: u8 = 125;

/// See the module.
pub fn command(options: &Options) -> ExitCode {
    let result = job(options).and_then(|job| {
        run(&job, &mut |stream, bytes| {
            // A caller that no longer reads loses the output and nothing else.
            let _ = match stream {
                Stream::Out => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
                Stream::Err => std::io::stderr().write_all(bytes),
            };
        })
    });
    match result {
        Ok(Outcome { ending: Ending::Exit(status), .. }) => ExitCode::from(status),
        Ok(Outcome { ending, console, .. }) => {
            eprintln!("xtask: {ending}");
            let late = matches!(ending, Ending::TimedOut(_));
            if !late {
                tail(&console);
            }
            eprintln!("xtask: the console log is {}", console.display());
            ExitCode::from(if late { TIMED_OUT } else { LAB_FAILED })
        }
        Err(why) => {
            eprintln!("xtask: {why:#}");
            ExitCode::from(LAB_FAILED)
        }
    }
}

fn job(options: &Options) -> Result<Job> {
    let files = options.file.iter().map(|file| {
        let (host, guest) = file.split_once(':').unwrap_or((file, ""));
        let path = std::path::absolute(host)?;
        let place = if guest.is_empty() { path.to_string_lossy().into_owned() } else { guest.to_owned() };
        Ok((path, place))
    });
    Ok(Job {
        smp: options.smp,
        memory: options.memory,
        timeout: Duration::from_secs(options.timeout),
        files: files.collect::<Result<_>>()?,
        environment: options.env.clone(),
        module: options.module.clone(),
        parameters: options.parameters.clone(),
        append: options.append.clone(),
        debug_kernel: options.debug_kernel,
        ..Job::new(options.cpu, options.program.clone())
    })
}

/// Runs `job`; `sink` gets what its program writes, as it comes.
pub fn run(job: &Job, sink: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome> {
    let dir = cache().join("lab");
    let work = dir.join(format!("run-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let result = run_in(job, &work, sink);
    let _ = fs::remove_dir_all(&work);
    result
}

fn run_in(job: &Job, work: &Path, sink: &mut dyn FnMut(Stream, &[u8])) -> Result<Outcome> {
    let (kernel, initrd) = image::prepare(job, work)?;
    let append = format!("console=ttyS0 panic=-1 oops=panic {}", job.append);
    let mut machine = machine::start(job, &kernel, &initrd, append.trim_end(), work)?;
    let watched = watch::watch(&mut machine, job, sink);
    machine.end();
    let console = keep(&machine, job.cpu)?;
    let (ending, took) = watched?;
    Ok(Outcome { ending, took, console })
}

/// What a kernel writes when it is not well, and our module when something was not given back.
const COMPLAINTS: [&str; 13] = [
    "WARNING: CPU: ",
    "WARNING: possible",
    "WARNING: inconsistent lock state",
    "WARNING: suspicious",
    "INFO: trying to register non-static key",
    "ODEBUG: ",
    "unreferenced object",
    "BUG: ",
    "Oops: ",
    "kernel BUG at",
    "general protection fault",
    "rcu_sched self-detected",
    "were not given back",
];

/// The lines of a console's log in which L1's kernel complains.
pub fn complaints(log: &str) -> Vec<&str> {
    log.lines().map(str::trim).filter(|line| COMPLAINTS.iter().any(|word| line.contains(word))).collect()
}

/// How many console logs are kept.
const LOGS: usize = 40;
/// How many of the emulator's messages are kept with each.
const MESSAGES: usize = 10;
/// What QEMU says at every start about the processor's model.
const KNOWN: &str = "TCG doesn't support requested feature";

/// Puts the console's log and the emulator's last messages where they stay, and removes old ones.
fn keep(machine: &machine::Machine, cpu: Cpu) -> Result<PathBuf> {
    let dir = target_dir().join("lab-logs");
    fs::create_dir_all(&dir)?;
    // A job of several boots leaves several logs.
    let name = |n: u32| dir.join(format!("{}-{}-{n}.log", cpu.name(), std::process::id()));
    let path = (1..).map(name).find(|path| !path.exists()).context("no free name for the console log")?;
    // Neither file is there if the emulator could not even begin.
    let mut log = fs::read(&machine.console).unwrap_or_default();
    let messages = fs::read(&machine.messages).unwrap_or_default();
    let messages = String::from_utf8_lossy(&messages);
    let lines: Vec<_> = messages.lines().filter(|l| !l.contains(KNOWN)).collect();
    for line in &lines[lines.len().saturating_sub(MESSAGES)..] {
        log.extend(format!("emulator: {line}\n").bytes());
    }
    fs::write(&path, log).with_context(|| format!("cannot keep the console log as {}", path.display()))?;
    let mut logs: Vec<_> = fs::read_dir(&dir)?
        .filter_map(|e| e.ok().and_then(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))))
        .collect();
    logs.sort();
    for (_, old) in logs.iter().rev().skip(LOGS) {
        let _ = fs::remove_file(old);
    }
    Ok(path)
}

/// Shows the end of the kernel's log.
fn tail(console: &Path) {
    let log = fs::read(console).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    for line in &lines[lines.len().saturating_sub(15)..] {
        eprintln!("L1: {line}");
    }
}
