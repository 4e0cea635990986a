//! The same kernel, initramfs and command line to the same init, on rekvm's software CPU and on QEMU's TCG, in turn.
use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{bochs, median};
use crate::{
    guest::{self, Guest},
    process::need,
    run,
};

/// Options of `bench-boot`.
#[derive(clap::Args)]
pub struct Options {
    /// Counted pairs of boots.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Boot it once in Bochs as well.
    #[arg(long)]
    bochs: bool,
}

const APPEND: &str = "console=ttyS0 panic=-1 quiet rekvm.off";

/// See the module.
pub fn run(options: &Options) -> Result<()> {
    need("qemu-system-x86_64", "qemu-system-x86")?;
    run::build()?;
    let guest = guest::prepare()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for i in 0..options.runs {
        let a = time(run::command(&guest, options.cpus, "512M", APPEND).args(["--accel", "soft"]))?;
        let b = time(&mut tcg(&guest, options.cpus))?;
        println!("pair {}: rekvm {a:.2} s, TCG {b:.2} s, ratio {:.2}", i + 1, a / b);
        ours.push(a);
        theirs.push(b);
    }
    let ratios = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
    println!(
        "boot to init and power-off, {} CPU(s), median of {}: rekvm soft {:.2} s, QEMU TCG {:.2} s, ratio {:.2}",
        options.cpus,
        options.runs,
        median(ours),
        median(theirs),
        median(ratios)
    );
    if options.bochs {
        println!("Bochs, to init only: {:.1} s", bochs::boot(&guest, APPEND)?);
    }
    Ok(())
}

fn tcg(guest: &Guest, cpus: u32) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "max", "-M", "pc", "-m", "512", "-smp", &cpus.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd).args(["-append", APPEND]);
    command
}

fn time(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let lines = run::watch(command, Duration::from_secs(300))?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(lines.iter().any(|l| l.contains(rekvm_selftest::UP)), "the guest did not come up");
    Ok(seconds)
}
