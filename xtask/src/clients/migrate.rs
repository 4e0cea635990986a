//! `cargo xtask clients --migrate`: a guest that writes memory, files and a disk all the time, and compares checksums, moves from
//! one QEMU to another over a unix socket, and then goes back to a snapshot of itself. No checksum may differ afterwards.
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Accel, Irqchip, LOGS, Machine, Options, Way, boot, emulator::Emulator, qemu};
use crate::{
    boot_table::BootTable,
    guest::{self, Guest, Kind},
    process::{cache, check, need},
};

/// What is tried: a machine, where its interrupt controllers are, and processors.
const WAYS: [Way; 4] = [
    Way { machine: Machine::Pc, irqchip: Irqchip::On, cpus: 1 },
    Way { machine: Machine::Q35, irqchip: Irqchip::On, cpus: 2 },
    Way { machine: Machine::Pc, irqchip: Irqchip::Split, cpus: 2 },
    Way { machine: Machine::Pc, irqchip: Irqchip::Off, cpus: 1 },
];

/// Rounds of the guest's before, between and after.
const ROUNDS: u32 = 3;

/// See the module.
pub fn migrate(options: &Options) -> Result<()> {
    need("qemu-img", "qemu-utils")?;
    let guest = guest::prepare(Kind::Amd64)?;
    let mut table = BootTable::new(LOGS, &Way::heading())?;
    let asked = options.ways();
    for way in WAYS.into_iter().filter(|way| asked.contains(way)) {
        let log = format!("migrate-{}", way.file());
        table.boot(&way.columns(), &log, |sink| {
            Busy { guest: &guest, way, limit: options.limit(), log: &log }.go_and_return(sink)
        })?;
    }
    table.end()
}

/// A busy guest.
struct Busy<'a> {
    guest: &'a Guest,
    way: Way,
    limit: Duration,
    log: &'a str,
}

/// The socket, in the folder of both QEMUs: a path of any length would not fit.
const SOCKET: &str = "unix:migrate.socket";

impl Busy<'_> {
    fn start(&self, disk: &Path, more: &[&str], suffix: &str) -> Result<Emulator> {
        let mut command = qemu(self.way.machine, Accel::Rekvm(self.way.irqchip), self.way.cpus, 256);
        boot(&mut command, self.guest, self.way.machine, "quiet rekvm.busy", "qcow2", disk);
        command.args(more);
        Emulator::start(command, LOGS, &format!("{}-{suffix}", self.log))
    }

    fn go_and_return(&self, sink: &mut dyn FnMut(&str)) -> Result<String> {
        let disk = std::path::absolute(cache().join(format!("busy-{}.qcow2", std::process::id())))?;
        check(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("64M"))?;
        let result = self.with_disk(&disk, sink);
        let _ = std::fs::remove_file(&disk);
        result
    }

    fn with_disk(&self, disk: &Path, sink: &mut dyn FnMut(&str)) -> Result<String> {
        let mut source = self.start(disk, &[], "source")?;
        let begun = self.rounds(&mut source, ROUNDS)?;
        let mut target = self.start(disk, &["-incoming", SOCKET], "target")?;
        source.execute("migrate", json!({ "uri": SOCKET }))?;
        let figures = source.until("the end of the migration", self.limit, |source| {
            let now = source.execute("query-migrate", json!({}))?;
            let status = now["status"].as_str().unwrap_or_default().to_owned();
            ensure!(status != "failed" && status != "cancelled", "the migration has {status}: {now}");
            Ok((status == "completed").then_some(now))
        })?;
        let left = last(&source.console()?)?.context("no round in the source")?;
        drop(source);
        ensure!(left >= begun, "rounds went back in the source");
        sink(&format!("{figures}\n"));
        let arrived = self.rounds(&mut target, left + ROUNDS)?;
        let first = numbers(&target.console()?)?.first().copied();
        ensure!(first.is_some_and(|first| first > left), "a round was done again: {left}, then {first:?}");

        let start = Instant::now();
        target.human("savevm one")?;
        let saved = start.elapsed();
        self.rounds(&mut target, arrived + 2 * ROUNDS)?;
        let said = target.console()?.len();
        target.human("loadvm one")?;
        // What was on its way out comes before what the guest says again.
        let again = target.until("rounds after loadvm", self.limit, |target| {
            let console = target.console()?;
            let numbers = numbers(console.get(said..).unwrap_or_default())?;
            let back = numbers.iter().position(|n| *n <= arrived + ROUNDS).map(|at| numbers[at..].to_vec());
            Ok(back.filter(|rounds| rounds.len() > ROUNDS as usize))
        })?;
        ensure!(again.first() > Some(&left), "the snapshot is older than it can be: {again:?}");
        sink(&target.console()?);
        let megabytes = figures["ram"]["transferred"].as_f64().unwrap_or(0.0) / 1e6;
        Ok(format!(
            "migrated in {:.1} s, {} ms of them without the guest: {megabytes:.0} MB in {} passes; saved in {:.1} s and \
             loaded; no checksum differs",
            figures["total-time"].as_f64().unwrap_or(0.0) / 1e3,
            figures["downtime"],
            figures["ram"]["dirty-sync-count"],
            saved.as_secs_f64(),
        ))
    }

    /// Waits until the guest has done round `until`; the last one done.
    fn rounds(&self, emulator: &mut Emulator, until: u32) -> Result<u32> {
        emulator.until(&format!("the guest's round {until}"), self.limit, |emulator| {
            Ok(last(&emulator.console()?)?.filter(|done| *done >= until))
        })
    }
}

fn last(console: &str) -> Result<Option<u32>> {
    Ok(numbers(console)?.last().copied())
}

/// The rounds of which `console` tells in whole lines; an error if a checksum was not the right one.
fn numbers(console: &str) -> Result<Vec<u32>> {
    let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut rounds = Vec::new();
    for line in whole.lines() {
        // Before it on the same line may be a part of what was being said when the guest was taken back.
        let Some((_, rest)) = line.trim().rsplit_once(rekvm_selftest::ROUND) else { continue };
        let (number, word) = rest.trim().split_once(' ').context("a round without a result")?;
        ensure!(word == "ok", "a checksum differs in the guest: {line}");
        rounds.push(number.parse()?);
    }
    Ok(rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_in_whole_lines_and_must_be_ok() {
        let round = rekvm_selftest::ROUND;
        let said = format!("kernel\r\n{round} 1 ok\r\n{round} 2{round} 2 ok\r\n{round} 3");
        assert_eq!(numbers(&said).expect("ok"), [1, 2]);
        assert_eq!(last("").expect("nothing said"), None);
        assert!(numbers(&format!("{round} 1 ok\n{round} 2 DIFFERS\n")).is_err());
    }
}
