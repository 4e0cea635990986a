//! `cargo xtask prove-cpu`: random instructions on the software CPU and on this machine's processor, compared.
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::process::{cargo, check, release_binary};

/// Options of `prove-cpu`, which are its program's own.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// See `cargo xtask prove-cpu --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds the program, runs it and ends as it does.
pub fn command(options: &Options) -> Result<ExitCode> {
    check(cargo().args(["build", "--release", "--quiet", "--package", "rekvm-prove"]))?;
    let status = Command::new(release_binary("prove-cpu")).args(&options.arguments).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
