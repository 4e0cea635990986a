//! A table of boots: a line for each guest that is booted in each way, with its console in a file.
use std::{
    collections::VecDeque,
    fmt::Display,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::process::target_dir;

/// How many lines of a failed boot are shown.
const LAST: usize = 15;

/// The table so far.
pub struct BootTable {
    logs: PathBuf,
    all: usize,
    failed: usize,
    left_out: usize,
}

impl BootTable {
    /// Prints the heading; the consoles go to files in the folder `logs` of the build directory.
    pub fn new(logs: &str, heading: &dyn Display) -> Result<Self> {
        let logs = target_dir().join(logs);
        fs::create_dir_all(&logs)?;
        println!("{heading}result");
        Ok(Self { logs, all: 0, failed: 0, left_out: 0 })
    }

    /// Boots by `boot`, which is given what takes the console's lines and answers what is to be said of it, and prints the line
    /// that begins with `what`. The console's file is called `log`.
    pub fn boot(
        &mut self,
        what: &dyn Display,
        log: &str,
        boot: impl FnOnce(&mut dyn FnMut(&str)) -> Result<String>,
    ) -> Result<()> {
        let path = self.logs.join(format!("{log}.log"));
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut last = VecDeque::new();
        // The log is for people; a full disk shows in what comes next.
        let mut sink = |line: &str| {
            let _ = file.write_all(line.as_bytes());
            last.push_back(line.trim_end().to_owned());
            if last.len() > LAST {
                last.pop_front();
            }
        };
        print!("{what}");
        let _ = std::io::stdout().flush();
        self.all += 1;
        match boot(&mut sink) {
            Ok(said) => println!("ok {said}"),
            Err(why) => {
                self.failed += 1;
                println!("FAIL: {why:#}; its console, of which this is the end, is {}", path.display());
                last.iter().for_each(|line| println!("    {line}"));
            }
        }
        Ok(())
    }

    /// Prints a line for a boot that cannot be, and why.
    pub fn leave_out(&mut self, what: &dyn Display, why: &str) {
        self.left_out += 1;
        println!("{what}not run: {why}");
    }

    /// Prints the counts; an error if a boot failed.
    pub fn end(self) -> Result<()> {
        let Self { all, failed, left_out, .. } = self;
        println!("{all} boots: {} passed, {failed} failed; {left_out} not run", all - failed);
        ensure!(failed == 0, "{failed} of {all} boots failed");
        Ok(())
    }
}

/// What there is to say of a boot: how long it took.
pub fn took(time: Duration) -> String {
    format!("in {:.0} s", time.as_secs_f64())
}
