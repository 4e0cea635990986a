//! `cargo xtask mutants CRATE`: changes the crate's code in one place at a time and sees whether its tests notice.
//!
//! cargo-mutants lists the changes; they are made and judged here, because it cannot be told to try just some of every
//! kind. Which are tried follows from [`SEED`] and the code alone, so that two runs on the same commit are the same; a
//! change that does not compile says nothing and is replaced by the next.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{cargo, check, output, root, within};

/// What the order of the mutants is drawn with.
const SEED: u64 = 2007;

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
        judges: &[own_tests!("rekvm-mmu"), conformance!("soft-shadow", "mmu/"), conformance!("soft-shadow", "")],
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
/// So does one that sleeps so long.
const TESTS: Duration = Duration::from_secs(600);
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

/// A change: `text` between two places of a file, each a line and a column from 1 on.
struct Mutant {
    name: String,
    file: String,
    from: (usize, usize),
    to: (usize, usize),
    text: String,
}

/// See the module.
pub fn mutants(options: &Options) -> Result<()> {
    if !cargo().args(["mutants", "--version"]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("xtask: installing cargo-mutants");
        check(cargo().args(["install", "--locked", "--quiet", "cargo-mutants"]))?;
    }
    let subject = SUBJECTS.iter().find(|subject| subject.name == options.name).context("no such crate")?;
    let cache = root().join("target/mutants");
    let tree = cache.join(subject.name);
    copy_tree(&tree, &BTreeMap::new())?;
    for judge in subject.judges {
        if judge_by(&tree, &cache, judge)? != Outcome::Survived {
            bail!("the tests fail without any change: see {}", cache.join("last.log").display());
        }
    }
    let mut results = Vec::new();
    for mutant in shuffled(list(&tree, subject)?) {
        if results.iter().filter(|(_, outcome)| *outcome != Outcome::Unviable).count() == options.count {
            break;
        }
        let start = Instant::now();
        let outcome = attempt(&tree, &cache, subject.judges, &mutant)?;
        eprintln!("xtask: {outcome:?} after {:.0?}: {}", start.elapsed(), mutant.name);
        results.push((mutant.name, outcome));
    }
    report(options, &results)
}

/// Copies what git knows of the checkout to a place where it can be changed, some files with other contents; files that are
/// the same already stay untouched.
pub fn copy_tree(tree: &Path, changed: &BTreeMap<PathBuf, String>) -> Result<()> {
    let files =
        output(std::process::Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()))?;
    let known = |dir: &Path, name: &str| files.lines().any(|f| Path::new(f) == dir.join(name));
    for file in files.lines() {
        let (from, to) = (root().join(file), tree.join(file));
        let new = match changed.get(Path::new(file)) {
            Some(text) => text.clone().into_bytes(),
            None => match fs::read(&from) {
                Ok(new) => new,
                Err(_) => continue,
            },
        };
        if fs::read(&to).is_ok_and(|old| old == new) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::write(&to, new).with_context(|| format!("cannot write {}", to.display()))?;
    }
    remove_unknown(tree, Path::new(""), &known)
}

/// Removes sources that the checkout no longer has: a module or a test of an older state.
fn remove_unknown(tree: &Path, dir: &Path, known: &impl Fn(&Path, &str) -> bool) -> Result<()> {
    for entry in fs::read_dir(tree.join(dir))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            remove_unknown(tree, &dir.join(&name), known)?;
        } else if name.ends_with(".rs") && !known(dir, &name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// All mutants of a crate, in the order of their names.
fn list(tree: &Path, subject: &Subject) -> Result<Vec<Mutant>> {
    let mut command = cargo();
    command.args(["mutants", "--list", "--json", "--package", &format!("rekvm-{}", subject.name), "--dir"]).arg(tree);
    subject.tests.iter().for_each(|file| {
        command.args(["--exclude", file]);
    });
    let json: Value = serde_json::from_str(&output(&mut command)?)?;
    let mut mutants = Vec::new();
    for m in json.as_array().context("a list of mutants")? {
        let text = |key: &str| m[key].as_str().map(String::from).with_context(|| format!("no {key} in {m}"));
        let place = |end: &str| {
            let number = |what: &str| m["span"][end][what].as_u64().and_then(|n| usize::try_from(n).ok());
            number("line").zip(number("column")).with_context(|| format!("no {end} in {m}"))
        };
        let (name, file) = (text("name")?, text("file")?);
        mutants.push(Mutant { name, file, from: place("start")?, to: place("end")?, text: text("replacement")? });
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

/// Fisher and Yates' shuffle with Vigna's splitmix64.
fn shuffled(mut mutants: Vec<Mutant>) -> Vec<Mutant> {
    let mut state = SEED;
    for i in (1..mutants.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mutants.swap(i, ((z ^ z >> 31) % (i as u64 + 1)) as usize);
    }
    mutants
}

/// Changes the file, judges, and changes it back.
fn attempt(tree: &Path, cache: &Path, judges: &[Judge], mutant: &Mutant) -> Result<Outcome> {
    let file = tree.join(&mutant.file);
    let old = fs::read_to_string(&file)?;
    fs::write(&file, mutant.apply(&old)?)?;
    let mut outcome = Outcome::Survived;
    for judge in judges {
        outcome = judge_by(tree, cache, judge)?;
        if outcome != Outcome::Survived {
            break;
        }
    }
    fs::write(&file, old)?;
    Ok(outcome)
}

impl Mutant {
    fn apply(&self, old: &str) -> Result<String> {
        let offset = |(line, column): (usize, usize)| {
            let start: usize = old.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
            let within = old.get(start..)?.char_indices().nth(column.checked_sub(1)?)?.0;
            Some(start + within)
        };
        let (from, to) = offset(self.from).zip(offset(self.to)).context("a place outside of its file")?;
        Ok([&old[..from], &self.text, &old[to..]].concat())
    }
}

/// Builds the tests and runs them.
fn judge_by(tree: &Path, cache: &Path, judge: &Judge) -> Result<Outcome> {
    let log = fs::File::create(cache.join("last.log"))?;
    let run = |only_build: bool| -> Result<Option<bool>> {
        let mut command = Command::new("prlimit");
        if !only_build {
            command.arg(format!("--cpu={TESTS_CPU}"));
        }
        command.arg("cargo").args(if only_build { judge.build } else { judge.run }).current_dir(tree);
        // Most of the time goes into compiling.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0");
        // A lint is not a test.
        command.env("RUSTFLAGS", "--cap-lints=warn").env("CARGO_TARGET_DIR", cache.join("build"));
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        within(&mut command, if only_build { BUILD } else { TESTS })
    };
    Ok(match run(true)? {
        None | Some(false) => Outcome::Unviable,
        Some(true) => match run(false)? {
            None => Outcome::Hung,
            Some(false) => Outcome::Caught,
            Some(true) => Outcome::Survived,
        },
    })
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
