//! The same boots on our kernel module: QEMU, with what it needs, is carried into the lab's L1, where `/dev/kvm` is the module's.
//! Each boot has an L1 of its own, with as many processors as the guest. It counts only if the module then leaves without a
//! word of complaint from the kernel and without an allocation left.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{Accel, Irqchip, LOGS, Machine, Options, self_test, without};
use crate::{
    boot_table::{BootTable, took},
    choice::{chosen, name},
    guest::{self, Guest, Kind},
    lab::{self, Cpu, Ending, Job},
    module,
    process::{cache, output},
    run,
};

/// What QEMU loads for the guests: firmware, and what boots a kernel.
const FIRMWARE: [&str; 4] = ["bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin"];

/// The guest's disk in L1, and what the self-test writes to it.
const DISK: &str = "/tmp/disk";
const EXPECTED: &str = "/lab/expected";

/// Runs QEMU's command line, which are the script's arguments; then the module must go.
const SCRIPT: &str =
    "truncate -s 16M \"$0\" && size=$1 && shift && \"$@\" && cmp -n $size \"$0\" /lab/expected && rmmod rekvm";

/// Why a kernel with PAE stops early with nested paging, on Linux's KVM too.
const ACCESSED_POINTERS: &str = "the QEMU below marks page-directory pointers, which the guest then cannot load again";

/// MiB of L1.
const MEMORY: u32 = 1536;

/// Boots all that `options` select, on each of `cpus`.
pub fn boots(options: &Options, cpus: &[Cpu]) -> Result<()> {
    let module = module::for_lab()?.to_string_lossy().into_owned();
    let files = files()?;
    let row = |cpu: &str, guest: &str, machine: &str, irqchip: &str, cpus: &str| {
        format!("{cpu:<14}{guest:<10}{machine:<9}{irqchip:<9}{cpus:>4}  ")
    };
    let mut table = BootTable::new(LOGS, &row("module on", "guest", "machine", "irqchip", "cpus"))?;
    for &cpu in cpus {
        for kind in chosen(&options.guests) {
            let guest = guest::prepare(kind)?;
            for machine in chosen(&options.machines) {
                for irqchip in chosen(&options.irqchips) {
                    for &n in &options.cpus {
                        let (machine_name, irqchip_name) = (name(machine), name(irqchip));
                        let what = row(cpu.name(), kind.name(), &machine_name, &irqchip_name, &n.to_string());
                        let stops = cpu == Cpu::AmdNpt && kind == Kind::I686Pae;
                        if let Some(why) = without(irqchip, n)?.or(stops.then_some(ACCESSED_POINTERS)) {
                            table.leave_out(&what, why);
                            continue;
                        }
                        let log = format!("{}-{}-{machine_name}-{irqchip_name}-{n}", cpu.name(), kind.name());
                        table.boot(&what, &log, |sink| {
                            let mut job = Job::new(cpu, words(&guest, machine, irqchip, n));
                            (job.smp, job.memory, job.timeout) = (n, MEMORY, options.limit());
                            (job.module, job.files) = (module.clone(), files.clone());
                            job.files.extend([&guest.kernel, &guest.initrd].map(|file| same(file)));
                            boot(&job, n, sink).map(took)
                        })?;
                    }
                }
            }
        }
    }
    table.end()
}

/// The program that L1 runs.
fn words(guest: &Guest, machine: Machine, irqchip: Irqchip, cpus: u32) -> Vec<String> {
    let command = self_test(guest, machine, Accel::Module(irqchip), cpus, Path::new(DISK));
    let size = rekvm_selftest::DISK_BYTES.to_string();
    let mut words: Vec<_> = ["l1:/bin/busybox", "sh", "-c", SCRIPT, DISK, &size].map(str::to_owned).into();
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words
}

/// A file that has the same place in L1.
fn same(file: &Path) -> (PathBuf, String) {
    (file.to_owned(), file.to_string_lossy().into_owned())
}

/// QEMU, its firmware, and what the disk is compared with.
fn files() -> Result<Vec<(PathBuf, String)>> {
    let expected = cache().join("expected-disk");
    fs::write(&expected, rekvm_selftest::pattern(rekvm_selftest::DISK_BYTES, rekvm_selftest::DISK_SEED))?;
    let mut files = vec![(expected, EXPECTED.to_owned())];
    let program = output(Command::new("sh").args(["-c", "command -v qemu-system-x86_64"]))?;
    files.push(same(Path::new(program.trim())));
    let folders = output(Command::new("qemu-system-x86_64").args(["-L", "help"]))?;
    for file in FIRMWARE {
        let place = folders.lines().map(|folder| Path::new(folder.trim()).join(file)).find(|path| path.exists());
        let path = place.with_context(|| format!("QEMU has no {file}"))?;
        let folder = path.parent().context("a folder")?.canonicalize()?;
        files.push((path, folder.join(file).to_string_lossy().into_owned()));
    }
    Ok(files)
}

/// One boot, which is as long as the program in L1 runs.
fn boot(job: &Job, cpus: u32, sink: &mut dyn FnMut(&str)) -> Result<Duration> {
    let (mut lines, mut rest) = (Vec::new(), Vec::new());
    let outcome = lab::run(job, &mut |_, bytes| {
        rest.extend_from_slice(bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&rest.drain(..=end).collect::<Vec<_>>()).into_owned();
            sink(&line);
            lines.push(line);
        }
    })?;
    let log = fs::read(&outcome.console).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    if outcome.ending != Ending::Exit(0) {
        bail!("{}; L1's console log is {}", outcome.ending, outcome.console.display());
    }
    run::proven_by(&lines, cpus)?;
    let complaints = lab::complaints(&log);
    ensure!(complaints.is_empty(), "L1's kernel complains: {}", complaints.join("; "));
    ensure!(log.contains(module::NOTHING_LEFT), "the module did not say that it has given everything back");
    Ok(outcome.took)
}
