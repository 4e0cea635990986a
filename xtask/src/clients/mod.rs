//! `cargo xtask clients`: other people's programs on `rekvm exec`. Debian's QEMU, as it is, boots Debian's kernels on several
//! machines and with the interrupt controllers in each place, and the guest tests itself; as a table. With `--firmware` it
//! boots PC software instead ([`firmware`]), with `--migrate` a busy guest moves between two QEMUs ([`migrate`]), with
//! `--cpu` the kernel module serves instead of `rekvm exec` ([`mod@lab`]).
mod emulator;
mod firmware;
pub mod lab;
mod migrate;
mod told;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    boot_table::{BootTable, took},
    choice::{chosen, name},
    guest::{self, Guest, Kind},
    process::{need, output, release_binary},
    run,
};

/// QEMU's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// The i440FX of 1996.
    Pc,
    /// The Q35 of 2009.
    Q35,
    /// Without PCI.
    Microvm,
}

/// Where the interrupt controllers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Irqchip {
    /// All of them in the hypervisor.
    On,
    /// The local APICs in the hypervisor, the others in QEMU.
    Split,
    /// All of them in QEMU.
    Off,
}

/// Options of `clients`.
#[derive(clap::Args)]
pub struct Options {
    /// Only this guest (may be repeated).
    #[arg(long = "guest")]
    guests: Vec<Kind>,
    /// Only this machine (may be repeated).
    #[arg(long = "machine")]
    machines: Vec<Machine>,
    /// Only this place of the interrupt controllers (may be repeated).
    #[arg(long = "irqchip")]
    irqchips: Vec<Irqchip>,
    /// Number of virtual CPUs (may be repeated).
    #[arg(long, default_values_t = [1, 2])]
    cpus: Vec<u32>,
    /// On the kernel module in the lab, on this processor (may be repeated).
    #[arg(long = "cpu", value_name = "CPU", conflicts_with_all = ["firmware", "migrate"])]
    lab: Vec<crate::lab::Cpu>,
    /// The module's file, which is built if not given.
    #[arg(long, value_name = "FILE", requires = "lab")]
    module: Option<PathBuf>,
    /// Seconds after which a boot is given up.
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// Boot GRUB and memtest86+ instead, and compare the screen with TCG's.
    #[arg(long, conflicts_with = "guests")]
    firmware: bool,
    /// Have a busy guest migrate from one QEMU to another instead, and go back to a snapshot.
    #[arg(long, conflicts_with_all = ["guests", "firmware"])]
    migrate: bool,
}

impl Options {
    /// All that the options leave in of a table.
    fn ways(&self) -> Vec<Way> {
        let mut ways = Vec::new();
        for machine in chosen(&self.machines) {
            for irqchip in chosen(&self.irqchips) {
                ways.extend(self.cpus.iter().map(|&cpus| Way { machine, irqchip, cpus }));
            }
        }
        ways
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// See the module.
pub fn clients(options: &Options) -> Result<()> {
    need("qemu-system-x86_64", "qemu-system-x86")?;
    if !options.lab.is_empty() {
        return lab::boots(options, &options.lab);
    }
    run::build()?;
    told::told()?;
    match (options.firmware, options.migrate) {
        (true, _) => firmware::firmware(options),
        (_, true) => migrate::migrate(options),
        _ => boots(options),
    }
}

/// The stable release in which a SIPI stays pending with `kernel-irqchip=off`, whoever serves /dev/kvm: only TCG resets it since. A
/// second processor that halts spins from then on, and with QEMU's lock.
const LOSES_SIPI: &str = "version 7.2.22 ";

/// How QEMU runs a guest: what a line of a table is about.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    machine: Machine,
    irqchip: Irqchip,
    cpus: u32,
}

impl Way {
    fn row(machine: &str, irqchip: &str, cpus: &str) -> String {
        format!("{machine:<9}{irqchip:<9}{cpus:>4}  ")
    }

    /// The heading of [`Self::columns`].
    fn heading() -> String {
        Self::row("machine", "irqchip", "cpus")
    }

    fn columns(self) -> String {
        Self::row(&name(self.machine), &name(self.irqchip), &self.cpus.to_string())
    }

    /// The same in the name of a file.
    fn file(self) -> String {
        format!("{}-{}-{}", name(self.machine), name(self.irqchip), self.cpus)
    }

    /// Why this QEMU cannot, if it cannot.
    fn impossible(self) -> Result<Option<&'static str>> {
        if self.irqchip != Irqchip::Off || self.cpus < 2 {
            return Ok(None);
        }
        let version = output(Command::new("qemu-system-x86_64").arg("--version"))?;
        Ok(version.contains(LOSES_SIPI).then_some("this QEMU never ends a start-up interrupt of its own APICs"))
    }
}

fn boots(options: &Options) -> Result<()> {
    let row = |guest: &str, way: &str| format!("{guest:<10}{way}");
    let mut table = BootTable::new(LOGS, &row("guest", &Way::heading()))?;
    for kind in chosen(&options.guests) {
        let guest = guest::prepare(kind)?;
        for way in options.ways() {
            let what = row(kind.name(), &way.columns());
            if let Some(why) = way.impossible()? {
                table.leave_out(&what, why);
                continue;
            }
            table.boot(&what, &format!("{}-{}", kind.name(), way.file()), |sink| {
                let disk = run::Disk::new()?;
                let mut command = self_test(&guest, way, Accel::Rekvm, disk.path());
                run::proven(&mut command, &disk, way.cpus, options.limit(), sink).map(took)
            })?;
        }
    }
    table.end()
}

/// Where consoles, pictures and sockets are, in the build directory.
const LOGS: &str = "client-logs";

/// What serves the guests of a QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accel {
    /// /dev/kvm of `rekvm exec`.
    Rekvm(Irqchip),
    /// /dev/kvm of the kernel module, where it is loaded.
    Module(Irqchip),
    /// QEMU's own.
    Tcg,
}

/// QEMU's machine, as `-machine` wants it. With the first IOAPIC in the hypervisor, `microvm` has a second one in QEMU, which nobody
/// tells of the end of an interrupt: a disk at it stands still on Linux's KVM too.
fn machine_option(machine: Machine, accel: Accel) -> String {
    let on = matches!(accel, Accel::Rekvm(Irqchip::On) | Accel::Module(Irqchip::On));
    let second = machine == Machine::Microvm && on;
    name(machine) + if second { ",ioapic2=off" } else { "" }
}

/// QEMU with what all its guests have in common.
fn qemu(machine: Machine, accel: Accel, cpus: u32, memory: u32) -> Command {
    let machine = machine_option(machine, accel);
    let (mut command, accel) = match accel {
        Accel::Rekvm(irqchip) => {
            let mut command = Command::new(release_binary("rekvm"));
            command.args(["exec", "--", "qemu-system-x86_64"]);
            (command, format!("kvm,kernel-irqchip={}", name(irqchip)))
        }
        Accel::Module(irqchip) => (Command::new("qemu-system-x86_64"), format!("kvm,kernel-irqchip={}", name(irqchip))),
        Accel::Tcg => (Command::new("qemu-system-x86_64"), "tcg".to_owned()),
    };
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-machine", &machine, "-accel", &accel]);
    command.args(["-m", &memory.to_string(), "-smp", &cpus.to_string()]);
    command
}

/// Gives a guest its kernel, what it is to do, and a disk.
fn boot(command: &mut Command, guest: &Guest, machine: Machine, word: &str, format: &str, disk: &Path) {
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.args(["-append", &format!("console=ttyS0 panic=-1 {word}")]);
    let device = if machine == Machine::Microvm { "virtio-blk-device" } else { "virtio-blk-pci" };
    command.arg("-drive").arg(format!("if=none,id=disk,format={format},file={}", disk.display()));
    command.args(["-device", &format!("{device},drive=disk")]);
}

/// QEMU with a guest that does nothing once it is up.
pub fn idle(guest: &Guest) -> Command {
    let mut command = qemu(Machine::Pc, Accel::Rekvm(Irqchip::On), 1, 512);
    command.args(["-serial", "stdio"]);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.args(["-append", "console=ttyS0 panic=-1 quiet rekvm.idle"]);
    command
}

fn self_test(guest: &Guest, way: Way, accel: fn(Irqchip) -> Accel, disk: &Path) -> Command {
    let mut command = qemu(way.machine, accel(way.irqchip), way.cpus, 512);
    command.args(["-serial", "stdio"]);
    boot(&mut command, guest, way.machine, "rekvm.check", "raw", disk);
    command
}
