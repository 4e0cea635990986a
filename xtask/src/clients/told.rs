//! What the user of a client is told: who serves it, how its guest fares (`rekvm stat`), and why a guest cannot go on.
use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Accel, Irqchip, LOGS, Machine, emulator::Emulator, qemu};
use crate::process::{output, release_binary, target_dir};

/// How long a guest of a few instructions may take.
const LIMIT: Duration = Duration::from_secs(60);

/// All of it, held against what it must be.
pub fn told() -> Result<()> {
    who()?;
    statistics()?;
    report()
}

/// The user is told once who serves the client, or not at all; the client's children find rekvm only if asked for.
fn who() -> Result<()> {
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

/// A firmware of 64 KiB that does `code` where processors start.
fn firmware(name: &str, code: &[u8]) -> Result<Command> {
    let mut image = vec![0xf4; 0x10000];
    image[0xfff0..][..code.len()].copy_from_slice(code);
    let folder = std::path::absolute(target_dir().join(LOGS))?;
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.bin"));
    fs::write(&path, image)?;
    let mut command = qemu(Machine::Pc, Accel::Rekvm(Irqchip::On), 2, 16);
    command.args(["-vga", "std"]).arg("-bios").arg(path);
    Ok(command)
}

/// `rekvm stat` shows the guest of a client, and its socket goes with it.
fn statistics() -> Result<()> {
    let folder = std::path::absolute(target_dir().join(LOGS).join("runtime"))?;
    // A client that was killed has left its socket.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    // Writes to a port of nobody's for ever.
    let mut command = firmware("stat", &[0xe6, 0x80, 0xeb, 0xfc])?;
    // A filter of the client's own does no harm.
    command.args(["-sandbox", "on"]).env("XDG_RUNTIME_DIR", &folder);
    let mut client = Emulator::start(command, LOGS, "stat")?;
    let text = client.until("exits of the guest's", LIMIT, |client| {
        let text = stat(&folder, client.id())?;
        Ok((row(&text, "io_exits").is_some_and(|exits| exits > 0)).then_some(text))
    })?;
    let heading = text.lines().next().unwrap_or_default();
    ensure!(heading.contains("software CPU") && heading.contains("rekvm exec"), "who serves is not told: {heading}");
    ensure!(row(&text, "vcpus") == Some(2), "the guest's processors are not told: {text}");
    queried(&mut client)?;
    client.quit()?;
    let left = fs::read_dir(folder.join("rekvm"))?.count();
    ensure!(left == 0, "{left} sockets are left in {}", folder.display());
    Ok(())
}

/// QEMU, which reads the same from KVM_GET_STATS_FD, tells it by its monitor.
fn queried(client: &mut Emulator) -> Result<()> {
    let said = client.execute("query-stats", json!({ "target": "vcpu" }))?;
    let exits = |vcpu: &Value| {
        let stat = vcpu["stats"].as_array()?.iter().find(|stat| stat["name"] == "io_exits")?;
        stat["value"].as_u64()
    };
    let mut exits: Vec<_> = said.as_array().into_iter().flatten().filter_map(exits).collect();
    exits.sort_unstable();
    // One vCPU has not been started.
    ensure!(exits.len() == 2 && exits[0] == 0 && exits[1] > 0, "QEMU does not tell of its guest's exits: {said}");
    Ok(())
}

/// What `rekvm stat` says of a process.
fn stat(folder: &Path, process: u32) -> Result<String> {
    let mut command = Command::new(release_binary("rekvm"));
    output(command.args(["stat", "--once", &process.to_string()]).env("XDG_RUNTIME_DIR", folder))
}

/// The total in a row of a table.
fn row(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.trim().strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// A failed emulation is told in words: the instruction's bytes, the mode and registers (row E06).
fn report() -> Result<()> {
    // mov ax, 0x9000; mov ds, ax; mov byte ptr [0xffff], 0x0f; jmp 0x9fff:0x000f. What follows there is the screen.
    let code = [0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xc6, 0x06, 0xff, 0xff, 0x0f, 0xea, 0x0f, 0x00, 0xff, 0x9f];
    let mut client = Emulator::start(firmware("report", &code)?, LOGS, "report")?;
    let said = "vCPU 0: cannot emulate at 0x9fff:0xf in real mode, CPL 0: 0f; CR0 0x60000010 ";
    let line = client.until("a report", LIMIT, |client| {
        let errors = client.errors()?;
        Ok(errors.lines().find(|line| line.contains("cannot emulate")).map(str::to_owned))
    })?;
    ensure!(line.contains(said) && line.contains(" RAX 0x9000 "), "the report does not say what it must: {line}");
    client.quit()
}
