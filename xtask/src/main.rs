//! Builds, tests and boots rekvm. `cargo xtask run` and `cargo xtask test` are the two commands of the README;
//! both install what they miss, as far as they can, and say what they could not.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod bochs;
mod boot_table;
mod boots;
mod choice;
mod ci;
mod clients;
mod conformance;
mod flush_mutants;
mod fuzz;
mod guest;
mod kvm_unit_tests;
mod lab;
mod miri;
mod module;
mod mutants;
mod process;
mod prove;
mod run;

use std::process::ExitCode;

use anyhow::Result;
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
    /// Boot every guest in every mode of the software CPU, and write a table.
    Boots(boots::Options),
    /// Boot guests in unmodified QEMU on `rekvm exec`, and write a table.
    Clients(clients::Options),
    /// Everything that CI runs.
    Test(ci::Options),
    /// Run a program beside Linux's KVM on an emulated processor with AMD-V or VT-x.
    Lab(lab::Options),
    /// Build the kernel module.
    Module(module::Options),
    /// Run the conformance suite on the software CPU or on Linux's KVM in the lab.
    Conformance(conformance::Options),
    /// Feed random inputs to the emulator, the ioctls and the MMU.
    Fuzz(fuzz::Options),
    /// Random instructions on the software CPU and on this machine's processor, compared bit for bit.
    ProveCpu(prove::Options),
    /// Run kvm-unit-tests in QEMU under `rekvm exec`, and compare with Linux's KVM.
    KvmUnitTests(kvm_unit_tests::Options),
    /// The tests of the pure crates in Miri.
    Miri(miri::Options),
    /// Change a crate's code in many places, one at a time, and see whether its tests notice.
    Mutants(mutants::Options),
    /// Leave out each request of a TLB flush, one at a time, and see whether a test notices.
    FlushMutants(flush_mutants::Options),
    /// Boot time beside QEMU's TCG (and Bochs), in one run.
    BenchBoot(bench::boot::Options),
    /// What an exit costs on the kernel module and on Linux's, on the same emulated processor.
    BenchExits(bench::exits::Options),
    /// Memory of the process, time to the first guest instruction, CPU time of an idle guest.
    BenchFootprint(bench::footprint::Options),
}

fn main() -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match Cli::parse().command {
        Command::Run(options) => run::run(&options).map(done),
        Command::Boots(options) => boots::boots(&options).map(done),
        Command::Clients(options) => clients::clients(&options).map(done),
        Command::Test(options) => ci::test(&options).map(done),
        Command::Lab(options) => Ok(lab::command(&options)),
        Command::Module(options) => module::command(&options).map(done),
        Command::Conformance(options) => conformance::command(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options).map(done),
        Command::ProveCpu(options) => prove::command(&options),
        Command::KvmUnitTests(options) => kvm_unit_tests::kvm_unit_tests(&options).map(done),
        Command::Miri(options) => miri::miri(&options).map(done),
        Command::Mutants(options) => mutants::mutants(&options).map(done),
        Command::FlushMutants(options) => flush_mutants::flush_mutants(&options).map(done),
        Command::BenchBoot(options) => bench::boot::run(&options).map(done),
        Command::BenchExits(options) => bench::exits::run(&options).map(done),
        Command::BenchFootprint(options) => bench::footprint::run(&options).map(done),
    }
}
