//! The same boots on our kernel module: QEMU, with what it needs, is carried into the lab's L1, where `/dev/kvm` is the module's.
//! Each boot has an L1 of its own, with as many processors as the guest. It counts only if the module then leaves without a
//! word of complaint from the kernel and without an allocation left.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Accel, Irqchip, LOGS, Machine, Options, Way, self_test};
use crate::{
    boot_table::{BootTable, took},
    choice::chosen,
    guest::{self, Guest, Kind},
    lab::{self, Cpu, Job},
    module,
    process::{cache, output},
    run,
};

/// What QEMU loads for the guests: firmware, and what boots a kernel.
const FIRMWARE: [&str; 4] = ["bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin"];

/// The guest's disk in L1, and what the self-test writes to it.
const DISK: &str = "/tmp/disk";
const EXPECTED: &str = "/lab/expected";

/// Runs QEMU's command line, which are the script's arguments; then the module must go, and what it says of that be seen.
const SCRIPT: &str = "truncate -s 16M \"$0\" && size=$1 && shift && \"$@\" && cmp -n $size \"$0\" /lab/expected && \
                      dmesg -n 7 && rmmod rekvm";

/// Why a kernel with PAE stops early with nested paging, on Linux's KVM too.
const ACCESSED_POINTERS: &str = "the QEMU below marks page-directory pointers, which the guest then cannot load again";

/// MiB of L1.
const MEMORY: u32 = 1536;

/// Boots all that `options` select, on each of `cpus`.
pub fn boots(options: &Options, cpus: &[Cpu]) -> Result<()> {
    let module = module::for_lab(options.module.as_deref(), false)?.to_string_lossy().into_owned();
    let files = files()?;
    let row = |cpu: &str, guest: &str, way: &str| format!("{cpu:<14}{guest:<10}{way}");
    let mut table = BootTable::new(LOGS, &row("module on", "guest", &Way::heading()))?;
    for &cpu in cpus {
        for kind in chosen(&options.guests) {
            let guest = guest::prepare(kind)?;
            for way in options.ways() {
                let what = row(cpu.name(), kind.name(), &way.columns());
                let stops = cpu == Cpu::AmdNpt && kind == Kind::I686Pae;
                if let Some(why) = way.impossible()?.or(stops.then_some(ACCESSED_POINTERS)) {
                    table.leave_out(&what, why);
                    continue;
                }
                table.boot(&what, &format!("{}-{}-{}", cpu.name(), kind.name(), way.file()), |sink| {
                    let mut job = Job::new(cpu, words(&guest, way));
                    (job.smp, job.memory, job.timeout) = (way.cpus, MEMORY, options.limit());
                    (job.module, job.files) = (module.clone(), files.clone());
                    job.files.extend([&guest.kernel, &guest.initrd].map(|file| same(file)));
                    boot(&job, way.cpus, sink).map(took)
                })?;
            }
        }
    }
    table.end()
}

/// Runs QEMU's command line, and tells how long that took by L1's clock, in hundredths of a second.
const TIMED: &str = "now() { cut -d ' ' -f 1 /proc/uptime | tr -d .; }; start=$(now); \"$0\" \"$@\" || exit; \
    echo \"REKVM-COST boot to power-off, hundredths of a second: $(($(now) - start))\"";

/// A job on `module` whose guest does what `word` says and powers off; its lines begin with `rekvm_selftest::COST`.
pub fn measured(cpu: Cpu, module: &str, word: &str) -> Result<Job> {
    let guest = guest::prepare(Kind::Amd64)?;
    let mut command = super::qemu(Machine::Microvm, Accel::Module(Irqchip::On), 1, 512);
    command
        .args(["-cpu", "host", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initrd);
    command.args(["-append", &format!("console=ttyS0 panic=-1 quiet nokaslr norandmaps {word}")]);
    let mut words: Vec<_> = ["l1:/bin/busybox", "sh", "-c", TIMED].map(str::to_owned).into();
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    let mut job = Job { memory: MEMORY, module: module.to_owned(), files: qemu(&FIRMWARE)?, ..Job::new(cpu, words) };
    job.files.extend([&guest.kernel, &guest.initrd].map(|file| same(file)));
    Ok(job)
}

/// The program that L1 runs.
fn words(guest: &Guest, way: Way) -> Vec<String> {
    let command = self_test(guest, way, Accel::Module, Path::new(DISK));
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
    let mut files = qemu(&FIRMWARE)?;
    files.push((expected, EXPECTED.to_owned()));
    Ok(files)
}

/// What is carried along for QEMU: itself, and of the files that it finds by their name those in `firmware`.
pub fn qemu(firmware: &[&str]) -> Result<Vec<(PathBuf, String)>> {
    let program = output(Command::new("sh").args(["-c", "command -v qemu-system-x86_64"]))?;
    let mut files = vec![same(Path::new(program.trim()))];
    let folders = output(Command::new("qemu-system-x86_64").args(["-L", "help"]))?;
    for file in firmware {
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
    let log = outcome.clean()?;
    run::proven_by(&lines, cpus)?;
    ensure!(log.contains(module::NOTHING_LEFT), "the module did not say that it has given everything back");
    Ok(outcome.took)
}
