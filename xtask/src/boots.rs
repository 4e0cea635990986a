//! `cargo xtask boots`: every guest in every mode of the software CPU, to its init and through its self-test, as a table.
//! Shadow tables are examined when the guest has ended.
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::Write,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{
    guest::{self, Kind},
    process::target_dir,
    run,
};

/// How the software CPU finds memory, and what its TLB keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// As a processor with nested paging.
    Soft,
    /// The same with a TLB that keeps every stale entry.
    SoftAdversarial,
    /// On shadow tables.
    SoftShadow,
    /// On shadow tables with a TLB that keeps every stale entry.
    SoftShadowAdversarial,
    /// On nested tables.
    SoftNested,
    /// On nested tables with a TLB that keeps every stale entry.
    SoftNestedAdversarial,
}

impl Mode {
    /// As the command line spells it.
    fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
    }

    /// What `rekvm run` is told.
    fn arguments(self) -> Vec<String> {
        let (paging, tlb) = match self {
            Self::Soft => ("slots", "normal"),
            Self::SoftAdversarial => ("slots", "adversarial"),
            Self::SoftShadow => ("shadow", "normal"),
            Self::SoftShadowAdversarial => ("shadow", "adversarial"),
            Self::SoftNested => ("nested", "normal"),
            Self::SoftNestedAdversarial => ("nested", "adversarial"),
        };
        let mut words = vec!["--quiet", "--accel", "soft", "--soft-paging", paging, "--soft-tlb", tlb];
        if paging != "slots" {
            words.push(run::AUDIT);
        }
        words.into_iter().map(str::to_owned).collect()
    }
}

/// Options of `boots`.
#[derive(clap::Args)]
pub struct Options {
    /// Only this guest (may be repeated).
    #[arg(long = "guest")]
    guests: Vec<Kind>,
    /// Only this mode (may be repeated).
    #[arg(long = "mode")]
    modes: Vec<Mode>,
    /// Number of virtual CPUs (may be repeated).
    #[arg(long, default_values_t = [1, 2])]
    cpus: Vec<u32>,
    /// Guest memory, as `rekvm run` takes it.
    #[arg(long, default_value = "512M")]
    memory: String,
    /// Seconds after which a boot is given up.
    #[arg(long, default_value_t = 900)]
    timeout: u64,
}

/// How many lines of a failed boot are shown.
const LAST: usize = 15;

/// See the module.
pub fn boots(options: &Options) -> Result<()> {
    run::build()?;
    let guests = chosen(&options.guests);
    let modes = chosen(&options.modes);
    let logs = target_dir().join("boot-logs");
    fs::create_dir_all(&logs)?;
    let mut failed = 0;
    println!("{:<10}{:>5}  {:<26}result", "guest", "cpus", "mode");
    for &kind in &guests {
        let guest = guest::prepare(kind)?;
        for &cpus in &options.cpus {
            for &mode in &modes {
                let path = logs.join(format!("{}-{cpus}-{}.log", kind.name(), mode.name()));
                let mut log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
                let mut last = VecDeque::new();
                let limit = Duration::from_secs(options.timeout);
                // The log is for people; a full disk shows in what comes next.
                let mut sink = |line: &str| {
                    let _ = log.write_all(line.as_bytes());
                    last.push_back(line.trim_end().to_owned());
                    if last.len() > LAST {
                        last.pop_front();
                    }
                };
                print!("{:<10}{cpus:>5}  {:<26}", kind.name(), mode.name());
                let _ = std::io::stdout().flush();
                match run::self_test(&guest, cpus, &options.memory, &mode.arguments(), limit, &mut sink) {
                    Ok(took) => println!("ok in {:.0} s", took.as_secs_f64()),
                    Err(why) => {
                        failed += 1;
                        println!("FAIL: {why:#}; its console, of which this is the end, is {}", path.display());
                        last.iter().for_each(|line| println!("    {line}"));
                    }
                }
            }
        }
    }
    let all = guests.len() * modes.len() * options.cpus.len();
    println!("{all} boots: {} passed, {failed} failed", all - failed);
    ensure!(failed == 0, "{failed} of {all} boots failed");
    Ok(())
}

/// What was asked for, or everything.
fn chosen<T: ValueEnum + Copy>(asked: &[T]) -> Vec<T> {
    if asked.is_empty() { T::value_variants().to_vec() } else { asked.to_vec() }
}
