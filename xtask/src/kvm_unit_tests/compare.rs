//! Results of tests, here and on Linux's kvm-amd.
use std::fmt;

/// bits, name, result and passed/failed/skipped checks on Linux 6.1's kvm-amd with nested paging (in QEMU 7.2's TCG, 60 s a test).
const TABLE: &str = include_str!("kvm-unit-tests.tsv");

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Pass,
    Fail,
    Skip,
    Timeout,
    /// It takes the machine below down.
    Crash,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
            Self::Timeout => "TIMEOUT",
            Self::Crash => "-",
        })
    }
}

/// Checks within a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}/{}", self.passed, self.failed, self.skipped))
    }
}

/// What a test did here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub result: Ended,
    pub checks: Checks,
}

impl Outcome {
    /// The machine below ended.
    pub const CRASH: Self = Self { result: Ended::Crash, checks: Checks { passed: 0, failed: 0, skipped: 0 } };

    /// From QEMU's exit status (None: it was given up) and what the guest printed.
    pub fn of(status: Option<i32>, output: &str) -> Self {
        // Some of the oldest print the word alone.
        let is =
            |line: &str, word| line.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
        let count = |word| output.lines().filter(|line| is(line, word)).count() as u32;
        let checks = Checks { passed: count("PASS"), failed: count("FAIL"), skipped: count("SKIP") };
        // The guest's status n leaves QEMU as 2n + 1; 38, and so 77, says that nothing applies.
        let result = match status {
            None => Ended::Timeout,
            Some(1) => Ended::Pass,
            Some(77) => Ended::Skip,
            Some(_) => Ended::Fail,
        };
        Self { result, checks }
    }
}

/// What a test does on Linux's kvm-amd.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub bits: u32,
    pub name: &'static str,
    pub result: Ended,
    pub checks: Checks,
}

/// Beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    Better,
    Worse,
    /// Of interfaces that are not offered.
    NotCompared,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::NotCompared => "not compared",
        })
    }
}

impl Peer {
    /// Not those of Hyper-V's interface and of nested virtualization.
    pub fn compared(&self) -> bool {
        !["hyperv_", "svm", "vmx"].iter().any(|of| self.name.starts_with(of))
    }

    /// What passes there has to pass here, with as many checks; where it does not, as many have to.
    pub fn verdict(&self, outcome: &Outcome) -> Verdict {
        let fewer = outcome.checks.passed < self.checks.passed;
        let passed = outcome.result == Ended::Pass;
        if !self.compared() {
            Verdict::NotCompared
        } else if fewer || self.result == Ended::Pass && !passed {
            Verdict::Worse
        } else if passed && self.result != Ended::Pass || outcome.checks.passed > self.checks.passed {
            Verdict::Better
        } else {
            Verdict::Same
        }
    }
}

/// The table.
pub fn peers() -> impl Iterator<Item = Peer> {
    TABLE.lines().skip(1).filter_map(peer)
}

fn peer(line: &'static str) -> Option<Peer> {
    let mut fields = line.split('\t');
    let (bits, name, result, checks) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let result = match result {
        "PASS" => Ended::Pass,
        "FAIL" => Ended::Fail,
        "SKIP" => Ended::Skip,
        "TIMEOUT" => Ended::Timeout,
        _ => Ended::Crash,
    };
    let mut numbers = checks.split('/').map(|n| n.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let checks = Checks { passed: next(), failed: next(), skipped: next() };
    Some(Peer { bits: bits.parse().ok()?, name, result, checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_counted_by_their_lines() {
        let output = "PASS: a\nPASS\nPASSED\nFAIL: b\n PASS: c\nSKIP: d\n";
        assert_eq!(Outcome::of(Some(3), output).checks, Checks { passed: 2, failed: 1, skipped: 1 });
    }

    fn outcome(status: i32, passed: u32) -> Outcome {
        Outcome::of(Some(status), &"PASS: x\n".repeat(passed as usize))
    }

    #[test]
    fn the_table_can_be_read() {
        let all: Vec<Peer> = peers().collect();
        assert_eq!(all.len(), TABLE.lines().count() - 1);
        let ioapic = all.iter().find(|p| p.name == "ioapic").expect("the table has it");
        assert_eq!((ioapic.bits, ioapic.result, ioapic.checks.passed), (64, Ended::Pass, 30));
    }

    #[test]
    fn fewer_checks_are_worse_whatever_the_result() {
        let peer =
            |result, passed| Peer { bits: 64, name: "x", result, checks: Checks { passed, ..Checks::default() } };
        for (there, passed, status, here, verdict) in [
            (Ended::Pass, 3, 1, 3, Verdict::Same),
            (Ended::Pass, 3, 1, 2, Verdict::Worse),
            (Ended::Pass, 0, 3, 0, Verdict::Worse),
            (Ended::Pass, 3, 3, 5, Verdict::Worse),
            (Ended::Pass, 0, 77, 0, Verdict::Worse),
            (Ended::Fail, 3, 3, 3, Verdict::Same),
            (Ended::Fail, 3, 3, 2, Verdict::Worse),
            (Ended::Timeout, 3, 1, 4, Verdict::Better),
            (Ended::Skip, 0, 1, 4, Verdict::Better),
        ] {
            assert_eq!(
                peer(there, passed).verdict(&outcome(status, here)),
                verdict,
                "{there} {passed} {status} {here}"
            );
        }
    }
}
