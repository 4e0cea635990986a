//! Time as the emulator has it: what passes while it waits for a processor of a busy machine does not count. So a bound on
//! L1's silence says something about L1, and nothing about what else runs here.
use std::{
    collections::HashMap,
    fs,
    time::{Duration, Instant},
};

/// How often the kernel is asked how long the emulator has waited.
const REFRESH: Duration = Duration::from_secs(1);

/// The clock of one emulator.
pub struct Clock {
    process: u32,
    start: Instant,
    asked: Option<Instant>,
    /// How long the emulator has waited, as far as known.
    waited: Duration,
    last: Duration,
}

impl Clock {
    /// Of `process` and those that it has started.
    pub fn of(process: u32) -> Self {
        Self { process, start: Instant::now(), asked: None, waited: Duration::ZERO, last: Duration::ZERO }
    }

    /// How long the emulator has existed, without the time in which it waited for a processor.
    pub fn now(&mut self) -> Duration {
        if self.asked.is_none_or(|asked| asked.elapsed() > REFRESH) {
            self.asked = Some(Instant::now());
            self.waited = self.waited.max(waited(self.process));
        }
        // It never goes back, though the two times are not taken at once.
        self.last = self.last.max(self.start.elapsed().saturating_sub(self.waited));
        self.last
    }
}

/// How long that thread of `process` and its descendants which has waited most has been ready to run without running. A
/// kernel that does not count it says nothing, and then all time counts.
fn waited(process: u32) -> Duration {
    let mut longest = 0;
    for process in family(process) {
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
        for thread in threads.flatten() {
            // Time on a processor, time waited for one, both in nanoseconds, and how often.
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let time = text.split(' ').nth(1).and_then(|time| time.parse().ok()).unwrap_or(0);
            longest = longest.max(time);
        }
    }
    Duration::from_nanos(longest)
}

/// `process` and its descendants.
fn family(process: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything; the state and the parent follow it.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![process];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        family.extend(children.remove(parent).unwrap_or_default());
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_and_those_it_started_are_a_family() {
        // The shell says that the other runs, so that it is there when we look.
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut line = String::new();
        let out = shell.stdout.take().expect("its output");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("a line");
        let sleep: u32 = line.trim().parse().expect("a number");
        let found = family(shell.id());
        let _ = Command::new("kill").arg(sleep.to_string()).status();
        let _ = shell.wait();
        assert_eq!(found, [shell.id(), sleep]);
    }

    #[test]
    fn time_does_not_go_back_and_is_never_more_than_what_passed() {
        let (start, mut clock) = (Instant::now(), Clock::of(std::process::id()));
        let mut last = Duration::ZERO;
        while start.elapsed() < Duration::from_millis(50) {
            let now = clock.now();
            assert!(now >= last && now <= start.elapsed());
            last = now;
        }
    }
}
