//! `cargo xtask boots`: every guest in every mode of the software CPU, to its init and through its self-test, as a table.
//! Shadow tables are examined when the guest has ended.
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    boot_table::{BootTable, took},
    choice::{chosen, name},
    guest::{self, Kind},
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

/// See the module.
pub fn boots(options: &Options) -> Result<()> {
    run::build()?;
    let limit = Duration::from_secs(options.timeout);
    let row = |guest: &str, cpus: &str, mode: &str| format!("{guest:<10}{cpus:>5}  {mode:<26}");
    let mut table = BootTable::new("boot-logs", &row("guest", "cpus", "mode"))?;
    for kind in chosen(&options.guests) {
        let guest = guest::prepare(kind)?;
        for &cpus in &options.cpus {
            for mode in chosen(&options.modes) {
                let what = row(kind.name(), &cpus.to_string(), &name(mode));
                table.boot(&what, &format!("{}-{cpus}-{}", kind.name(), name(mode)), |sink| {
                    run::self_test(&guest, cpus, &options.memory, &mode.arguments(), limit, sink).map(took)
                })?;
            }
        }
    }
    table.end()
}
