//! Builds, tests and boots rekvm. `cargo xtask run` and `cargo xtask test` are the two commands of the README;
//! both install what they miss, as far as they can, and say what they could not.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod bochs;
mod ci;
mod guest;
mod lab;
mod process;
mod run;

use std::process::{ExitCode, Termination};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and boots rekvm")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a Debian guest on rekvm, to a shell.
    Run(run::Options),
    /// Everything that CI runs.
    Test(ci::Options),
    /// Run a program beside Linux's KVM on an emulated processor with AMD-V or VT-x.
    Lab(lab::Options),
    /// Boot time beside QEMU's TCG (and Bochs), in one run.
    BenchBoot(bench::boot::Options),
    /// Memory of the process, time to the first guest instruction, CPU time of an idle guest.
    BenchFootprint(bench::footprint::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Test(options) => ci::test(&options),
        Command::Lab(options) => return lab::command(&options),
        Command::BenchBoot(options) => bench::boot::run(&options),
        Command::BenchFootprint(options) => bench::footprint::run(&options),
    };
    result.report()
}
