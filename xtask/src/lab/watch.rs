//! Follows L1 through its two serial ports until its program ends or something goes wrong, and says which.
use std::{
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::ExitStatus,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use rekvm_lab_init::Frame;

use super::{Job, clock::Clock, machine::Machine};

/// Where the program wrote something to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Err,
}

/// How it came to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The program ended with this status.
    Exit(u8),
    /// The program could not be started, or a module not be loaded.
    NotRun(String),
    /// L1's kernel gave up; the line with which it did.
    Panic(String),
    /// The emulator ended or L1 began again without saying why.
    Vanished,
    /// L1 said nothing for this time, not even that it is alive.
    Hang(Duration),
    /// The program wrote nothing for this time, while L1 was alive.
    Quiet(Duration),
    /// The program did not end within this time, while L1 was alive.
    TimedOut(Duration),
}

impl Ending {
    /// The same for a program that ran here.
    pub fn of(status: ExitStatus) -> Self {
        let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255);
        Self::Exit(code as u8)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "the program ended with status {status}"),
            Self::NotRun(why) => write!(f, "the program was not run: {why}"),
            Self::Panic(line) => write!(f, "L1 panicked: {line}"),
            Self::Vanished => write!(f, "L1 ended without a word: a triple fault, or the emulator crashed"),
            Self::Hang(time) => write!(f, "L1 hung: no sign of life for {time:?}"),
            Self::Quiet(time) => write!(f, "the program hung: not a word for {time:?}, though L1 is alive"),
            Self::TimedOut(limit) => write!(f, "time-out: the program was not done after {limit:?}, L1 is alive"),
        }
    }
}

/// How long L1 may be silent, in the emulator's time. Its first process speaks every second, of which each takes Bochs several.
const SILENCE: Duration = Duration::from_secs(90);
/// How long a kernel that panics has for its last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Follows `machine` to its end, which it may not have reached by itself: how it ended, and how long the program ran.
pub fn watch(machine: &mut Machine, job: &Job, sink: &mut dyn FnMut(Stream, &[u8])) -> Result<(Ending, Duration)> {
    let mut state = State::default();
    let (mut console, mut frames) = (Follower::default(), Follower::default());
    let mut clock = Clock::of(machine.id());
    // When L1 was last heard, when its program was, and when that started.
    let (mut heard, mut spoke, mut started) = (Duration::ZERO, Duration::ZERO, None);
    loop {
        // Asked before reading, so that nothing is missed of what was written before the end.
        let ended = machine.ended()?;
        let now = clock.now();
        let said = console.read(&machine.console)?;
        let sent = frames.read(&machine.frames)?;
        if !said.is_empty() || !sent.is_empty() {
            heard = now;
        }
        state.console(&said);
        let ending = state.frames(sent, &mut |stream, bytes| {
            spoke = now;
            sink(stream, bytes);
        });
        if state.started && started.is_none() {
            (started, spoke) = (Some(now), now);
        }
        let ran = started.map_or(Duration::ZERO, |start| now - start);
        let ending = ending.or_else(|| state.panicked(ended)).or_else(|| match job.quiet {
            _ if ended => Some(Ending::Vanished),
            _ if now - heard > SILENCE => Some(Ending::Hang(SILENCE)),
            _ if ran > job.timeout => Some(Ending::TimedOut(job.timeout)),
            Some(quiet) if started.is_some() && now - spoke > quiet => Some(Ending::Quiet(quiet)),
            _ => None,
        });
        if let Some(ending) = ending {
            return Ok((ending, ran));
        }
        sleep(POLL);
    }
}

/// What L1 has said so far, as far as it matters.
#[derive(Default)]
struct State {
    /// The console's last line, not complete yet.
    line: Vec<u8>,
    /// Frames' bytes that are not a whole frame yet.
    pending: Vec<u8>,
    hello: bool,
    started: bool,
    panic: Option<(String, Instant)>,
}

impl State {
    fn console(&mut self, said: &[u8]) {
        for &byte in said {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            if self.panic.is_none() && line.windows(12).any(|w| w == b"Kernel panic") {
                self.panic = Some((String::from_utf8_lossy(&line).trim().to_owned(), Instant::now()));
            }
        }
    }

    /// A panic that has been said, once no more is to come.
    fn panicked(&self, ended: bool) -> Option<Ending> {
        let (line, since) = self.panic.as_ref()?;
        (ended || since.elapsed() > LAST_WORDS).then(|| Ending::Panic(line.clone()))
    }

    /// Takes what came over the second port; the ending, if there is one in it.
    fn frames(&mut self, sent: Vec<u8>, sink: &mut dyn FnMut(Stream, &[u8])) -> Option<Ending> {
        self.pending.extend(sent);
        loop {
            match Frame::take(&mut self.pending) {
                Ok(None) => return None,
                Ok(Some(Frame::Beat)) => {}
                Ok(Some(Frame::Hello(_))) if self.hello => return Some(Ending::Vanished),
                Ok(Some(Frame::Hello(_))) => self.hello = true,
                Ok(Some(Frame::Start)) => self.started = true,
                Ok(Some(Frame::Out(data))) => sink(Stream::Out, &data),
                Ok(Some(Frame::Err(data))) => sink(Stream::Err, &data),
                Ok(Some(Frame::Exit(status))) => return Some(Ending::Exit(status)),
                Ok(Some(Frame::Failed(why))) => {
                    return Some(Ending::NotRun(String::from_utf8_lossy(&why).into_owned()));
                }
                Err(why) => return Some(Ending::NotRun(format!("L1 sends nonsense: {why}"))),
            }
        }
    }
}

/// Reads a file that grows.
#[derive(Default)]
struct Follower(Option<File>);

impl Follower {
    /// What has come since the last call.
    fn read(&mut self, path: &Path) -> Result<Vec<u8>> {
        if self.0.is_none() {
            match File::open(path) {
                Ok(file) => self.0 = Some(file),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(e.into()),
            }
        }
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.0 {
            file.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(state: &mut State, frames: &[Frame]) -> (Option<Ending>, String) {
        let mut shown = String::new();
        let bytes = frames.iter().flat_map(Frame::encode).collect();
        let ending = state.frames(bytes, &mut |stream, bytes| {
            shown.push_str(&format!("{stream:?}:{}", String::from_utf8_lossy(bytes)));
        });
        (ending, shown)
    }

    #[test]
    fn output_and_status_come_through() {
        let mut state = State::default();
        let sent =
            [Frame::Hello(Vec::new()), Frame::Start, Frame::Out(b"a".to_vec()), Frame::Beat, Frame::Err(b"b".to_vec())];
        assert_eq!(frames(&mut state, &sent), (None, "Out:aErr:b".into()));
        assert!(state.started);
        assert_eq!(frames(&mut state, &[Frame::Exit(3)]).0, Some(Ending::Exit(3)));
    }

    #[test]
    fn a_second_beginning_is_a_reset() {
        let mut state = State::default();
        let hello = Frame::Hello(Vec::new());
        assert_eq!(frames(&mut state, &[hello.clone(), hello]).0, Some(Ending::Vanished));
    }

    #[test]
    fn a_panic_is_found_in_pieces() {
        let mut state = State::default();
        state.console(b"[ 1.0] Kernel pa");
        assert!(state.panic.is_none());
        state.console(b"nic - not syncing: Fatal exception\r\n[ 1.1] more\r\n");
        let (line, _) = state.panic.expect("a panic");
        assert_eq!(line, "[ 1.0] Kernel panic - not syncing: Fatal exception");
    }
}
