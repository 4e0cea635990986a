//! `cargo xtask conformance`: builds the program of the conformance suite and runs it here, on the software CPU, or in
//! the lab, on our module or Linux's own KVM. With several targets a table is written with a column for each.
mod run;
mod suite;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::ValueEnum;

use self::suite::Results;
use crate::{
    choice,
    lab::{Cpu, Ending},
};

/// What the suite is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The software CPU.
    Soft,
    /// The software CPU with a TLB that keeps every stale entry.
    SoftAdversarial,
    /// The software CPU on shadow tables.
    SoftShadow,
    /// Both.
    SoftShadowAdversarial,
    /// The software CPU on nested tables.
    SoftNested,
    /// The software CPU on nested tables, with a TLB that keeps every stale entry.
    SoftNestedAdversarial,
    /// The software CPU in a client that knows nothing of it (`rekvm exec`).
    Exec,
    /// The same in a client that is linked statically.
    ExecStatic,
    /// rekvm's module on AMD-V with nested paging, in QEMU.
    AmdNpt,
    /// rekvm's module on AMD-V with shadow paging, in QEMU.
    AmdShadow,
    /// rekvm's module on VT-x with EPT, in Bochs.
    IntelEpt,
    /// rekvm's module on VT-x with shadow paging, in Bochs.
    IntelShadow,
    /// rekvm's module on a processor without EPT and unrestricted guest, in Bochs.
    IntelPenryn,
    /// Linux's kvm-amd with nested paging, in QEMU.
    LinuxAmdNpt,
    /// Linux's kvm-amd with shadow paging, in QEMU.
    LinuxAmdShadow,
    /// Linux's kvm-intel with EPT, in Bochs.
    LinuxIntelEpt,
    /// Linux's kvm-intel with shadow paging, in Bochs.
    LinuxIntelShadow,
    /// Linux's kvm-intel on a processor without EPT and unrestricted guest, in Bochs.
    LinuxIntelPenryn,
}

impl Target {
    /// As the command line, and the suite, spell it.
    fn name(self) -> String {
        choice::name(self)
    }

    /// What the suite takes it for.
    fn place(self) -> String {
        match self {
            Self::Exec | Self::ExecStatic => Self::Soft.name(),
            _ => self.name(),
        }
    }

    /// The lab's processor for it; none if it runs here.
    fn cpu(self) -> Option<Cpu> {
        match self {
            Self::Soft | Self::SoftAdversarial => None,
            Self::SoftShadow | Self::SoftShadowAdversarial => None,
            Self::SoftNested | Self::SoftNestedAdversarial => None,
            Self::Exec | Self::ExecStatic => None,
            Self::AmdNpt | Self::LinuxAmdNpt => Some(Cpu::AmdNpt),
            Self::AmdShadow | Self::LinuxAmdShadow => Some(Cpu::AmdShadow),
            Self::IntelEpt | Self::LinuxIntelEpt => Some(Cpu::IntelEpt),
            Self::IntelShadow | Self::LinuxIntelShadow => Some(Cpu::IntelShadow),
            Self::IntelPenryn | Self::LinuxIntelPenryn => Some(Cpu::IntelPenryn),
        }
    }

    /// Whether it is our module that is loaded in the lab, and not Linux's.
    fn is_module(self) -> bool {
        let amd = matches!(self, Self::AmdNpt | Self::AmdShadow);
        amd || matches!(self, Self::IntelEpt | Self::IntelShadow | Self::IntelPenryn)
    }

    /// By how much time limits inside cases are stretched.
    fn slowness(self) -> u32 {
        self.cpu().map_or(1, Cpu::slowness)
    }
}

/// Options of `conformance`.
#[derive(clap::Args)]
pub struct Options {
    /// What to run on; given several times, a table with a column for each is written.
    #[arg(long, required = true)]
    on: Vec<Target>,
    /// Only cases whose name or rows contain this.
    #[arg(long)]
    filter: Option<String>,
    /// Only the case with this name (may be repeated).
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Stretches time limits; if not given, 5 in QEMU, else 1.
    #[arg(long)]
    slow: Option<u32>,
    /// Our module's file, which is built if not given.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Processors of the lab's machine.
    #[arg(long, default_value_t = 1)]
    smp: u32,
    /// Seconds after which a run in the lab is given up, in all its boots, without those in which the emulator had to wait for
    /// a processor.
    #[arg(long, default_value_t = 7200)]
    timeout: u64,
    /// On the lab's debug kernel, which only runs our module on AMD-V.
    #[arg(long)]
    debug_kernel: bool,
}

/// One run of the suite.
struct Run {
    target: Target,
    results: Results,
    /// How it ended, the last time.
    ending: Ending,
    /// How often L1 had to be booted again.
    restarts: u32,
    /// What L1's kernel said about our module that it should not have to say.
    complaints: Vec<String>,
}

/// See the module.
pub fn command(options: &Options) -> Result<ExitCode> {
    let alone = options.on.len() == 1;
    let mut runs = Vec::new();
    for &target in &options.on {
        if !alone {
            eprintln!("xtask: conformance on {}", target.name());
        }
        runs.push(run::run(options, target, alone)?);
    }
    if !alone {
        table::table(&runs);
    }
    table::end(&runs);
    Ok(if runs.iter().all(|run| run.results.all_well() && run.complaints.is_empty()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_called_what_the_suite_calls_them() {
        assert_eq!(Target::SoftShadowAdversarial.name(), "soft-shadow-adversarial");
        assert_eq!(Target::LinuxAmdNpt.name(), "linux-amd-npt");
        assert_eq!(Target::AmdShadow.name(), "amd-shadow");
        assert_eq!(Target::IntelPenryn.name(), "intel-penryn");
    }
}
