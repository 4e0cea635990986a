//! `cargo xtask flush-mutants`: leaves out each request of a TLB flush in the core, one at a time, and sees whether a test
//! notices. It takes the conformance suite on the software CPU's adversarial TLB, which forgets nothing by
//! itself, and then the crates' own tests. One that nobody notices is a failure of the command.
//!
//! Places are found by the few forms that they have ([`sites_of`]); whatever else speaks of flushing in the core has to be known
//! as machinery ([`MACHINERY`]), so that a new form is not overlooked. All of them are changed at once in a copy of the
//! tree, each to a question whether it is the one to be left out: one build serves all mutants.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{
    mutants::{copy_tree, question},
    process::{check, output, root, within},
};

/// Where requests are made.
const CORE: [&str; 2] = ["crates/hv/src", "crates/mmu/src"];
/// Modes of the software CPU in which the conformance suite judges.
const MODES: [&str; 3] = ["soft-adversarial", "soft-shadow-adversarial", "soft-nested-adversarial"];
/// Crates whose own tests judge what the suite does not notice.
const CRATES: [&str; 2] = ["rekvm-mmu", "rekvm-hv"];
/// The environment variable that says which request is left out.
const CHOSEN: &str = "REKVM_FLUSH_MUTANT";
/// A judge takes no longer than this, or hangs. (The suite's cases have limits of their own.)
const LIMIT: Duration = Duration::from_secs(300);
const SUITE_LIMIT: Duration = Duration::from_secs(1800);
/// Cases that know most of translations, asked before the whole suite.
const FIRST: [&str; 2] = ["mmu/", "dirty/"];

/// Lines that speak of flushing and request nothing, by what they contain.
const MACHINERY: &[&str] = &[
    // Definitions, and what counts and waits.
    "fn ",
    "use ",
    "struct ",
    "impl",
    "enum ",
    "pub flush: bool",
    "pub(crate) flush: bool",
    "pub(super) flush: bool",
    "pub(super) must_flush: bool",
    "pub const TLB_FLUSH",
    "FlushDue",
    "Flushes",
    "Flushed(",
    "let flushes",
    "let must_flush = self.must_flush;",
    "self.must_flush = must_flush;",
    "mem::take(&mut self.must_flush)",
    "must_flush: false",
    "flushes.needed()",
    "flushes.is_done",
    "flushes.done",
    "due.is_nothing",
    "due.fulfil(&self.open.flushes, None, flush)",
    "due.fulfil(&self.open.flushes, Some(cache), flush)",
    "TlbFlush",
    "wait_flushed",
    "flush: impl FnMut",
    // Looks at what a request set.
    "if change.flush",
    "cx)?.flush {",
    "let mut flushed",
    "flushed = true;",
    // The request is a line below.
    "fulfil(due, || {",
    "guest_flushed_page(index, gva, &vm.memory, || {",
    "guest_flushed(index, &vm.memory, || {",
    "fulfil_into(&mut self.inner.mmu.cache, due, || {",
    "if effects.flush",
    "if notes.flush",
    "flush: false",
    "flush();",
    "& request::TLB_FLUSH",
    // No translations.
    "CacheFlush",
    "CLFLUSH",
    "FLUSH_CMD",
    // Imports that go over several lines.
    "FlushTlb, Groups",
    "BackendVcpu, FlushTlb",
    "zap_all(|",
    // Lent on.
    "cx, flush)",
    "carry_out_flush",
    "self.settle(id, index,",
    "self.fulfil(due, flush);",
    "self.flushed && tables.is_used",
    "host_frame, flushed, report",
    "flushed: bool,",
    "flushed: true,",
    "mem::take(&mut self.inner.mmu.flushed)",
    "if self.flush {",
    "Flush::Rights);",
];

/// Lines of functions whose callers are all requests by themselves ([`DUTIES`] stands in for them).
const STOOD_IN_FOR: &[&str] =
    &["        shadow.fulfil(due, || self.vcpus.flush_tlbs());", "        self.fulfil(shadow, due);"];

/// Options of `flush-mutants`.
#[derive(clap::Args)]
pub struct Options {
    /// Only name the requests.
    #[arg(long)]
    list: bool,
    /// Only this one, by its number (may be repeated).
    #[arg(long = "only", value_name = "N")]
    only: Vec<usize>,
}

/// A request of a flush: bytes `from..to` of a file's line, and what they become.
#[derive(Debug, PartialEq, Eq)]
struct Site {
    line: usize,
    from: usize,
    to: usize,
    before: String,
    after: &'static str,
    /// The text of the line.
    text: String,
}

/// See the module.
pub fn flush_mutants(options: &Options) -> Result<()> {
    let cache = root().join("target/flush-mutants");
    let tree = cache.join("tree");
    let (names, changed) = plant()?;
    copy_tree(&tree, &changed)?;
    if options.list {
        names.iter().enumerate().for_each(|(n, name)| println!("{n:>3} {name}"));
        return Ok(());
    }
    let mut judges = Judges::build(&tree, &cache)?;
    let chosen = |n: &usize| options.only.is_empty() || options.only.contains(n);
    let mut survivors = Vec::new();
    for n in (0..names.len()).filter(chosen) {
        let (name, start) = (&names[n], Instant::now());
        match judges.judge(n)? {
            Some(who) => println!("{n:>3} {name}\n      noticed by {who} ({:.0?})", start.elapsed()),
            None => {
                println!("{n:>3} {name}\n      SURVIVED ({:.0?})", start.elapsed());
                survivors.push(name);
            }
        }
    }
    println!("{} requests of flushes, {} survive", names.len(), survivors.len());
    ensure!(survivors.is_empty(), "nobody notices that these are missing: {survivors:#?}");
    Ok(())
}

/// All requests, their names in the order of their numbers; and the files in which each asks whether it is left out.
fn plant() -> Result<(Vec<String>, BTreeMap<PathBuf, String>)> {
    let tree = &root();
    let (mut names, mut changed) = (Vec::new(), BTreeMap::new());
    let mut unknown = Vec::new();
    for file in sources(tree)? {
        let text = fs::read_to_string(tree.join(&file))?;
        let (sites, strange) = sites_of(&text);
        unknown.extend(strange.into_iter().map(|(line, text)| format!("{}:{line}: {text}", file.display())));
        if sites.is_empty() {
            continue;
        }
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        for site in sites {
            let line = &mut lines[site.line];
            let (head, tail) = (line[..site.from].to_owned(), line[site.to..].to_owned());
            let number = names.len().to_string();
            let (before, after) = (site.before.replace("{n}", &number), site.after.replace("{n}", &number));
            *line = format!("{head}{before}{}{after}{tail}", &site.text[site.from..site.to]);
            names.push(format!("{}:{} {}", file.display(), site.line + 1, site.text.trim()));
        }
        changed.insert(file, lines.join("\n") + "\n");
    }
    ensure!(unknown.is_empty(), "neither a request of a flush nor known machinery: {unknown:#?}");
    ensure!(!names.is_empty(), "no requests found");
    let asked = question("left_out", CHOSEN);
    for (file, more) in [("crates/platform/src/lib.rs", asked.as_str()), ("crates/hv/src/vm/shadow.rs", DUTIES)] {
        let file = PathBuf::from(file);
        let text = match changed.remove(&file) {
            Some(text) => text,
            None => fs::read_to_string(tree.join(&file))?,
        };
        changed.insert(file, text + more);
    }
    Ok((names, changed))
}

/// What is added where duties are done.
const DUTIES: &str = r#"
impl<P: Platform> VmShared<P> {
    pub(crate) fn fulfil_without(&self, n: usize, shadow: &Shadow<P>, due: FlushDue<P>) {
        shadow.fulfil(due, || if !platform::left_out(n) { self.vcpus.flush_tlbs() });
    }
    pub(crate) fn settle_without<T>(
        &self,
        n: usize,
        shadow: &Shadow<P>,
        change: (Result<T, ShadowError>, FlushDue<P>),
    ) -> Result<T, Errno> {
        let (result, due) = change;
        self.fulfil_without(n, shadow, due);
        Ok(result?)
    }
}
"#;

/// Source files of the core that are no tests, in the order of their names.
fn sources(tree: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = CORE.iter().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(tree.join(&folder))? {
            let entry = entry?;
            let (path, name) = (folder.join(entry.file_name()), entry.file_name());
            if entry.file_type()?.is_dir() {
                if name != "tests" && name != "testing" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") && name != "tests.rs" {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The requests of a file, and lines of which nobody knows what they are.
fn sites_of(text: &str) -> (Vec<Site>, Vec<(usize, String)>) {
    let (mut sites, mut strange) = (Vec::new(), Vec::new());
    let mut lines = text.lines().enumerate().peekable();
    while let Some((n, line)) = lines.next() {
        let code = line.trim();
        let tests_follow = |next: &str| next.trim_start().starts_with("mod ") && next.ends_with('{');
        if code == "#[cfg(test)]" && lines.peek().is_some_and(|(_, next)| tests_follow(next)) {
            break;
        }
        if code.starts_with("//")
            || !["flush", "fulfil", "settle("].iter().any(|word| code.to_lowercase().contains(word))
        {
            continue;
        }
        match request(line) {
            _ if STOOD_IN_FOR.contains(&line) => {}
            Some((from, to, before, after)) => {
                sites.push(Site { line: n, from, to, before: before.to_owned(), after, text: line.to_owned() });
            }
            None if MACHINERY.iter().any(|known| line.contains(known)) => {}
            None => strange.push((n + 1, code.to_owned())),
        }
    }
    (sites, strange)
}

type Change = (usize, usize, &'static str, &'static str);

/// What requests a flush in `line`, and how that is made to ask whether it is left out.
fn request(line: &str) -> Option<Change> {
    let start = line.len() - line.trim_start().len();
    let code = line.trim();
    const IF: (&str, &str) = ("if !platform::left_out({n}) { ", " }");
    let whole = Some((start, line.len(), IF.0, IF.1));
    // Statements.
    let request_bits = code.contains("request_all(request::TLB_FLUSH") || code.contains(".request(request::TLB_FLUSH");
    let sets =
        code.contains("must_flush = true;") || code.contains("must_flush |= ") || code == "self.notes.flush = true;";
    let guests = code.ends_with("flush_guest();") || code == "self.mmu.flushed = true;";
    let by_a_vcpu = code.contains(".flush_tlbs_by(");
    if code.ends_with(';') && (code.contains(".flush(FlushTlb::") || request_bits || sets || guests || by_a_vcpu) {
        return whole;
    }
    // Calls.
    for call in [".flush_tlbs()", ".flush_physical(cx)"] {
        if let Some(at) = line.find(call) {
            let object = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '(' | ')');
            let from = line[..at].rfind(|c| !object(c)).map_or(0, |i| i + 1);
            return Some((from, at + call.len(), "(if !platform::left_out({n}) { ", " })"));
        }
    }
    // Flushes that the caller of a section under the MMU lock is lent.
    for lent in ["&mut *flush)", "&mut flush)"] {
        if let Some(at) = line.find(lent)
            && (code.contains("fulfil(") || code.contains("fulfil_into("))
        {
            return Some((at, at + lent.len() - 1, "|| if !platform::left_out({n}) { (", ")() }"));
        }
    }
    // What the shadow tables leave to the core: done, but for the flush.
    for duty in [".settle(shadow, ", ".fulfil(shadow, "] {
        if let Some(at) = line.find(duty) {
            let at = at + ".settle".len();
            return Some((at, at + 1, "_without", "{n}, "));
        }
    }
    // Answers.
    if let Some(at) = line.find(" flush: ").map(|at| at + " flush: ".len()) {
        let rest = &line[at..];
        let end = rest.find([',', '}']).unwrap_or(rest.len());
        let value = rest[..end].trim();
        if !matches!(value, "bool" | "false") && !value.contains("impl ") {
            return Some((at, at + value.len(), "!platform::left_out({n}) && (", ")"));
        }
    }
    None
}

/// The case that the suite tells the failure of.
fn failed_case(line: &str) -> Option<&str> {
    line.strip_prefix("not ok ")?.split_once(" - ")?.1.split(" # ").next()
}

/// The test that a test program tells the failure of.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// What has been built to judge.
struct Judges {
    suite: PathBuf,
    /// Test programs of [`CRATES`].
    tests: Vec<PathBuf>,
    log: PathBuf,
    tree: PathBuf,
    /// What each judge finds with every request in its place, once it has been asked.
    known: BTreeMap<usize, Vec<String>>,
}

impl Judges {
    fn build(tree: &Path, cache: &Path) -> Result<Self> {
        let build = cache.join("build");
        let cargo = || {
            let mut command = Command::new("cargo");
            command.current_dir(tree).env("CARGO_TARGET_DIR", &build).env("CARGO_PROFILE_DEV_DEBUG", "0");
            // A lint is not a test.
            command.env("RUSTFLAGS", "--cap-lints=warn");
            command
        };
        eprintln!("xtask: building the suite and the tests with every request in question");
        check(cargo().args(["build", "--quiet", "--package", "rekvm-conformance"]))?;
        let mut command = cargo();
        command.args(["test", "--no-run", "--quiet", "--lib", "--tests", "--message-format=json"]);
        CRATES.iter().for_each(|name| {
            command.args(["--package", name]);
        });
        let messages = output(&mut command)?;
        let tests = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let tests =
            tests.filter(|m| m["profile"]["test"] == true).filter_map(|m| m["executable"].as_str().map(PathBuf::from));
        let tests: Vec<_> = tests.collect();
        ensure!(!tests.is_empty(), "no test programs were built");
        let suite = build.join("debug/conformance");
        Ok(Self { suite, tests, log: cache.join("last.log"), tree: tree.to_owned(), known: BTreeMap::new() })
    }

    /// Who notices that request `n` is missing.
    fn judge(&mut self, n: usize) -> Result<Option<String>> {
        for (number, judge) in self.all().iter().enumerate() {
            if !self.known.contains_key(&number) {
                let known = self.learn(judge)?;
                self.known.insert(number, known);
            }
            let failed = self.run(judge, Some(n))?;
            if let Some(name) = failed.into_iter().find(|name| !self.known[&number].contains(name)) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// What fails with every request in its place says nothing later. Of the cases that are made for this none may.
    fn learn(&self, judge: &Judge) -> Result<Vec<String>> {
        let failed = self.run(judge, None)?;
        ensure!(judge.tolerant || failed.is_empty(), "fail with every flush in its place: {failed:?}");
        failed.iter().for_each(|name| eprintln!("xtask: not asked, as it fails anyway: {name}"));
        Ok(failed)
    }

    /// The cases that are made for this first, the whole suite last.
    fn all(&self) -> Vec<Judge> {
        let suite = |filter: &str, tolerant| {
            MODES.map(|mode| {
                let arguments = ["run", "--format", "tap", "--on", mode, "--filter", filter].map(String::from).to_vec();
                let (program, limit) = (self.suite.clone(), SUITE_LIMIT);
                Judge { program, arguments, name: mode.into(), failed: failed_case, tolerant, limit }
            })
        };
        let tests = self.tests.iter().map(|program| {
            let file = program.file_name().unwrap_or_default().to_string_lossy();
            let name = file.rsplit_once('-').map_or(&*file, |(name, _)| name).to_owned();
            let (program, arguments) = (program.clone(), Vec::new());
            Judge { program, arguments, name, failed: failed_test, tolerant: false, limit: LIMIT }
        });
        let first = FIRST.iter().flat_map(|folder| suite(folder, true));
        suite("flush/", false).into_iter().chain(tests).chain(first).chain(suite("", true)).collect()
    }

    /// Runs a judge: who fails in it.
    fn run(&self, judge: &Judge, n: Option<usize>) -> Result<Vec<String>> {
        let log = fs::File::create(&self.log)?;
        let mut command = Command::new(&judge.program);
        command.args(&judge.arguments).current_dir(&self.tree).env_remove(CHOSEN).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        if let Some(n) = n {
            command.env(CHOSEN, n.to_string());
        }
        let ended = within(&mut command, judge.limit)?;
        let text = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        let mut failed: Vec<_> =
            text.lines().filter_map(judge.failed).map(|name| format!("{name} on {}", judge.name)).collect();
        if ended != Some(true) && failed.is_empty() {
            failed.push(format!("{} that {}", judge.name, if ended.is_none() { "hangs" } else { "ends early" }));
        }
        Ok(failed)
    }
}

/// Something that is run with a request left out.
struct Judge {
    program: PathBuf,
    arguments: Vec<String>,
    name: String,
    /// The test or case whose failure a line of output tells.
    failed: fn(&str) -> Option<&str>,
    /// It may fail with every request in its place.
    tolerant: bool,
    limit: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_speaks_of_flushing_in_the_core_is_known() {
        let mut requests = 0;
        for file in sources(&root()).unwrap() {
            let (sites, strange) = sites_of(&fs::read_to_string(root().join(&file)).unwrap());
            assert_eq!(strange, [], "{}", file.display());
            requests += sites.len();
        }
        assert!(requests > 25, "{requests}");
    }

    #[test]
    fn requests_are_told_from_machinery() {
        for (line, expected) in [
            ("    vm.settle(shadow, change)?;", Some("    vm.settle_without({n}, shadow, change)?;")),
            (
                "    self.cpu.flush(FlushTlb::All);",
                Some("    if !platform::left_out({n}) { self.cpu.flush(FlushTlb::All); }"),
            ),
            (
                "  let e = s.changed(cx, || vm.vcpus.flush_tlbs());",
                Some("  let e = s.changed(cx, || (if !platform::left_out({n}) { vm.vcpus.flush_tlbs() }));"),
            ),
            ("    self.must_flush |= had;", Some("    if !platform::left_out({n}) { self.must_flush |= had; }")),
            (
                "    self.fulfil(due, &mut *flush);",
                Some("    self.fulfil(due, || if !platform::left_out({n}) { (&mut *flush)() });"),
            ),
            (
                "    Ok(Change { kind, flush: kind != Kind::Create, generation })",
                Some("    Ok(Change { kind, flush: !platform::left_out({n}) && (kind != Kind::Create), generation })"),
            ),
            ("    if change.flush {", None),
            ("    pub flush: bool,", None),
        ] {
            let (sites, strange) = sites_of(line);
            assert_eq!(strange, []);
            let changed = sites
                .first()
                .map(|s| [&line[..s.from], &s.before, &line[s.from..s.to], s.after, &line[s.to..]].concat());
            assert_eq!(changed.as_deref(), expected);
        }
        assert_eq!(sites_of("self.flush_somehow();").1.len(), 1, "an unknown form is told");
        // A file of tests does not end the code, a module does.
        assert_eq!(sites_of("#[cfg(test)]\nmod tests;\nself.flush_somehow();").1.len(), 1);
        assert_eq!(sites_of("#[cfg(test)]\nmod tests {\nself.flush_somehow();").1.len(), 0);
    }
}
