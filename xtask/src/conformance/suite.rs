//! What the suite's program says as it runs, read line by line: its TAP output, in which a comment names each case before it
//! runs and a YAML block after its result says the rest.

/// One case that has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Case {
    pub name: String,
    /// `pass`, `FAIL`, `known`, `not run`, `lacks` or `n/a`.
    pub word: String,
    /// The first lines of its failure, or why it is not simply passed or failed.
    pub note: String,
    /// The project's capabilities that it shows.
    pub rows: String,
    pub milliseconds: u64,
    /// All that it wrote, if it failed.
    pub details: Vec<String>,
}

/// The word of a case that failed.
pub const FAIL: &str = "FAIL";

/// All cases that have ended so far, in the suite's order, and the one that runs.
#[derive(Default)]
pub struct Results {
    pub cases: Vec<Case>,
    /// How many cases there are to run in all, when that is known.
    pub total: Option<usize>,
    running: Option<String>,
    /// The last line, not complete yet.
    line: Vec<u8>,
    /// The case whose block is being read.
    open: Option<Case>,
}

impl Results {
    /// Takes what the program has written; `ended` is told of each case that ends.
    pub fn take(&mut self, bytes: &[u8], ended: &mut dyn FnMut(&Case)) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            self.line(String::from_utf8_lossy(&line).trim_end_matches('\r'), ended);
        }
    }

    fn line(&mut self, line: &str, ended: &mut dyn FnMut(&Case)) {
        if let Some(case) = &mut self.open {
            if let Some(said) = line.strip_prefix("    ") {
                case.details.push(said.to_owned());
                return;
            }
            match line.trim_start().split_once(": ") {
                Some(("rows", rows)) => case.rows = rows.to_owned(),
                Some(("duration_ms", time)) => case.milliseconds = time.parse().unwrap_or(0),
                _ => {}
            }
            if line == "  ..." {
                self.close(ended);
            }
            return;
        }
        if let Some(name) = line.strip_prefix("# run ") {
            self.running = Some(name.to_owned());
        } else if let Some(count) = line.strip_prefix("1..") {
            // Of a suite that goes on after a case, only the first count is of all.
            self.total = self.total.or(count.parse().ok());
        } else {
            self.open = result(line);
        }
    }

    /// The case that is being read is all there.
    fn close(&mut self, ended: &mut dyn FnMut(&Case)) {
        if let Some(case) = self.open.take() {
            ended(&case);
            self.cases.push(case);
            self.running = None;
        }
    }

    /// The program will say no more, for the reason `why`: the case that was running, if one was, has failed with it.
    pub fn cut_off(&mut self, why: &str, ended: &mut dyn FnMut(&Case)) {
        self.line.clear();
        // A result that has come counts, whatever is missing of its block.
        self.close(ended);
        if let Some(name) = self.running.take() {
            let (note, details) = (why.to_owned(), vec![why.to_owned()]);
            self.open = Some(Case { name, word: FAIL.into(), note, details, ..Case::default() });
            self.close(ended);
        }
    }

    /// How many cases have not been reached.
    pub fn missing(&self) -> usize {
        self.total.unwrap_or(0).saturating_sub(self.cases.len())
    }

    /// How many cases ended with `word`.
    pub fn count(&self, word: &str) -> usize {
        self.cases.iter().filter(|case| case.word == word).count()
    }

    /// Whether every case has ended and none failed.
    pub fn all_well(&self) -> bool {
        self.total.is_some() && self.missing() == 0 && self.count(FAIL) == 0
    }
}

/// The case of a result's line.
fn result(line: &str) -> Option<Case> {
    let (rest, fine) = match line.strip_prefix("not ok ") {
        Some(rest) => (rest, false),
        None => (line.strip_prefix("ok ")?, true),
    };
    let (_, named) = rest.split_once(" - ")?;
    let (name, note) = named.split_once(" # ").unwrap_or((named, ""));
    let (word, note) = match note.strip_prefix("SKIP ") {
        Some(skip) if fine => skip.split_once(": ").unwrap_or((skip, "")),
        _ => (if fine { "pass" } else { FAIL }, note),
    };
    Some(Case { name: name.trim().to_owned(), word: word.to_owned(), note: note.to_owned(), ..Case::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "TAP version 13\n1..5\n# run device/a\nok 1 - device/a\n  ---\n  rows: A01 A02\n  \
        duration_ms: 12\n  said: |\n  ...\n# run pio/b\nnot ok 2 - pio/b # left: 1; right: 2\n  ---\n  rows: A08\n  \
        duration_ms: 3\n  said: |\n    left: 1\n     right: 2\n  ...\n# run mmio/c\n\
        ok 3 - mmio/c # SKIP not run: fault of the emulator below: x # y\n  ---\n  ...\n\
        # run d\nok 4 - d # SKIP lacks: KVM_CAP_X\n  ---\n  ...\n";

    fn read(output: &str) -> Results {
        let mut results = Results::default();
        let mut told = Vec::new();
        // However it is cut.
        for piece in output.as_bytes().chunks(7) {
            results.take(piece, &mut |case| told.push(case.clone()));
        }
        assert_eq!(told, results.cases);
        results
    }

    fn words(results: &Results) -> Vec<(&str, &str)> {
        results.cases.iter().map(|case| (case.name.as_str(), case.word.as_str())).collect()
    }

    #[test]
    fn every_case_is_read_with_all_that_is_said_of_it() {
        let results = read(OUTPUT);
        assert_eq!(words(&results), [("device/a", "pass"), ("pio/b", "FAIL"), ("mmio/c", "not run"), ("d", "lacks")]);
        assert_eq!((results.cases[0].rows.as_str(), results.cases[0].milliseconds), ("A01 A02", 12));
        assert_eq!(results.cases[1].note, "left: 1; right: 2");
        assert_eq!(results.cases[1].details, ["left: 1", " right: 2"]);
        assert_eq!(results.cases[2].note, "fault of the emulator below: x # y");
        assert_eq!((results.total, results.missing()), (Some(5), 1));
        assert!(!results.all_well());
    }

    #[test]
    fn a_case_that_takes_the_machine_down_has_failed_and_the_rest_goes_on() {
        let mut results = read(&format!("{OUTPUT}# run e\nok 5"));
        results.cut_off("L1 hung", &mut |_| {});
        assert_eq!(results.cases.last().map(|case| (case.name.as_str(), case.note.as_str())), Some(("e", "L1 hung")));
        assert_eq!((results.cases.len(), results.missing(), results.count(FAIL)), (5, 0, 2));
        // The next machine runs what comes after it, and counts only that.
        results.total = Some(6);
        results.take(b"TAP version 13\n1..1\n# run f\nok 1 - f\n  ---\n  ...\n", &mut |_| {});
        assert_eq!((results.total, results.missing(), results.count("pass")), (Some(6), 0, 2));
    }

    #[test]
    fn a_result_that_came_before_the_end_counts() {
        let mut results = read("1..2\n# run a\nok 1 - a\n  ---\n  rows: A");
        results.cut_off("L1 hung", &mut |_| {});
        assert_eq!(words(&results), [("a", "pass")]);
        // Nothing was running: nobody is blamed.
        results.cut_off("L1 hung", &mut |_| {});
        assert_eq!(results.cases.len(), 1);
    }
}
