//! The same tests in the lab: QEMU and the guests are carried into L1, one after the other runs there on Linux's module, and then all
//! of them on ours in another L1. A test that takes L1 down costs itself and one more boot.
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Options, arguments,
    compare::{Outcome, Peer, Verdict},
    config::{self, Test},
    logs, row,
    source::{self, Built},
};
use crate::{
    clients,
    lab::{self, Cpu, Job},
    module,
};

/// What QEMU loads for these guests.
const FIRMWARE: [&str; 3] = ["bios-256k.bin", "kvmvapic.bin", "multiboot_dma.bin"];

/// MiB of L1.
const MEMORY: u32 = 1536;

/// All of L1's life.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// Before and behind a test, in what L1's program writes.
const BEGIN: &str = "REKVM-TEST-BEGIN";
const END: &str = "REKVM-TEST-END";

/// What busybox's `timeout -s KILL` answers for a program that it has killed.
const KILLED: i32 = 137;

/// Runs what `options` select on both modules.
pub fn compare(options: &Options, cpu: Cpu) -> Result<()> {
    let built = source::find(&options.built)?;
    let tests = config::parse(&fs::read_to_string(built.source.join("x86/unittests.cfg"))?);
    let peers: Vec<_> = options.peers().collect();
    let ours = module::for_lab(options.module.as_deref(), false)?.to_string_lossy().into_owned();
    let runs = ["linux", &ours].map(|module| Runs { options, cpu, module, built: &built, tests: &tests });
    let [linux, ours] = [runs[0].all(&peers)?, runs[1].all(&peers)?];
    let mut table = String::from("bits\ttest\tresult\tchecks\tlinux\tlinux_checks\tverdict\n");
    let mut worse = Vec::new();
    for ((peer, linux), ours) in peers.iter().zip(linux).zip(ours) {
        let peer = Peer { result: linux.result, checks: linux.checks, ..*peer };
        let verdict = peer.verdict(&ours);
        table.push_str(&row(&peer, &ours, verdict));
        table.push('\n');
        if verdict == Verdict::Worse {
            worse.push(format!("{} ({} bits)", peer.name, peer.bits));
        }
    }
    print!("{}", table.replace('\t', "  "));
    if let Some(path) = &options.table {
        fs::write(path, &table).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{} tests: {} worse than on Linux's module", peers.len(), worse.len());
    ensure!(worse.is_empty(), "worse than on Linux's module: {}", worse.join("; "));
    Ok(())
}

/// The tests on one module.
struct Runs<'a> {
    options: &'a Options,
    cpu: Cpu,
    module: &'a str,
    built: &'a Built,
    tests: &'a [Test],
}

impl Runs<'_> {
    fn all(&self, peers: &[Peer]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        while outcomes.len() < peers.len() {
            let left = &peers[outcomes.len()..];
            let (mut said, ended) = (Said::default(), outcomes.len());
            let outcome = lab::run(&self.job(left)?, &mut |_, bytes| {
                said.take(bytes, &mut |status, text| {
                    let outcome = Outcome::of(status, text);
                    if let Some(peer) = peers.get(outcomes.len()) {
                        self.keep(peer, &outcome, text);
                    }
                    outcomes.push(outcome);
                });
            })?;
            let complaints = outcome.said();
            for line in lab::complaints(&complaints) {
                eprintln!("xtask: L1's kernel complains: {line}");
            }
            if outcomes.len() < peers.len() {
                ensure!(said.open.is_some() || outcomes.len() > ended, "L1 has run no test: {}", outcome.ending);
                // The one that ran has ended L1.
                eprintln!("xtask: {} on {}: {}", peers[outcomes.len()].name, self.module, outcome.ending);
                outcomes.push(Outcome::CRASH);
            }
        }
        Ok(outcomes)
    }

    /// Says how a test has ended, and keeps what it has written: the table comes when all of them have.
    fn keep(&self, peer: &Peer, outcome: &Outcome, text: &str) {
        let module = if self.module == "linux" { "linux" } else { "rekvm" };
        eprintln!("{} bits, {}, {module}: {} {}", peer.bits, peer.name, outcome.result, outcome.checks);
        let log = format!("{}-{module}-{}-{}.log", self.cpu.name(), peer.bits, peer.name);
        if let Err(why) = logs().and_then(|logs| Ok(fs::write(logs.join(&log), text)?)) {
            eprintln!("xtask: {log} is not kept: {why:#}");
        }
    }

    fn job(&self, peers: &[Peer]) -> Result<Job> {
        let mut files = clients::lab::qemu(&FIRMWARE)?;
        let mut script = String::new();
        for peer in peers {
            let test = self.tests.iter().find(|test| test.name == peer.name);
            let test = test.with_context(|| format!("its unittests.cfg knows no test {}", peer.name))?;
            let flat = format!("/lab/{}/{}", peer.bits, test.file);
            files.push((self.flat(peer.bits, test), flat.clone()));
            let words: Vec<_> = arguments(test, Path::new(&flat), "kvm").iter().map(|word| quoted(word)).collect();
            let (limit, words) = (self.options.limit, words.join(" "));
            script += &format!(
                "echo {BEGIN}; timeout -s KILL {limit} qemu-system-x86_64 {words} </dev/null; echo {END} $?\n"
            );
        }
        let words = ["l1:/bin/busybox", "sh", "-c", &script].map(str::to_owned);
        let mut job = Job::new(self.cpu, words.into());
        (job.memory, job.timeout, job.files) = (MEMORY, LONGEST, files);
        self.module.clone_into(&mut job.module);
        Ok(job)
    }

    fn flat(&self, bits: u32, test: &Test) -> PathBuf {
        self.built.folder(bits).join("x86").join(&test.file)
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What L1's program has written.
#[derive(Default)]
struct Said {
    line: Vec<u8>,
    /// Of the test that runs.
    open: Option<String>,
}

impl Said {
    /// `ended` gets QEMU's status (None: it was given up) and what the guest printed, of each test that has ended.
    fn take(&mut self, bytes: &[u8], ended: &mut dyn FnMut(Option<i32>, &str)) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end_matches('\r').to_owned();
            if line == BEGIN {
                self.open = Some(String::new());
            } else if let Some((before, status)) = line.split_once(END)
                && let Some(mut said) = self.open.take()
            {
                // The guest's last line may have no end.
                said += before;
                let status = status.trim().parse().ok().filter(|status| *status != KILLED);
                ended(status, &said);
            } else if let Some(said) = &mut self.open {
                said.push_str(&line);
                said.push('\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::compare::Ended, *};

    #[test]
    fn what_l1_says_is_taken_apart() {
        let (mut said, mut outcomes) = (Said::default(), Vec::new());
        let text = format!("x\n{BEGIN}\r\nPASS: a\r\nPASS: b{END} 1\n{BEGIN}\nPASS: a\n{END} 137\n{BEGIN}\nFAIL: c\n");
        for part in text.as_bytes().chunks(5) {
            said.take(part, &mut |status, text| outcomes.push(Outcome::of(status, text)));
        }
        let results: Vec<_> = outcomes.iter().map(|o| (o.result, o.checks.to_string())).collect();
        assert_eq!(results, [(Ended::Pass, "2/0/0".into()), (Ended::Timeout, "1/0/0".into())]);
        assert!(said.open.is_some());
    }

    #[test]
    fn words_stay_words_in_the_script() {
        assert_eq!(quoted("-cpu max,+x it's"), "'-cpu max,+x it'\\''s'");
    }
}
