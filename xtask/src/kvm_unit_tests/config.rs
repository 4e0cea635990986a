//! `unittests.cfg`: which guest a test is, and with which arguments QEMU and the guest start.
use std::time::{SystemTime, UNIX_EPOCH};

/// A test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Test {
    /// The section's name.
    pub name: String,
    /// The flat file.
    pub file: String,
    /// Processors.
    pub smp: u32,
    /// The guest's command line as it stands there.
    pub args: String,
    /// More arguments of QEMU's.
    pub qemu: Vec<String>,
}

impl Test {
    /// The guest's command line for a start now: a guest may be told the time.
    pub fn command_line(&self) -> String {
        self.args.replace("`date +%s`", &now())
    }
}

/// All tests of the file.
pub fn parse(text: &str) -> Vec<Test> {
    let mut tests: Vec<Test> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            tests.push(Test { name: name.to_owned(), smp: 1, ..Test::default() });
            continue;
        }
        let (Some(test), Some((key, value))) = (tests.last_mut(), line.split_once('=')) else { continue };
        let value = unquote(value.trim());
        match key.trim() {
            "file" => value.clone_into(&mut test.file),
            "smp" => test.smp = value.parse().unwrap_or(1),
            "test_args" => value.clone_into(&mut test.args),
            "qemu_params" | "extra_params" => test.qemu = value.split_whitespace().map(str::to_owned).collect(),
            _ => {}
        }
    }
    tests
}

fn unquote(value: &str) -> &str {
    let inner = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

/// Seconds since 1970.
fn now() -> String {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_become_tests() {
        let text = "# comment\n[a]\nfile = a.flat\nsmp = 2\nqemu_params = -cpu max,+x -m 4g\n\n[b]\nfile = b.flat\n\
                    test_args = \"one `date +%s`\"\n[c]\ntest_args = 'two'\n";
        let tests = parse(text);
        assert_eq!((tests.len(), tests[0].smp, tests[1].smp), (3, 2, 1));
        assert_eq!(tests[0].qemu, ["-cpu", "max,+x", "-m", "4g"]);
        let line = tests[1].command_line();
        assert!(line.starts_with("one 1") && !line.contains('`'));
        assert_eq!((tests[0].file.as_str(), tests[2].args.as_str()), ("a.flat", "two"));
    }
}
