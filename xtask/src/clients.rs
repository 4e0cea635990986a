//! `cargo xtask clients`: other people's programs on `rekvm exec`. Debian's QEMU, as it is, boots Debian's kernels on several
//! machines and with the interrupt controllers in each place, and the guest tests itself; as a table.
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{
    guest::{self, Guest, Kind},
    process::{need, release_binary, target_dir},
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

/// How many lines of a failed boot are shown.
const LAST: usize = 15;

fn name<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

fn chosen<T: ValueEnum + Copy>(asked: &[T]) -> Vec<T> {
    if asked.is_empty() { T::value_variants().to_vec() } else { asked.to_vec() }
}

/// See the module.
pub fn clients(options: &Options) -> Result<()> {
    need("qemu-system-x86_64", "qemu-system-x86")?;
    run::build()?;
    told()?;
    let logs = target_dir().join("client-logs");
    fs::create_dir_all(&logs)?;
    let (mut all, mut failed) = (0, 0);
    println!("{:<10}{:<9}{:<9}{:>4}  result", "guest", "machine", "irqchip", "cpus");
    for kind in chosen(&options.guests) {
        let guest = guest::prepare(kind)?;
        for machine in chosen(&options.machines) {
            for irqchip in chosen(&options.irqchips) {
                for &cpus in &options.cpus {
                    print!("{:<10}{:<9}{:<9}{cpus:>4}  ", kind.name(), name(machine), name(irqchip));
                    let _ = std::io::stdout().flush();
                    let path = logs.join(format!("{}-{}-{}-{cpus}.log", kind.name(), name(machine), name(irqchip)));
                    let mut log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
                    let mut lines: Vec<String> = Vec::new();
                    // The log is for people; a full disk shows in what comes next.
                    let mut sink = |line: &str| {
                        let _ = log.write_all(line.as_bytes());
                        lines.push(line.trim_end().to_owned());
                    };
                    let limit = Duration::from_secs(options.timeout);
                    let disk = run::Disk::new()?;
                    let mut command = qemu(&guest, machine, irqchip, cpus, disk.path());
                    all += 1;
                    match run::proven(&mut command, &disk, cpus, limit, &mut sink) {
                        Ok(took) => println!("ok in {:.0} s", took.as_secs_f64()),
                        Err(why) => {
                            failed += 1;
                            println!("FAIL: {why:#}; its console, of which this is the end, is {}", path.display());
                            lines.iter().skip(lines.len().saturating_sub(LAST)).for_each(|line| println!("    {line}"));
                        }
                    }
                }
            }
        }
    }
    println!("{all} boots: {} passed, {failed} failed", all - failed);
    ensure!(failed == 0, "{failed} of {all} boots failed");
    Ok(())
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
