//! Runs the suite's program: here, or in the lab, where a case that takes L1 down costs that case and one more boot.
use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Options, Run, Target, suite::Results, table};
use crate::{
    guest,
    lab::{self, Cpu, Ending, Job, Stream},
    module,
    process::{cache, cargo, check, release_binary},
    run as rekvm,
};

/// How often L1 is booted again in one run.
const RESTARTS: u32 = 20;

/// How long the suite may say nothing while L1 is alive. It ends a case that takes too long by itself, so that this is for
/// a kernel in which it no longer can.
const QUIET: Duration = Duration::from_secs(1200);

/// Runs what `options` select on `target`; with `live`, each case is shown as it ends.
pub fn run(options: &Options, target: Target, live: bool) -> Result<Run> {
    match target.cpu() {
        None => here(options, target, live),
        Some(cpu) => in_lab(options, target, cpu, live),
    }
}

/// The suite's arguments.
fn arguments(options: &Options, target: Target, on: &str, after: Option<&str>) -> Vec<String> {
    let slow = options.slow.unwrap_or(target.slowness());
    let mut words = vec!["run".to_owned(), "--on".into(), on.into(), "--as".into(), target.place()];
    words.extend(["--slow".into(), slow.to_string(), "--format".into(), "tap".into()]);
    words.extend(options.filter.iter().flat_map(|text| ["--filter".into(), text.clone()]));
    words.extend(options.cases.iter().flat_map(|name| ["--case".into(), name.clone()]));
    words.extend(after.iter().flat_map(|name| ["--after".into(), (*name).to_owned()]));
    words
}

fn here(options: &Options, target: Target, live: bool) -> Result<Run> {
    let mut command = match target {
        Target::Exec | Target::ExecStatic => client(options, target)?,
        _ => {
            check(cargo().args(["build", "--quiet", "--release", "--package", "rekvm-conformance"]))?;
            let mut command = Command::new(release_binary("conformance"));
            command.args(arguments(options, target, &target.name(), None));
            command
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start the conformance suite")?;
    let mut output = child.stdout.take().context("no output")?;
    let (mut results, mut buffer) = (Results::default(), [0; 4096]);
    let mut show = |case: &_| {
        if live {
            table::line(case)
        }
    };
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            n => results.take(&buffer[..n], &mut show),
        }
    }
    let ending = Ending::of(child.wait()?);
    results.cut_off(&ending.to_string(), &mut show);
    Ok(Run { target, results, ending, restarts: 0, complaints: Vec::new() })
}

/// The suite as a program that knows nothing of rekvm, with the device that `rekvm exec` has for it.
fn client(options: &Options, target: Target) -> Result<Command> {
    rekvm::build()?;
    let without = "--no-default-features";
    let program = if target == Target::ExecStatic {
        guest::program(guest::Kind::Amd64, "rekvm-conformance", "conformance", &[without])?
    } else {
        let dir = cache().join("clients");
        let build = ["build", "--quiet", "--release", "--package", "rekvm-conformance", without];
        check(cargo().args(build).arg("--target-dir").arg(&dir))?;
        dir.join("release/conformance")
    };
    let mut command = Command::new(release_binary("rekvm"));
    // Each case is a child.
    command.args(["exec", "--quiet", "--children", "--"]).arg(program);
    command.args(arguments(options, target, "device:/dev/kvm", None));
    Ok(command)
}

fn in_lab(options: &Options, target: Target, cpu: Cpu, live: bool) -> Result<Run> {
    // The in-process device is of no use there.
    let program = guest::program(guest::Kind::Amd64, "rekvm-conformance", "conformance", &["--no-default-features"])?;
    let module = match target.is_module() {
        true => module::for_lab(options.module.as_deref(), options.debug_kernel)?.to_string_lossy().into_owned(),
        false => "linux".into(),
    };
    let mut show = |case: &_| {
        if live {
            table::line(case)
        }
    };
    let mut results = Results::default();
    let mut left = Duration::from_secs(options.timeout);
    let (mut restarts, mut complaints) = (0, Vec::new());
    loop {
        let after = results.cases.last().map(|case| case.name.clone());
        let mut words = vec![program.to_string_lossy().into_owned()];
        words.extend(arguments(options, target, "device:/dev/kvm", after.as_deref()));
        let limits = Job { timeout: left, quiet: Some(QUIET), ..Job::new(cpu, words) };
        let job = Job { smp: options.smp, module: module.clone(), debug_kernel: options.debug_kernel, ..limits };
        let outcome = lab::run(&job, &mut |stream, bytes| match stream {
            // A caller that no longer reads loses the output and nothing else.
            Stream::Err => drop(std::io::stderr().write_all(bytes)),
            Stream::Out => results.take(bytes, &mut show),
        })?;
        left = left.saturating_sub(outcome.took);
        if target.is_module() {
            complaints.extend(lab::complaints(&outcome.said()).into_iter().map(str::to_owned));
        }
        let ending = outcome.ending;
        // Whose time was up before its case had ended has not reached it.
        if !matches!(ending, Ending::TimedOut(_)) {
            results.cut_off(&ending.to_string(), &mut show);
        }
        if !matches!(ending, Ending::Exit(0 | 1)) {
            eprintln!(
                "xtask: conformance on {}: {ending}; the console log is {}",
                target.name(),
                outcome.console.display()
            );
        }
        // What has not begun, or has refused, is no better the next time.
        let hopeless = matches!(ending, Ending::Exit(0..=2) | Ending::NotRun(_) | Ending::TimedOut(_))
            || results.cases.last().map(|case| &case.name) == after.as_ref();
        if hopeless || results.missing() == 0 || restarts == RESTARTS || left.is_zero() {
            return Ok(Run { target, results, ending, restarts, complaints });
        }
        restarts += 1;
    }
}
