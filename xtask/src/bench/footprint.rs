//! What a guest costs its host: memory beyond its own, processor time when it idles, time to its first instruction.
use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{clients, guest, run};

/// Options of `bench-footprint`.
#[derive(clap::Args)]
pub struct Options {
    /// Seconds for which the idle guest is watched.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The guest of an unmodified QEMU on `rekvm exec` instead of `rekvm run`'s.
    #[arg(long)]
    exec: bool,
}

/// See the module.
pub fn run(options: &Options) -> Result<()> {
    run::build()?;
    let guest = guest::prepare(guest::Kind::Amd64)?;
    let mut command = if options.exec {
        clients::idle(&guest)
    } else {
        let mut command = run::command(&guest, 1, "512M", "console=ttyS0 panic=-1 quiet rekvm.idle");
        command.args(["--accel", "soft"]);
        command
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().context("cannot start rekvm")?;
    let result = measure(&mut child, options, start);
    let _ = child.kill();
    let _ = child.wait();
    result
}

fn measure(child: &mut Child, options: &Options, start: Instant) -> Result<()> {
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    if !lines.any(|l| l.is_ok_and(|l| l.contains(rekvm_selftest::UP))) {
        bail!("the guest did not come up");
    }
    println!("guest up after {:.2} s", start.elapsed().as_secs_f64());
    sleep(Duration::from_secs(2));
    let (total, guest_memory) = memory(child.id())?;
    println!("resident beyond the guest's 512 MiB: {:.1} MiB", (total - guest_memory) as f64 / 1024.0);
    let before = cpu_ticks(child.id())?;
    sleep(Duration::from_secs(options.seconds));
    let ticks = cpu_ticks(child.id())? - before;
    // SAFETY: asks for a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let share = ticks as f64 / per_second / options.seconds as f64;
    println!("an idle guest takes {:.2} % of a core over {} s", share * 100.0, options.seconds);
    Ok(())
}

/// Resident KiB of the process, and of the one mapping that is as large as the guest's memory.
fn memory(pid: u32) -> Result<(u64, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut total, mut guest, mut size) = (0, 0, 0);
    for line in smaps.lines() {
        let kib = |l: &str| l.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        if line.starts_with("Size:") {
            size = kib(line);
        } else if line.starts_with("Rss:") {
            total += kib(line);
            if size >= 512 << 10 {
                guest += kib(line);
            }
        }
    }
    Ok((total, guest))
}

/// User and system time of the process in clock ticks.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let tick = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Ok(tick(11) + tick(12))
}
