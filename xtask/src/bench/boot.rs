//! The same kernel, initramfs and command line to the same init, on rekvm's software CPU and on QEMU's TCG, in turn.
use std::{
    fs,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::median;
use crate::{
    bochs,
    guest::{self, Guest},
    process::{cache, need},
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
    let guest = guest::prepare(guest::Kind::Amd64)?;
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
        println!("Bochs, to init only: {:.1} s", in_bochs(&guest)?);
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
    let lines = run::watch(command, Duration::from_secs(300), &mut run::show)?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(lines.iter().any(|l| l.contains(rekvm_selftest::UP)), "the guest did not come up");
    Ok(seconds)
}

/// Seconds from start until the guest's init speaks in Bochs, an interpreter too: for information beside the figures
/// that count.
fn in_bochs(guest: &Guest) -> Result<f64> {
    let dir = cache().join("bochs");
    let (kernel, initrd) = (guest.kernel.as_path(), guest.initrd.as_path());
    let machine = bochs::Machine { model: "corei7_skylake_x", cpus: 1, memory: 512, kernel, initrd, append: APPEND };
    let mut child = machine.start(&dir, 1)?;
    let start = Instant::now();
    let up = loop {
        sleep(Duration::from_millis(100));
        let serial = fs::read(dir.join(bochs::serial(0))).unwrap_or_default();
        if String::from_utf8_lossy(&serial).contains(rekvm_selftest::UP) {
            break Some(start.elapsed().as_secs_f64());
        }
        if start.elapsed() > Duration::from_secs(300) || child.try_wait()?.is_some() {
            break None;
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    match up {
        Some(seconds) => Ok(seconds),
        None => bail!("the guest did not come up in Bochs; its log is {}", dir.join(bochs::LOG).display()),
    }
}
