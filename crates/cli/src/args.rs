//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use serve::Wishes;
use std::ffi::OsString;
use std::path::PathBuf;
use vmm::accel::soft::{Options as SoftOptions, PagingKind, TlbKind};
use vmm::choose::Accel;
use vmm::machine::Config;
use vmm::memory::{self, MemoryError};
use vmm::run::Options;
use vmm::virtio::disk::{DiskConfig, DiskError};

/// KVM in Rust: runs guests on hardware virtualization or on its own software CPU.
#[derive(Debug, Parser)]
#[command(name = "rekvm", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest; its serial console is this terminal
    #[command(after_help = STATUS_HELP)]
    Run(Run),
    /// Run a client of /dev/kvm, such as QEMU, that finds the software CPU there
    #[command(after_help = EXEC_HELP)]
    Exec(Exec),
    /// Show what running guests are doing
    Stat(Stat),
}

const STATUS_HELP: &str = "\
Exit status: 0 the guest switched itself off, 1 the host or a file made it impossible,
2 wrong usage, 3 the guest asked for a reset, 4 the guest crashed, 5 the back end could
not run the guest, 128 + n ended by signal n (130 also for the escape key).";

const EXEC_HELP: &str = "\
The client itself decides the exit status; 1 the host or a file made it impossible, 2 wrong usage,
126 the client cannot be started, 127 there is none.";

/// `rekvm exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Do not say which back end serves the client
    #[arg(long)]
    pub quiet: bool,
    /// Serve the client's child processes too
    #[arg(long)]
    pub children: bool,
    /// Have CPUID tell the client that the processor virtualizes, where the processor allows it: for clients such as kvmtool that
    /// look for themselves
    #[arg(long)]
    pub cpuid: bool,
    #[command(flatten)]
    soft: Soft,
    /// The client and its arguments
    #[arg(last = true, required = true, value_name = "CLIENT")]
    pub client: Vec<OsString>,
}

impl Exec {
    /// What is wanted of whoever serves the client.
    pub fn wishes(&self) -> Wishes {
        Wishes { options: self.soft.options(), quiet: self.quiet, children: self.children, cpuid: self.cpuid }
    }

    /// The words that say the same, up to the client.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec!["exec".to_owned(), "--soft-paging".to_owned(), name(&self.soft.soft_paging)];
        words.extend(["--soft-tlb".to_owned(), name(&self.soft.soft_tlb)]);
        for (word, wanted) in [("--quiet", self.quiet), ("--children", self.children), ("--cpuid", self.cpuid)] {
            if wanted {
                words.push(word.to_owned());
            }
        }
        words.push("--".to_owned());
        words
    }
}

/// A value as the command line spells it.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

/// Options of the software CPU.
#[derive(Debug, Args)]
struct Soft {
    /// For developers: the tables that the software CPU walks
    #[arg(long, value_enum, value_name = "TABLES", default_value_t = PagingArg::Slots)]
    soft_paging: PagingArg,
    /// For developers: what the software CPU's TLB keeps
    #[arg(long, value_enum, value_name = "KIND", default_value_t = TlbArg::Normal)]
    soft_tlb: TlbArg,
}

impl Soft {
    fn options(&self) -> SoftOptions {
        SoftOptions {
            paging: match self.soft_paging {
                PagingArg::Slots => PagingKind::Slots,
                PagingArg::Shadow => PagingKind::Shadow,
                PagingArg::Nested => PagingKind::Nested,
            },
            tlb: match self.soft_tlb {
                TlbArg::Normal => TlbKind::Normal,
                TlbArg::Adversarial => TlbKind::Adversarial,
            },
        }
    }
}

/// `rekvm run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Linux kernel: a bzImage or a 64-bit ELF vmlinux
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", allow_hyphen_values = true)]
    append: String,
    /// Guest memory in MiB, or with K, M or G
    #[arg(long, value_name = "SIZE", default_value = "512", allow_hyphen_values = true)]
    memory: String,
    /// Processors
    #[arg(long, value_name = "N", default_value = "1", allow_hyphen_values = true)]
    cpus: String,
    /// Disk: a file or block device, with ",ro" if the guest must not write it; repeatable
    #[arg(long = "disk", value_name = "PATH[,ro]")]
    disks: Vec<String>,
    /// Back end; auto takes the device if it can run a test guest
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    accel: AccelArg,
    #[command(flatten)]
    soft: Soft,
    /// For developers: look at the end whether the shadow tables are in order
    #[arg(long)]
    audit: bool,
    /// Device node for the back end kvm
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    device: PathBuf,
    /// Tell only the back end and what went wrong
    #[arg(long)]
    quiet: bool,
}

/// `rekvm stat`.
#[derive(Debug, Args)]
pub struct Stat {
    /// Process id of the rekvm that runs the guest; not needed if there is one only
    pub pid: Option<u32>,
    /// Print the numbers once, as text
    #[arg(long)]
    pub once: bool,
}

/// Back ends on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccelArg {
    /// The device if it works, else the software CPU
    Auto,
    /// The software CPU in this process
    Soft,
    /// The device, or nothing
    Kvm,
}

/// The software CPU's page walks on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum PagingArg {
    /// The guest's own tables and the memory slots
    Slots,
    /// Shadow tables that the hypervisor fills
    Shadow,
    /// The guest's own tables, and nested ones that the hypervisor fills
    Nested,
}

/// The software CPU's TLB on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TlbArg {
    /// What is quick
    Normal,
    /// Every translation until it is flushed, so that a missing flush shows
    Adversarial,
}

/// An option's value is wrong.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// --memory: {0}
    #[error("--memory: {0}")]
    Memory(MemoryError),
    /// --cpus: '{0}' is not a number of processors
    #[error("--cpus: '{0}' is not a number of processors")]
    Cpus(String),
    /// --disk: {0}
    #[error("--disk: {0}")]
    Disk(DiskError),
    /// --soft-paging and --soft-tlb need --accel soft
    #[error("--soft-paging and --soft-tlb need --accel soft")]
    Soft,
}

impl Run {
    /// The options in the monitor's terms.
    pub fn options(&self) -> Result<Options, UsageError> {
        let cpus = self.cpus.parse().ok().filter(|n| *n > 0);
        let soft = self.soft.options();
        if soft != SoftOptions::default() && !matches!(self.accel, AccelArg::Soft) {
            return Err(UsageError::Soft);
        }
        let disks = self.disks.iter().map(|text| DiskConfig::parse(text)).collect::<Result<_, _>>();
        Ok(Options {
            config: Config {
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                cmdline: self.append.clone(),
                memory: memory::parse_size(&self.memory).map_err(UsageError::Memory)?,
                cpus: cpus.ok_or_else(|| UsageError::Cpus(self.cpus.clone()))?,
                disks: disks.map_err(UsageError::Disk)?,
            },
            accel: match self.accel {
                AccelArg::Auto => Accel::Auto,
                AccelArg::Soft => Accel::Soft,
                AccelArg::Kvm => Accel::Kvm,
            },
            soft,
            device: self.device.clone(),
            audit: self.audit,
            quiet: self.quiet,
        })
    }
}
