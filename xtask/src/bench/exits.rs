//! What an exit costs: `conformance cost` in the lab, on Linux's module and then on ours, under the same kernel. L1's time-stamp
//! counter counts its instructions there, so that the figures are the same each time. With `--guests` QEMU boots a kernel in L1,
//! which forks, and the figures are times of the same clock.
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::{
    clients, guest,
    lab::{self, Cpu, Job, Stream},
    module,
};

/// Options of `bench-exits`.
#[derive(clap::Args)]
pub struct Options {
    /// The processor of L1, and how KVM uses it (may be repeated).
    #[arg(long = "cpu", default_values = ["amd-npt", "amd-shadow"])]
    cpus: Vec<Cpu>,
    /// Only rows whose name contains this.
    #[arg(long, default_value = "")]
    filter: String,
    /// Boot a guest that forks, instead of single exits.
    #[arg(long)]
    guests: bool,
    /// Every measure against speculation that the kernel can be told to take, needed or not.
    #[arg(long)]
    mitigations: bool,
    /// More for the command line of L1's kernel.
    #[arg(long, default_value = "")]
    append: String,
    /// Do not measure Linux's module again.
    #[arg(long)]
    ours: bool,
    /// Our module, built already.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
}

/// What the kernel is told for [`Options::mitigations`].
const FORCED: &str = "spectre_v2=on spectre_v2_user=on spec_store_bypass_disable=on retbleed=auto l1tf=full,force mds=full \
    tsx_async_abort=full mmio_stale_data=full kvm-intel.vmentry_l1d_flush=always";

/// See the module.
pub fn run(options: &Options) -> Result<()> {
    let program = guest::program(guest::Kind::Amd64, "rekvm-conformance", "conformance", &["--no-default-features"])?;
    let program = program.to_string_lossy().into_owned();
    let rekvm = module::for_lab(options.module.as_deref(), false)?.to_string_lossy().into_owned();
    for &cpu in &options.cpus {
        let measure = |module: &str| measure(options, cpu, module, &program);
        let linux = if options.ours { Vec::new() } else { measure("linux").context("on Linux's module")? };
        let ours = measure(&rekvm).context("on ours")?;
        println!("{:<44}{:>10}{:>10}{:>8}", cpu.name(), "Linux's", "rekvm.ko", "ratio");
        for (name, ours) in &ours {
            let of_linux = linux.iter().find(|(other, _)| other == name).map(|(_, figure)| *figure);
            let (theirs, ratio) = match of_linux {
                Some(figure) => (figure.to_string(), format!("{:.2}", *ours as f64 / figure.max(1) as f64)),
                None => ("-".into(), "-".into()),
            };
            println!("{name:<44}{theirs:>10}{ours:>10}{ratio:>8}");
        }
    }
    Ok(())
}

/// Each row's name and figure on `module`.
fn measure(options: &Options, cpu: Cpu, module: &str, program: &str) -> Result<Vec<(String, u64)>> {
    let mut job = if options.guests {
        clients::lab::measured(cpu, module, "rekvm.forks")?
    } else {
        let words = [program, "cost", "--on", "device:/dev/kvm", "--filter", &options.filter, "--as", cpu.name()];
        Job { module: module.to_owned(), ..Job::new(cpu, words.map(str::to_owned).into()) }
    };
    let forced = if options.mitigations { FORCED } else { "" };
    job.append = format!("nokaslr {forced} {}", options.append);
    job.counted = true;
    let mut said = Vec::new();
    let outcome = lab::run(&job, &mut |stream, bytes| match stream {
        Stream::Out => said.extend_from_slice(bytes),
        Stream::Err => eprint!("{}", String::from_utf8_lossy(bytes)),
    })?;
    outcome.clean()?;
    let rows: Vec<_> = String::from_utf8_lossy(&said).lines().filter_map(row).collect();
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok(rows)
}

/// `REKVM-COST NAME: FIGURE`.
fn row(line: &str) -> Option<(String, u64)> {
    let (name, figure) = line.trim().strip_prefix(rekvm_selftest::COST)?.split_once(": ")?;
    Some((name.trim().to_owned(), figure.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_row() {
        assert_eq!(row("REKVM-COST in from the kernel: 1717\r"), Some(("in from the kernel".into(), 1717)));
        assert_eq!(row("panicked at x: y"), None);
    }
}
