//! The emulator that L1 runs in: QEMU for AMD-V, Bochs for VT-x. Both write two serial ports into files, the kernel's
//! console and the frames of its first process.
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{Cpu, Job};
use crate::{
    bochs,
    process::{die_with_us, need},
};

/// A running emulator.
pub struct Machine {
    child: Child,
    /// The file that the kernel's console is written to.
    pub console: PathBuf,
    /// The file that the first process's frames are written to.
    pub frames: PathBuf,
    /// The file that the emulator's own messages are written to.
    pub messages: PathBuf,
}

impl Machine {
    /// The emulator's process, or one that started it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the emulator has ended by itself.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the processor that `job` asks for. The emulator's files are in `work`.
pub fn start(job: &Job, kernel: &Path, initrd: &Path, append: &str, work: &Path) -> Result<Machine> {
    match job.cpu {
        Cpu::AmdNpt | Cpu::AmdShadow => qemu(job, kernel, initrd, append, work),
        Cpu::IntelEpt | Cpu::IntelShadow => in_bochs(job, "corei7_skylake_x", kernel, initrd, append, work),
        Cpu::IntelPenryn => in_bochs(job, "core2_penryn_t9600", kernel, initrd, append, work),
    }
}

fn qemu(job: &Job, kernel: &Path, initrd: &Path, append: &str, work: &Path) -> Result<Machine> {
    need("qemu-system-x86_64", "qemu-system-x86")?;
    let (console, frames, messages) = (work.join("console"), work.join("frames"), work.join("messages"));
    let mut command = Command::new("qemu-system-x86_64");
    let processor = if job.virtualization { "EPYC,+svm,+npt" } else { "EPYC,-svm" };
    let accel = if job.counted { "tcg,thread=single" } else { "tcg" };
    command.args(["-accel", accel, "-cpu", processor, "-m", &job.memory.to_string()]);
    if job.counted {
        command.args(["-icount", "shift=0,sleep=off", "-rtc", "clock=vm", "-seed", "1"]);
    }
    // A kernel without ACPI, as the debug kernel is, finds one processor a package.
    command.args([
        "-smp",
        &format!("{0},sockets={0}", job.smp),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    for port in [&console, &frames] {
        command.arg("-serial").arg(format!("file:{}", port.display()));
    }
    // The kernel gives its timer ten ticks of virtual time to show that it works; a QEMU that gets no processor for as long
    // delivers none.
    command
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(format!("no_timer_check {append}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&messages)?);
    let child = die_with_us(&mut command).spawn().context("cannot start qemu-system-x86_64")?;
    Ok(Machine { child, console, frames, messages })
}

/// Bochs's only 64-bit processor of Intel's without VT-x.
const WITHOUT_VIRTUALIZATION: &str = "p4_prescott_celeron_336";

fn in_bochs(job: &Job, model: &str, kernel: &Path, initrd: &Path, append: &str, work: &Path) -> Result<Machine> {
    let dir = work.join("bochs");
    // The kernel waits for each byte that it says; at the speed of a serial port that takes longer than its start.
    // The processor's CPUID claims a clock of gigahertz; Bochs's counts as many instructions a second as `ips` says, and a
    // second of L1 would take minutes.
    let append = &format!("quiet tsc_early_khz={} {append}", bochs::IPS / 1000);
    let model = if job.virtualization { model } else { WITHOUT_VIRTUALIZATION };
    let machine = bochs::Machine { model, cpus: job.smp, memory: job.memory, kernel, initrd, append };
    let child = machine.start(&dir, 2)?;
    let (console, frames) = (dir.join(bochs::serial(0)), dir.join(bochs::serial(1)));
    Ok(Machine { child, console, frames, messages: dir.join(bochs::LOG) })
}
