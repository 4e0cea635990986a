//! `cargo xtask prove-cpu`: see the library.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use prove::run::{Options, Prover, Summary, exclusions, form_name};

#[derive(Parser)]
#[command(name = "prove-cpu", about = "Random instructions on the software CPU and on the host's processor")]
struct Cli {
    /// Executions in all, at least.
    #[arg(long, default_value_t = 0)]
    executions: u64,
    /// Executions of each form with each operand shape, at least.
    #[arg(long, default_value_t = 1000)]
    hits: u64,
    /// What the random numbers begin with; chosen and shown if it is not given.
    #[arg(long, value_parser = number)]
    seed: Option<u64>,
    /// Only forms whose name contains this, or is it, with = before it.
    #[arg(long)]
    form: Option<String>,
    /// Only 16-, 32- or 64-bit code.
    #[arg(long)]
    bits: Vec<u32>,
    /// Stop after so many forms that differ.
    #[arg(long, default_value_t = 20)]
    failures: usize,
    /// Seconds after which to stop, with random forms first.
    #[arg(long)]
    seconds: Option<u64>,
    /// Print the counts of each form and shape.
    #[arg(long)]
    table: bool,
}

fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let bits = if cli.bits.is_empty() { vec![64, 32, 16] } else { cli.bits };
    let seed = cli.seed.unwrap_or_else(prove::run::chance);
    println!("prove-cpu: seed {seed:#x}; the host's processor is {}", prove::run::host());
    anyhow::ensure!(prove::run::host_can(), "the comparison needs a host with XSAVE, AVX and FSGSBASE");
    let mut prover = Prover::new()?;
    let start = std::time::Instant::now();
    let summary = prover.run(&Options {
        hits: cli.hits,
        executions: cli.executions,
        seed,
        form: cli.form,
        bits: bits.clone(),
        failures: cli.failures,
        time: cli.seconds.map(Duration::from_secs),
        progress: true,
        sample: cli.seconds.is_some(),
    })?;
    print(&summary, cli.hits, cli.table);
    println!("\nexcluded:");
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (bits, code, reason) in exclusions(&prover, &bits) {
        reasons.entry(reason).or_default().push(format!("{code:?}/{bits}"));
    }
    for (reason, codes) in reasons {
        println!("  {reason}:\n    {}", codes.join(" "));
    }
    let forms: std::collections::BTreeSet<_> = summary.counts.keys().map(|&(bits, code, _)| (bits, code)).collect();
    println!(
        "\nprove-cpu: {} executions of {} forms with {} operand shapes in {:.0?}, {} different",
        summary.executions,
        forms.len(),
        summary.counts.len(),
        start.elapsed(),
        summary.different
    );
    let short = summary.counts.values().any(|count| count.hits < cli.hits);
    Ok(if summary.different != 0 || short && !summary.cut { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(summary: &Summary, hits: u64, table: bool) {
    for mismatch in &summary.mismatches {
        println!("\ndifferent: {:?}, {}-bit, {}: {}", mismatch.code, mismatch.bits, mismatch.shape, mismatch.report);
    }
    println!("\nmode    shape           forms  executions   completed      fewest");
    let mut by_shape: BTreeMap<_, (u64, u64, u64, u64)> = BTreeMap::new();
    for (&(bits, code, shape), count) in &summary.counts {
        let row = by_shape.entry((bits, shape)).or_insert((0, 0, 0, u64::MAX));
        *row = (row.0 + 1, row.1 + count.hits, row.2 + count.completed, row.3.min(count.hits));
        if table {
            println!("{bits}-bit  {:40} {shape:14} {:9} {:9}", form_name(code), count.hits, count.completed);
        }
    }
    for ((bits, shape), (forms, executions, completed, fewest)) in by_shape {
        println!("{bits}-bit  {shape:14} {forms:6} {executions:11} {completed:11} {fewest:11}");
    }
    let mut forms: BTreeMap<(u32, u16), (u64, u64)> = BTreeMap::new();
    for (&(bits, code, shape), count) in &summary.counts {
        let row = forms.entry((bits, code)).or_default();
        *row = (row.0 + count.hits, row.1 + count.completed);
        if count.hits < hits {
            println!("fewer than {hits}: {bits}-bit {} {shape}: {}", form_name(code), count.hits);
        }
    }
    let never: Vec<String> = forms
        .iter()
        .filter(|(_, (hits, completed))| *hits > 0 && *completed == 0)
        .map(|((bits, code), _)| format!("{}/{bits}", form_name(*code)))
        .collect();
    if !never.is_empty() {
        println!("always an exception: {}", never.join(" "));
    }
}
