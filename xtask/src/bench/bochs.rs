//! The same guest in Bochs, an interpreter too: for information beside the figures that count.
use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    guest::Guest,
    process::{cache, check, need, need_file},
};

const PACKAGES: [(&str, &str); 3] = [("bochs", "bochs"), ("genisoimage", "genisoimage"), ("script", "bsdutils")];

/// Debian's packages that hold files rather than programs.
const FILES: [(&str, &str); 5] = [
    ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    ("/usr/share/vgabios/vgabios.bin", "vgabios"),
    ("/usr/lib/ISOLINUX/isolinux.bin", "isolinux"),
    ("/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
    ("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "bochs-term"),
];

const CONFIG: &str = "display_library: term
com1: enabled=1, mode=file, dev=serial
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
speaker: enabled=0
plugin_ctrl: speaker=0, unmapped=1, biosdev=1, extfpuirq=0, gameport=0, parallel=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
memory: guest=512, host=512
clock: sync=none
cpu: count=1, model=corei7_skylake_x, ips=200000000
log: bochs.log
";

/// Seconds from start until the guest's init speaks.
pub fn boot(guest: &Guest, append: &str) -> Result<f64> {
    for (program, package) in PACKAGES {
        need(program, package)?;
    }
    for (file, package) in FILES {
        need_file(file, package)?;
    }
    let dir = cache().join("bochs");
    let _ = fs::remove_dir_all(&dir);
    let iso = dir.join("iso");
    fs::create_dir_all(&iso)?;
    fs::copy(&guest.kernel, iso.join("vmlinuz"))?;
    fs::copy(&guest.initrd, iso.join("initrd"))?;
    fs::copy("/usr/lib/ISOLINUX/isolinux.bin", iso.join("isolinux.bin"))?;
    fs::copy("/usr/lib/syslinux/modules/bios/ldlinux.c32", iso.join("ldlinux.c32"))?;
    fs::write(
        iso.join("isolinux.cfg"),
        format!("default l\nprompt 0\ntimeout 1\nlabel l\n kernel /vmlinuz\n append initrd=/initrd {append}\n"),
    )?;
    fs::write(dir.join("config"), CONFIG)?;
    fs::write(dir.join("commands"), "c\n")?;
    check(Command::new("genisoimage").current_dir(&dir).args([
        "-quiet",
        "-o",
        "boot.iso",
        "-b",
        "isolinux.bin",
        "-c",
        "boot.cat",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
        "iso",
    ]))?;
    // Bochs wants a terminal; script gives it one.
    let start = Instant::now();
    let mut child = Command::new("script")
        .current_dir(&dir)
        .args(["-qec", "exec bochs -q -f config -rc commands", "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let up = loop {
        sleep(Duration::from_millis(100));
        let serial = fs::read(dir.join("serial")).unwrap_or_default();
        if String::from_utf8_lossy(&serial).contains(rekvm_selftest::UP) {
            break Some(start.elapsed().as_secs_f64());
        }
        if start.elapsed() > Duration::from_secs(300) || child.try_wait()?.is_some() {
            break None;
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    match up {
        Some(seconds) => Ok(seconds),
        None => bail!("the guest did not come up in Bochs; its log is {}", dir.join("bochs.log").display()),
    }
}
