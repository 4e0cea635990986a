//! The program `conformance`: lists the cases, runs them against a device, runs one in this process, or measures exits.
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use conformance::{
    Device, cases, cost, hard,
    runner::{self, Format, Options, Report, Target},
    vm,
};

#[derive(Parser)]
#[command(about = "Says whether a /dev/kvm answers as it should")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Names all cases, the rows that they show, and where they do not apply.
    List(Selection),
    /// Runs cases, each in a process of its own, and prints a table and its counts.
    Run {
        #[command(flatten)]
        on: On,
        #[command(flatten)]
        selection: Selection,
        /// How results are written.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
        /// Seconds that a case may take.
        #[arg(long, default_value_t = 20)]
        limit: u64,
        /// Only the cases that come after this one.
        #[arg(long, value_name = "NAME")]
        after: Option<String>,
    },
    /// Lives with each allocation of the device's failing in turn.
    Scarce {
        #[command(flatten)]
        on: On,
        /// The file that says which allocation fails.
        #[arg(long, value_name = "FILE")]
        knob: String,
    },
    /// Calls whatever comes to its mind.
    Random {
        #[command(flatten)]
        on: On,
        /// Another number is another client.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many clients, one after the other, each with the next number.
        #[arg(long, default_value_t = 100)]
        clients: u64,
    },
    /// Measures what exits cost, in steps of the time-stamp counter: a line with a figure for each row.
    Cost {
        /// Only rows whose name contains this.
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
        #[command(flatten)]
        on: On,
    },
    /// Runs one case in this process.
    One {
        /// Its name, as `list` tells it.
        name: String,
        #[command(flatten)]
        on: On,
    },
}

#[derive(Args)]
struct On {
    /// The device: soft, soft-shadow or soft-nested, each with -adversarial behind it or not, or device:PATH.
    #[arg(long, default_value = "soft")]
    on: String,
    /// What is behind a device path, if not what is loaded there: linux-amd-npt, ...
    #[arg(long = "as", value_name = "TARGET")]
    target: Option<String>,
    /// Stretches the time limits inside cases.
    #[arg(long, default_value_t = 1)]
    slow: u32,
}

#[derive(Args)]
struct Selection {
    /// Only the case with this name (may be repeated).
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Only cases whose name or rows contain this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
}

impl Selection {
    fn cases(&self) -> Result<Vec<(String, &'static runner::Case)>, String> {
        let all: Vec<_> = runner::all(cases::FOLDERS).collect();
        if let Some(wrong) = self.cases.iter().find(|wanted| !all.iter().any(|(name, _)| name == *wanted)) {
            return Err(format!("no case {wrong:?}; `list` names them"));
        }
        let wanted = |name: &String, case: &runner::Case| {
            (self.cases.is_empty() || self.cases.contains(name))
                && (name.contains(&self.filter) || case.rows.contains(&self.filter))
        };
        let selected: Vec<_> = all.into_iter().filter(|(name, case)| wanted(name, case)).collect();
        if selected.is_empty() { Err(format!("no case contains {:?}", self.filter)) } else { Ok(selected) }
    }
}

impl On {
    fn target(&self) -> Result<Target, String> {
        match &self.target {
            Some(name) => Target::named(name).ok_or_else(|| {
                format!("no target {name:?}; there are {}", Target::names().collect::<Vec<_>>().join(", "))
            }),
            None => Target::behind(&self.on).ok_or_else(|| {
                format!(
                    "what is behind {}? Say it with --as: {}",
                    self.on,
                    Target::names().collect::<Vec<_>>().join(", ")
                )
            }),
        }
    }
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("conformance: {message}");
            ExitCode::from(2)
        }
    }
}

fn act(action: Action) -> Result<bool, String> {
    match action {
        Action::List(selection) => {
            let cases = selection.cases()?;
            for (name, case) in &cases {
                println!("{name:<52} {:<16}{}", case.rows, case.exceptions());
            }
            println!("{} cases", cases.len());
            Ok(true)
        }
        Action::Run { on, selection, format, limit, after } => {
            let (target, mut cases) = (on.target()?, selection.cases()?);
            if let Some(last) = after {
                let last = cases.iter().position(|(name, _)| *name == last);
                cases.drain(..=last.ok_or("the case of --after is not among those selected")?);
            }
            Device::open(&on.on, target)?;
            let options = Options { on: on.on, target, limit: limit * u64::from(on.slow), slow: on.slow };
            let mut report = Report::new(format, cases.len());
            runner::run(&cases, &options, &mut report).map_err(|error| format!("a case cannot be started: {error}"))?;
            Ok(report.finish(target))
        }
        Action::Scarce { on, knob } => hard::scarce::run(&Device::open(&on.on, on.target()?)?, &knob),
        Action::Random { on, seed, clients } => {
            hard::random::run(&Device::open(&on.on, on.target()?)?, seed, clients);
            Ok(true)
        }
        Action::Cost { filter, on } => {
            let device = Device::open(&on.on, on.target()?)?;
            for row in cost::ROWS.iter().filter(|row| row.name.contains(&filter)) {
                println!("REKVM-COST {}: {}", row.name, row.measure(&device).each());
            }
            Ok(true)
        }
        Action::One { name, on } => {
            vm::set_slowness(on.slow);
            let found = runner::all(cases::FOLDERS).find(|(known, _)| *known == name);
            let (_, case) = found.ok_or_else(|| format!("no case {name:?}; `list` names them"))?;
            runner::run_here(case, &Device::open(&on.on, on.target()?)?);
            Ok(true)
        }
    }
}
