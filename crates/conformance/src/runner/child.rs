//! A child process for each case, and a limit to its time.
use std::{
    fs::File,
    io::{self, Read, Seek},
    os::{fd::FromRawFd, unix::process::ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Case, Instead, LACKS, NOT_APPLICABLE, Outcome, Report, Target};

/// How cases are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device, as `--on` has it.
    pub on: String,
    /// What is behind it.
    pub target: Target,
    /// Seconds that a case may take.
    pub limit: u64,
    /// By how much the time limits inside cases are stretched.
    pub slow: u32,
}

/// A file without a name, for what a child writes.
fn scratch() -> io::Result<File> {
    // SAFETY: the name is a C string; the descriptor is new and ours.
    unsafe {
        let fd = libc::memfd_create(c"case".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from_raw_fd(fd)) }
    }
}

/// Waits for a child for at most `limit`; None if it has not ended by then.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let (start, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Ends a child that takes too long, and says so. One that is stuck in the device below cannot be killed; it stays behind.
fn end(child: &mut Child, options: &Options) -> io::Result<String> {
    child.kill()?;
    let late = format!("did not end in {} s", options.limit);
    let dead = wait(child, Duration::from_secs(options.limit))?.is_some();
    Ok(if dead { late } else { late + ", and cannot be killed" })
}

/// Runs one case in a child.
fn run_one(name: &str, case: &Case, options: &Options) -> io::Result<Outcome> {
    let mut expected = None;
    if let Some(except) = case.exception(options.target) {
        let reason = except.reason.to_owned();
        match except.instead {
            Instead::Fails(why) => expected = Some((why, reason)),
            Instead::NotRun(why) => return Ok(Outcome::NotRun(why, reason)),
            Instead::DoesNotApply => return Ok(Outcome::NotApplicable(reason)),
        }
    }
    let mut output = scratch()?;
    let mut child = Command::new("/proc/self/exe")
        .args(["one", name, "--on", &options.on, "--as", &options.target.to_string()])
        .args(["--slow", &options.slow.to_string()])
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let status = wait(&mut child, Duration::from_secs(options.limit))?;
    let late = if status.is_none() { end(&mut child, options)? } else { String::new() };
    let mut said = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let failed = match status {
        Some(status) => match (status.code(), status.signal()) {
            (Some(0), _) => None,
            (Some(LACKS), _) => return Ok(Outcome::Lacks(said)),
            (Some(NOT_APPLICABLE), _) => return Ok(Outcome::NotApplicable(said)),
            // Whatever is expected of it: a reason is of what a case finds, and it has found nothing.
            (_, Some(signal)) => return Ok(Outcome::Failed(format!("killed by signal {signal}\n{said}"))),
            _ => Some(said),
        },
        None => return Ok(Outcome::Failed(format!("{late}\n{said}"))),
    };
    Ok(match (failed, expected) {
        (None, None) => Outcome::Passed,
        (None, Some((_, reason))) => Outcome::Unexpected(reason),
        (Some(said), Some((why, reason))) => Outcome::Known { why, reason, said },
        (Some(said), None) => Outcome::Failed(said),
    })
}

/// Runs the cases one after another, telling `report` of each.
///
/// # Errors
/// If a child cannot be started.
pub fn run(cases: &[(String, &'static Case)], options: &Options, report: &mut Report) -> io::Result<()> {
    for (name, case) in cases {
        report.begin(name);
        let start = Instant::now();
        let outcome = run_one(name, case, options)?;
        report.add(name, case, outcome, start.elapsed());
    }
    Ok(())
}
