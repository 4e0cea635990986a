//! Bochs, an interpreter of x86 that has VT-x: how a Linux kernel is started in it and its serial ports are read.
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result};

use crate::process::{check, die_with_us, need, need_file};

const PACKAGES: [(&str, &str); 3] = [("bochs", "bochs"), ("genisoimage", "genisoimage"), ("script", "bsdutils")];

/// Debian's packages that hold files rather than programs.
const FILES: [(&str, &str); 5] = [
    ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    ("/usr/share/vgabios/vgabios.bin", "vgabios"),
    ("/usr/lib/ISOLINUX/isolinux.bin", "isolinux"),
    ("/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
    ("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "bochs-term"),
];

/// An access to a register that Bochs does not know is an "error" to it, and goes well; each exit of a guest may make one.
const CONFIG: &str = "display_library: term
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
speaker: enabled=0
plugin_ctrl: speaker=0, unmapped=1, biosdev=1, extfpuirq=0, gameport=0, parallel=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
clock: sync=none
panic: action=fatal
error: action=ignore
log: bochs.log
";

/// Instructions that Bochs executes in a second of its own time.
pub const IPS: u32 = 200_000_000;

/// What is started.
pub struct Machine<'a> {
    /// Bochs's name of the processor.
    pub model: &'a str,
    pub cpus: u32,
    /// MiB.
    pub memory: u32,
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    /// The kernel's command line.
    pub append: &'a str,
}

/// The file in which the output of serial port `n` (from 0) appears.
pub fn serial(n: u32) -> String {
    format!("serial{n}")
}

/// Bochs's own log, which says why it gave up.
pub const LOG: &str = "bochs.log";

/// Installs what is missing.
pub fn need_all() -> Result<()> {
    for (program, package) in PACKAGES {
        need(program, package)?;
    }
    for (file, package) in FILES {
        need_file(file, package)?;
    }
    Ok(())
}

impl Machine<'_> {
    /// Starts it in the folder `dir`, which is emptied first and holds the output of `ports` serial ports afterwards.
    pub fn start(&self, dir: &Path, ports: u32) -> Result<Child> {
        need_all()?;
        let _ = fs::remove_dir_all(dir);
        let iso = dir.join("iso");
        fs::create_dir_all(&iso)?;
        fs::copy(self.kernel, iso.join("vmlinuz"))?;
        fs::copy(self.initrd, iso.join("initrd"))?;
        fs::copy("/usr/lib/ISOLINUX/isolinux.bin", iso.join("isolinux.bin"))?;
        fs::copy("/usr/lib/syslinux/modules/bios/ldlinux.c32", iso.join("ldlinux.c32"))?;
        let append = self.append;
        fs::write(
            iso.join("isolinux.cfg"),
            format!("default l\nprompt 0\ntimeout 1\nlabel l\n kernel /vmlinuz\n append initrd=/initrd {append}\n"),
        )?;
        let mut config = CONFIG.to_owned();
        for n in 0..ports {
            config.push_str(&format!("com{}: enabled=1, mode=file, dev={}\n", n + 1, serial(n)));
        }
        let (memory, cpus, model) = (self.memory, self.cpus, self.model);
        config.push_str(&format!("memory: guest={memory}, host={memory}\n"));
        config.push_str(&format!("cpu: count={cpus}, model={model}, ips={IPS}\n"));
        fs::write(dir.join("config"), config)?;
        // Debian's build waits in its debugger for this.
        fs::write(dir.join("commands"), "c\n")?;
        let image = ["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"];
        check(
            Command::new("genisoimage")
                .current_dir(dir)
                .args(["-quiet", "-o", "boot.iso", "-b", "isolinux.bin", "-c", "boot.cat"])
                .args(image)
                .arg("iso"),
        )?;
        fs::remove_dir_all(iso)?;
        // Bochs wants a terminal; script gives it one, and takes Bochs along when it is killed.
        let mut command = Command::new("script");
        command.current_dir(dir).args(["-qec", "exec bochs -q -f config -rc commands", "/dev/null"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = die_with_us(&mut command).spawn().context("cannot start Bochs")?;
        let said = child.stdout.take().context("no output")?;
        thread::spawn(move || drain(said));
        Ok(child)
    }
}

/// What Bochs says before the name of the terminal that it has opened for its screen.
const SCREEN: &str = "Bochs connected to screen \"";

/// Reads what Bochs says, and its screen, for as long as it runs: it would wait for ever for somebody who does.
fn drain(said: impl Read) {
    for line in BufReader::new(said).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let screen = line.split_once(SCREEN).and_then(|(_, rest)| rest.split_once('"'));
        // It is not to become our own terminal.
        if let Some((name, _)) = screen
            && let Ok(mut screen) = File::options().read(true).custom_flags(libc::O_NOCTTY).open(name)
        {
            thread::spawn(move || io::copy(&mut screen, &mut io::sink()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::CStr, io::Write, os::fd::AsRawFd, sync::mpsc, time::Duration};

    use super::*;

    #[test]
    fn the_screen_is_read_so_that_bochs_never_waits_for_a_reader() {
        let mut screen = File::options().read(true).write(true).open("/dev/ptmx").expect("a terminal");
        // SAFETY: the descriptor is open; the name is copied before the next call that replaces it.
        let name = unsafe {
            assert_eq!((libc::grantpt(screen.as_raw_fd()), libc::unlockpt(screen.as_raw_fd())), (0, 0));
            CStr::from_ptr(libc::ptsname(screen.as_raw_fd())).to_string_lossy().into_owned()
        };
        drain(format!("\nBochs connected to screen \"{name}\"\n").as_bytes());
        let (done, written) = mpsc::channel();
        thread::spawn(move || {
            // Far more than a terminal holds.
            screen.write_all(&b"x\r\n".repeat(100_000)).expect("a reader");
            done.send(())
        });
        written.recv_timeout(Duration::from_secs(60)).expect("the screen is read");
    }
}
