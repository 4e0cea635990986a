//! `cargo xtask conformance`: builds the program of the conformance suite and runs it here, on the software CPU, or in
//! the lab, on Linux's own KVM. With several targets a table is written with a column for each.
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    guest,
    lab::{self, Cpu, Ending, Job, Stream},
    process::{cargo, check, release_binary},
};

/// What the suite is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The software CPU.
    Soft,
    /// The software CPU with a TLB that keeps every stale entry.
    SoftAdversarial,
    /// The software CPU on shadow tables.
    SoftShadow,
    /// Both.
    SoftShadowAdversarial,
    /// Linux's kvm-amd with nested paging, in QEMU.
    LinuxAmdNpt,
    /// Linux's kvm-amd with shadow paging, in QEMU.
    LinuxAmdShadow,
    /// Linux's kvm-intel with EPT, in Bochs.
    LinuxIntelEpt,
    /// Linux's kvm-intel without EPT, in Bochs.
    LinuxIntelShadow,
}

impl Target {
    /// As the command line, and the suite, spell it.
    fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
    }

    /// The lab's processor for it; none if it runs here.
    fn cpu(self) -> Option<Cpu> {
        match self {
            Self::Soft | Self::SoftAdversarial | Self::SoftShadow | Self::SoftShadowAdversarial => None,
            Self::LinuxAmdNpt => Some(Cpu::AmdNpt),
            Self::LinuxAmdShadow => Some(Cpu::AmdShadow),
            Self::LinuxIntelEpt => Some(Cpu::IntelEpt),
            Self::LinuxIntelShadow => Some(Cpu::IntelShadow),
        }
    }
}

/// Options of `conformance`.
#[derive(clap::Args)]
pub struct Options {
    /// What to run on; given several times, a table with a column for each is written.
    #[arg(long, required = true)]
    on: Vec<Target>,
    /// Only cases whose name or rows contain this.
    #[arg(long)]
    filter: Option<String>,
    /// Only the case with this name (may be repeated).
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Stretches time limits; 1 here and 5 in emulators if not given.
    #[arg(long)]
    slow: Option<u32>,
    /// Seconds after which a run in the lab is given up.
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
}

/// How one run ended.
struct Run {
    output: String,
    ending: Ending,
}

/// See the module.
pub fn command(options: &Options) -> Result<ExitCode> {
    let alone = options.on.len() == 1;
    let mut runs = Vec::new();
    for &target in &options.on {
        if !alone {
            eprintln!("xtask: conformance on {}", target.name());
        }
        let run = match target.cpu() {
            None => here(options, target, alone)?,
            Some(cpu) => in_lab(options, target, cpu, alone)?,
        };
        if !matches!(run.ending, Ending::Exit(0 | 1)) {
            eprintln!("xtask: conformance on {}: {}", target.name(), run.ending);
        }
        runs.push((target, run));
    }
    if !alone {
        table(&runs);
    }
    let all_well = runs.iter().all(|(_, run)| run.ending == Ending::Exit(0));
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The suite's arguments.
fn arguments(options: &Options, target: Target, on: &str, alone: bool) -> Vec<String> {
    let slow = options.slow.unwrap_or(if target.cpu().is_some() { 5 } else { 1 });
    let mut words = vec!["run".to_owned(), "--on".into(), on.into(), "--slow".into(), slow.to_string()];
    words.extend(["--format".into(), if alone { "table".into() } else { "tap".into() }]);
    words.extend(options.filter.iter().flat_map(|text| ["--filter".into(), text.clone()]));
    words.extend(options.cases.iter().flat_map(|name| ["--case".into(), name.clone()]));
    words
}

fn here(options: &Options, target: Target, alone: bool) -> Result<Run> {
    check(cargo().args(["build", "--quiet", "--release", "--package", "rekvm-conformance"]))?;
    let mut command = Command::new(release_binary("conformance"));
    command.args(arguments(options, target, &target.name(), alone)).stdin(Stdio::null());
    if alone {
        let status = command.status().context("cannot start the conformance suite")?;
        return Ok(Run { output: String::new(), ending: Ending::of(status) });
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the conformance suite")?;
    let mut output = Vec::new();
    child.stdout.take().context("no output")?.read_to_end(&mut output)?;
    Ok(Run { output: String::from_utf8_lossy(&output).into_owned(), ending: Ending::of(child.wait()?) })
}

fn in_lab(options: &Options, target: Target, cpu: Cpu, alone: bool) -> Result<Run> {
    // The in-process device is of no use there.
    let program = guest::program(guest::Kind::Amd64, "rekvm-conformance", "conformance", &["--no-default-features"])?;
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(arguments(options, target, "device:/dev/kvm", alone));
    let mut job = Job::new(cpu, words);
    job.timeout = Duration::from_secs(options.timeout);
    let mut output = Vec::new();
    let outcome = lab::run(&job, &mut |stream, bytes| {
        // A caller that no longer reads loses the output and nothing else.
        let _ = match stream {
            Stream::Err => std::io::stderr().write_all(bytes),
            Stream::Out if alone => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
            Stream::Out => output.write_all(bytes),
        };
    })?;
    if !matches!(outcome.ending, Ending::Exit(_)) {
        eprintln!("xtask: L1's console log is {}", outcome.console.display());
    }
    Ok(Run { output: String::from_utf8_lossy(&output).into_owned(), ending: outcome.ending })
}

/// What the suite's TAP output says.
#[derive(Default)]
struct Parsed {
    /// A word for each case.
    cases: Vec<(String, String)>,
    /// What failed, in full.
    details: Vec<String>,
    counts: String,
}

fn parse(output: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for line in output.lines() {
        let (rest, fine) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (rest, true),
            (_, Some(rest)) => (rest, false),
            _ if line.starts_with("# ") => {
                parsed.counts = line[2..].to_owned();
                continue;
            }
            _ => {
                // Everything between the cases and the counts is about failures.
                if line.starts_with("---- ") || !parsed.details.is_empty() {
                    parsed.details.push(line.to_owned());
                }
                continue;
            }
        };
        let Some((_, named)) = rest.split_once(" - ") else { continue };
        let (name, note) = named.split_once(" # ").unwrap_or((named, ""));
        let skipped = note.strip_prefix("SKIP ").map(|skip| skip.split(':').next().unwrap_or(skip));
        let word = if fine { skipped.unwrap_or("pass") } else { "FAIL" };
        parsed.cases.push((name.trim().to_owned(), word.to_owned()));
    }
    parsed
}

/// All runs side by side, by case, then what failed, then the counts.
fn table(runs: &[(Target, Run)]) {
    let parsed: Vec<_> = runs.iter().map(|(target, run)| (target.name(), parse(&run.output))).collect();
    let mut order: Vec<&str> = Vec::new();
    let mut words: BTreeMap<(&str, usize), &str> = BTreeMap::new();
    for (column, (_, run)) in parsed.iter().enumerate() {
        for (name, word) in &run.cases {
            if !order.contains(&name.as_str()) {
                order.push(name);
            }
            words.insert((name, column), word);
        }
    }
    let wide = order.iter().map(|name| name.len()).max().unwrap_or(0).max(4);
    print!("{:wide$}", "case");
    parsed.iter().for_each(|(target, _)| print!("  {target}"));
    println!();
    for name in order {
        let mut line = format!("{name:wide$}");
        for (column, (target, _)) in parsed.iter().enumerate() {
            line.push_str(&format!("  {:1$}", words.get(&(name, column)).unwrap_or(&"-"), target.len()));
        }
        println!("{}", line.trim_end());
    }
    for (target, run) in parsed.iter().filter(|(_, run)| !run.details.is_empty()) {
        println!("\n==== {target}");
        run.details.iter().for_each(|line| println!("{line}"));
    }
    println!();
    for ((target, run), (_, raw)) in parsed.iter().zip(runs) {
        if run.counts.is_empty() {
            println!("{target}: no counts after {} cases: {}", run.cases.len(), raw.ending);
        } else {
            println!("{}", run.counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "TAP version 13\n1..4\nok 1 - device/a\nnot ok 2 - pio/b # left: 1; right: 2\n\
        ok 3 - mmio/c # SKIP not run: fault of the emulator below: x # y\nok 4 - d # SKIP lacks: KVM_CAP_X\n\n\
        ---- pio/b\n     left: 1\n     right: 2\n# soft: 4 cases: 2 passed\n";

    #[test]
    fn every_case_gets_its_word() {
        let parsed = parse(OUTPUT);
        let words: Vec<_> = parsed.cases.iter().map(|(name, word)| (name.as_str(), word.as_str())).collect();
        assert_eq!(words, [("device/a", "pass"), ("pio/b", "FAIL"), ("mmio/c", "not run"), ("d", "lacks")]);
        assert_eq!(parsed.details, ["---- pio/b", "     left: 1", "     right: 2"]);
        assert_eq!(parsed.counts, "soft: 4 cases: 2 passed");
    }

    #[test]
    fn targets_are_called_what_the_suite_calls_them() {
        assert_eq!(Target::SoftShadowAdversarial.name(), "soft-shadow-adversarial");
        assert_eq!(Target::LinuxAmdNpt.name(), "linux-amd-npt");
    }
}
