//! The table, or TAP, and the counts.
use std::time::Duration;

use clap::ValueEnum;

use super::{Case, Why};

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// With what it said.
    Failed(String),
    /// It failed where that is expected.
    Known {
        /// What kind of reason that has.
        why: Why,
        /// The reason.
        reason: String,
        /// What the case said.
        said: String,
    },
    /// It passed where a failure is expected: the reason given is no longer true.
    Unexpected(String),
    /// It is not run here, for the reason given.
    NotRun(Why, String),
    /// The device lacks a capability.
    Lacks(String),
    /// It does not apply to what it found.
    NotApplicable(String),
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line a case, for people.
    Table,
    /// The Test Anything Protocol. A comment names each case before it runs, and a YAML block after its result says
    /// all that is known of it, so that whoever reads it loses nothing when the machine goes down with a case.
    Tap,
}

/// Writes results as they come and counts them.
#[derive(Debug)]
pub struct Report {
    format: Format,
    total: usize,
    number: usize,
    passed: usize,
    failed: Vec<(String, String)>,
    known: usize,
    not_run: usize,
    lacking: usize,
    inapplicable: usize,
}

fn why(why: Why) -> &'static str {
    match why {
        Why::Dropped => "dropped by Linux",
        Why::Below => "fault of the emulator below",
        Why::Restricted => "Linux without unrestricted guests",
    }
}

impl Report {
    /// For `total` cases.
    pub fn new(format: Format, total: usize) -> Self {
        if format == Format::Tap {
            println!("TAP version 13\n1..{total}");
        }
        let failed = Vec::new();
        Self { format, total, number: 0, passed: 0, failed, known: 0, not_run: 0, lacking: 0, inapplicable: 0 }
    }

    /// This one is about to run.
    pub fn begin(&self, name: &str) {
        if self.format == Format::Tap {
            println!("# run {name}");
        }
    }

    /// One more.
    pub fn add(&mut self, name: &str, case: &Case, outcome: Outcome, took: Duration) {
        self.number += 1;
        let mut details = String::new();
        let (word, note) = match outcome {
            Outcome::Passed => ("pass", String::new()),
            Outcome::Failed(said) => {
                let first = said.lines().filter(|line| !line.contains("panicked at") && !line.is_empty()).take(3);
                let first = first.collect::<Vec<_>>().join("; ");
                details = said;
                ("FAIL", first)
            }
            Outcome::Unexpected(reason) => {
                let note = format!("passes although: {reason}");
                details.clone_from(&note);
                ("FAIL", note)
            }
            Outcome::Known { why: kind, reason, said } => {
                details = said;
                ("known", format!("{}: {reason}", why(kind)))
            }
            Outcome::NotRun(kind, reason) => ("not run", format!("{}: {reason}", why(kind))),
            Outcome::Lacks(cap) => ("lacks", cap),
            Outcome::NotApplicable(reason) => ("n/a", reason),
        };
        match word {
            "pass" => self.passed += 1,
            "known" => self.known += 1,
            "not run" => self.not_run += 1,
            "lacks" => self.lacking += 1,
            "n/a" => self.inapplicable += 1,
            _ => {}
        }
        match self.format {
            Format::Table => {
                println!("{word:<8}{name:<52} {:<16}{:>7.2} s  {note}", case.rows, took.as_secs_f64());
            }
            Format::Tap => {
                let not = if word == "FAIL" { "not " } else { "" };
                let skip = match word {
                    "pass" => String::new(),
                    "FAIL" => format!(" # {note}"),
                    _ => format!(" # SKIP {word}: {note}"),
                };
                println!("{not}ok {} - {name}{skip}", self.number);
                println!("  ---\n  rows: {}\n  duration_ms: {}\n  said: |", case.rows, took.as_millis());
                details.lines().for_each(|line| println!("    {line}"));
                println!("  ...");
            }
        }
        if word == "FAIL" {
            self.failed.push((name.to_owned(), details));
        }
    }

    /// Writes what failed and the counts. Whether all is well.
    pub fn finish(&self, target: super::Target) -> bool {
        if self.format == Format::Table {
            for (name, said) in &self.failed {
                println!("\n---- {name}");
                said.lines().for_each(|line| println!("     {line}"));
            }
        }
        let prefix = if self.format == Format::Tap { "# " } else { "\n" };
        println!(
            "{prefix}{target}: {} cases: {} passed, {} failed, {} failed as expected, {} not run, {} lack a capability, \
             {} do not apply",
            self.total,
            self.passed,
            self.failed.len(),
            self.known,
            self.not_run,
            self.lacking,
            self.inapplicable
        );
        self.failed.is_empty() && self.number == self.total
    }
}
