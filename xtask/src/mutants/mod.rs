//! `cargo xtask mutants CRATE`: changes the crate's code in one place at a time and sees whether its tests notice.
//!
//! cargo-mutants lists the changes; they are made and judged here, because it cannot be told to try just some of every
//! kind. Which are tried follows from [`list::SEED`] and the code alone, so that two runs on the same commit are the same; a
//! change that does not compile says nothing and is replaced by the next. Most of them are judged from one build ([`plant`]);
//! one that compiles only by itself, in a function that runs when constants are made for instance, has a build of its own.
mod list;
mod plant;
mod tree;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use self::list::{Mutant, SEED};
pub use self::tree::{copy_tree, question};
use crate::process::{cargo, check, root, within};

/// Arguments of cargo that build and run tests. If the first judge finds nothing, the next is asked.
struct Judge {
    build: &'static [&'static str],
    run: &'static [&'static str],
}

/// A crate, who judges it, and files that are tests although they are compiled for others.
struct Subject {
    name: &'static str,
    judges: &'static [Judge],
    tests: &'static [&'static str],
}

macro_rules! own_tests {
    ($package:literal) => {
        Judge {
            build: &["test", "--no-run", "--lib", "--tests", "--package", $package],
            run: &["test", "--lib", "--tests", "--package", $package],
        }
    };
}

macro_rules! conformance {
    ($on:literal, $filter:literal) => {
        Judge {
            build: &["build", "--package", "rekvm-conformance"],
            run: &["run", "--package", "rekvm-conformance", "--", "run", "--on", $on, "--filter", $filter],
        }
    };
}

const SUBJECTS: [Subject; 4] = [
    Subject {
        name: "mmu",
        judges: &[
            own_tests!("rekvm-mmu"),
            conformance!("soft-shadow-adversarial", "mmu/"),
            conformance!("soft-shadow-adversarial", ""),
        ],
        tests: &["crates/mmu/src/testing/*.rs"],
    },
    Subject { name: "irqchip", judges: &[own_tests!("rekvm-irqchip")], tests: &[] },
    Subject {
        name: "hv",
        judges: &[own_tests!("rekvm-hv"), conformance!("soft", ""), conformance!("soft-shadow-adversarial", "mmu/")],
        tests: &[],
    },
    Subject {
        name: "emulate",
        judges: &[own_tests!("rekvm-emulate"), own_tests!("rekvm-soft"), own_tests!("rekvm-prove")],
        tests: &["crates/emulate/src/testing/*.rs"],
    },
];

/// A test program that uses more seconds of processor time than this hangs, however busy the machine is.
const TESTS_CPU: &str = "120";
/// One that does not end in so many times what it takes without a change hangs, too: it may sleep.
const PATIENCE: u32 = 10;
/// Never less than this, since other programs may become busy.
const TESTS: Duration = Duration::from_secs(120);
/// What compiles has compiled by then.
const BUILD: Duration = Duration::from_secs(3600);

/// Options of `mutants`.
#[derive(clap::Args)]
pub struct Options {
    /// The crate, without its prefix.
    #[arg(value_parser = SUBJECTS.map(|subject| subject.name))]
    name: String,
    /// How many mutants that compile are tried.
    #[arg(long, default_value_t = 50)]
    count: usize,
    /// How many of them have to be caught.
    #[arg(long, default_value_t = 42)]
    caught: usize,
}

/// What became of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A test failed.
    Caught,
    /// The tests did not end.
    Hung,
    /// Nothing noticed it.
    Survived,
    /// It does not compile.
    Unviable,
}

/// Where a crate's mutants are built and judged.
struct Bench<'a> {
    subject: &'a Subject,
    /// A copy of the checkout.
    tree: PathBuf,
    /// Builds and the last log.
    cache: &'a Path,
    /// How long each judge has taken without a change.
    usual: Vec<Duration>,
}

/// See the module.
pub fn mutants(options: &Options) -> Result<()> {
    if !cargo().args(["mutants", "--version"]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("xtask: installing cargo-mutants");
        check(cargo().args(["install", "--locked", "--quiet", "cargo-mutants"]))?;
    }
    let subject = SUBJECTS.iter().find(|subject| subject.name == options.name).context("no such crate")?;
    let cache = root().join("target/mutants");
    let mut bench = Bench { subject, tree: cache.join(subject.name), cache: &cache, usual: Vec::new() };
    bench.reset(&BTreeMap::new())?;
    let mut drawn = list::shuffled(list::list(&bench.tree, subject)?);
    // Half as many again take the places of those that do not compile.
    drawn.truncate(options.count * 3 / 2);
    let planted = plant::plant(&bench, &drawn)?;
    for judge in subject.judges {
        let start = Instant::now();
        if bench.judge(judge, None, BUILD)? != Outcome::Survived {
            bail!("the tests fail without any change: see {}", cache.join("last.log").display());
        }
        bench.usual.push(start.elapsed());
    }
    let mut outcomes = BTreeMap::new();
    for &n in &planted {
        let start = Instant::now();
        let outcome = bench.judge_all(Some(n))?;
        eprintln!("xtask: {outcome:?} after {:.0?}: {}", start.elapsed(), drawn[n].name);
        outcomes.insert(n, outcome);
    }
    let mut results = Vec::new();
    for (n, mutant) in drawn.into_iter().enumerate() {
        if results.iter().filter(|(_, outcome)| *outcome != Outcome::Unviable).count() == options.count {
            break;
        }
        let outcome = match outcomes.get(&n) {
            Some(outcome) => *outcome,
            None => alone(&bench, &mutant)?,
        };
        results.push((mutant.name, outcome));
    }
    report(options, &results)
}

/// Changes just this in the tree, and judges.
fn alone(bench: &Bench, mutant: &Mutant) -> Result<Outcome> {
    let start = Instant::now();
    let old = fs::read_to_string(root().join(&mutant.file))?;
    bench.reset(&BTreeMap::from([(PathBuf::from(&mutant.file), mutant.apply(&old)?)]))?;
    let package = format!("rekvm-{}", bench.subject.name);
    let compiles = bench.run(bench.cargo("cargo").args(["check", "--lib", "--package", &package]), BUILD)?;
    let outcome = if compiles == Some(true) { bench.judge_all(None)? } else { Outcome::Unviable };
    eprintln!("xtask: {outcome:?} after {:.0?}, by itself: {}", start.elapsed(), mutant.name);
    Ok(outcome)
}

impl Bench<'_> {
    /// Makes the tree the checkout's, with these files changed.
    fn reset(&self, changed: &BTreeMap<PathBuf, String>) -> Result<()> {
        copy_tree(&self.tree, changed)
    }

    /// A command that knows where the tree is built.
    fn cargo(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", self.cache.join("build"));
        // Most of the time goes into compiling, and a lint is not a test.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("RUSTFLAGS", "--cap-lints=warn");
        command
    }

    /// Whether it succeeds, or None if it does not end in time.
    fn run(&self, command: &mut Command, limit: Duration) -> Result<Option<bool>> {
        let log = fs::File::create(self.cache.join("last.log"))?;
        within(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log), limit)
    }

    /// Asks one judge after the other until one has noticed something.
    fn judge_all(&self, planted: Option<usize>) -> Result<Outcome> {
        for (judge, usual) in self.subject.judges.iter().zip(&self.usual) {
            let outcome = self.judge(judge, planted, TESTS.max(*usual * PATIENCE))?;
            if outcome != Outcome::Survived {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Survived)
    }

    /// Builds the tests and runs them for `limit` at most, with the planted change `planted`.
    fn judge(&self, judge: &Judge, planted: Option<usize>, limit: Duration) -> Result<Outcome> {
        if self.run(self.cargo("cargo").args(judge.build), BUILD)? != Some(true) {
            return Ok(Outcome::Unviable);
        }
        let mut tests = self.cargo("prlimit");
        tests.arg(format!("--cpu={TESTS_CPU}")).arg("cargo").args(judge.run);
        planted.map(|n| tests.env(plant::CHOSEN, n.to_string()));
        Ok(match self.run(&mut tests, limit)? {
            None => Outcome::Hung,
            Some(false) => Outcome::Caught,
            Some(true) => Outcome::Survived,
        })
    }
}

fn report(options: &Options, results: &[(String, Outcome)]) -> Result<()> {
    let of = |wanted| results.iter().filter(move |(_, outcome)| *outcome == wanted);
    // A mutant that makes the tests hang is one that they notice.
    let (hung, survived) = (of(Outcome::Hung).count(), of(Outcome::Survived).count());
    let caught = of(Outcome::Caught).count() + hung;
    println!("rekvm-{}, seed {SEED}: {} mutants that compile", options.name, caught + survived);
    println!("  caught   {caught} (of them {hung} by the time limit)");
    println!("  survived {survived}");
    println!("  unviable {} (replaced)", of(Outcome::Unviable).count());
    of(Outcome::Survived).for_each(|(name, _)| println!("  survived: {name}"));
    if caught < options.caught {
        bail!("{caught} mutants were caught; at least {} have to be", options.caught);
    }
    Ok(())
}
