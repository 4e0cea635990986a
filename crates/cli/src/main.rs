//! The rekvm command: `rekvm run` runs a guest on this terminal, `rekvm exec` a client
//! of /dev/kvm that finds the software CPU there, `rekvm stat` shows what running guests
//! are doing.
//!
//! Exit status of `run`: 0 the guest switched itself off, 1 the host or a file
//! made it impossible, 2 wrong usage, 3 the guest asked for a reset, 4 the guest
//! crashed, 5 the back end could not run the guest, 128 + n ended by signal n
//! (130 also for the escape key).

mod args;
mod exec;
mod stat;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match args::Cli::parse().command {
        args::Command::Run(arguments) => run(&arguments),
        args::Command::Exec(arguments) => {
            let error = exec::exec(&arguments);
            fail(&error, error.status())
        }
        args::Command::Stat(arguments) => match stat::stat(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, 1),
        },
    }
}

fn run(arguments: &args::Run) -> ExitCode {
    let options = match arguments.options() {
        Ok(options) => options,
        Err(error) => return fail(&error, 2),
    };
    match vmm::run::run(&options) {
        Ok(ending) => {
            vmm::run::tell(&ending, options.quiet);
            ExitCode::from(ending.status())
        }
        Err(error) => fail(&error, 1),
    }
}

/// One line for what is wrong.
fn fail(error: &dyn std::error::Error, status: u8) -> ExitCode {
    vmm::console::say(format_args!("{error}"));
    ExitCode::from(status)
}
