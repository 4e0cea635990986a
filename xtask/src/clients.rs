//! `cargo xtask clients`: other people's programs on `rekvm exec`. Debian's QEMU, as it is, boots Debian's kernels on several
//! machines and with the interrupt controllers in each place, and the guest tests itself; as a table.
use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::{
    boot_table::BootTable,
    choice::{chosen, name},
    guest::{self, Guest, Kind},
    process::{need, release_binary},
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
    /// Seconds after which a boot is given up.
    #[arg(long, default_value_t = 900)]
    timeout: u64,
}

/// See the module.
pub fn clients(options: &Options) -> Result<()> {
    need("qemu-system-x86_64", "qemu-system-x86")?;
    run::build()?;
    told()?;
    let limit = Duration::from_secs(options.timeout);
    let row = |guest: &str, machine: &str, irqchip: &str, cpus: &str| {
        format!("{guest:<10}{machine:<9}{irqchip:<9}{cpus:>4}  ")
    };
    let mut table = BootTable::new("client-logs", &row("guest", "machine", "irqchip", "cpus"))?;
    for kind in chosen(&options.guests) {
        let guest = guest::prepare(kind)?;
        for machine in chosen(&options.machines) {
            for irqchip in chosen(&options.irqchips) {
                for &cpus in &options.cpus {
                    let what = row(kind.name(), &name(machine), &name(irqchip), &cpus.to_string());
                    let log = format!("{}-{}-{}-{cpus}", kind.name(), name(machine), name(irqchip));
                    table.boot(&what, &log, |sink| {
                        let disk = run::Disk::new()?;
                        let mut command = qemu(&guest, machine, irqchip, cpus, disk.path());
                        run::proven(&mut command, &disk, cpus, limit, sink)
                    })?;
                }
            }
        }
    }
    table.end()
}

/// The user is told once who serves the client, or not at all; the client's children find rekvm only if asked for.
fn told() -> Result<()> {
    let said = |options: &[&str], script: &str| -> Result<(String, String)> {
        let mut command = Command::new(release_binary("rekvm"));
        let out = command.arg("exec").args(options).args(["--", "sh", "-c", script]).output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((text(out.stdout), text(out.stderr)))
    };
    let opens = "exec 3<>/dev/kvm 4<>/dev/kvm; readlink /proc/$$/fd/3";
    let (output, errors) = said(&[], opens)?;
    let lines =
        errors.lines().filter(|line| line.starts_with("rekvm: /dev/kvm is served by the software CPU in process "));
    ensure!(lines.count() == 1, "the user was not told once who serves: {errors}");
    ensure!(output.starts_with("/memfd:rekvm"), "the descriptor is no real one: {output}");
    let (_, errors) = said(&["--quiet"], opens)?;
    ensure!(errors.is_empty(), "with --quiet the user was told: {errors}");
    let device = "stat -c %t:%T:%a /dev/kvm; env | grep -c rekvm_preload.so";
    let (of_child, _) = said(&["--children"], device)?;
    ensure!(of_child == "a:e8:666\n1\n", "a child is not served: {of_child}");
    let (of_child, _) = said(&[], "env | grep -c -e rekvm_preload.so -e REKVM_EXEC")?;
    ensure!(of_child == "0\n", "a child is served unasked");
    Ok(())
}

fn qemu(guest: &Guest, machine: Machine, irqchip: Irqchip, cpus: u32, disk: &Path) -> Command {
    let mut command = Command::new(release_binary("rekvm"));
    command.args(["exec", "--", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-machine", &name(machine), "-accel", &format!("kvm,kernel-irqchip={}", name(irqchip))]);
    command.args(["-m", "512", "-smp", &cpus.to_string(), "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.args(["-append", "console=ttyS0 panic=-1 rekvm.check"]);
    let device = if machine == Machine::Microvm { "virtio-blk-device" } else { "virtio-blk-pci" };
    command.arg("-drive").arg(format!("if=none,id=disk,format=raw,file={}", disk.display()));
    command.args(["-device", &format!("{device},drive=disk")]);
    command
}
