//! `cargo xtask clients --firmware`: SeaBIOS boots a rescue image of GRUB's from a disk; its menu is looked at in text and in
//! graphics, and from there memtest86+ is started on a small memory. QEMU's TCG does it first: the text buffer and the pictures of
//! `rekvm exec` have to be the same. The pictures stay in the build directory.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{Accel, LOGS, Machine, Options, emulator::Emulator, qemu};
use crate::{
    boot_table::BootTable,
    choice::{chosen, name},
    guest::deb,
    process::{cache, check, need},
};

/// Megabytes that memtest86+ has to test.
const MEMORY: u32 = 24;

/// The menu. memtest86+ with one processor: its others would spin.
const MENU: &str = "\
set timeout=-1
set gfxmode=640x480
loadfont unicode
menuentry 'memtest86+' { linux16 /boot/memtest nosmp }
menuentry 'graphics' { insmod all_video; insmod gfxterm; terminal_output gfxterm }
menuentry 'nothing' { true }
";

/// What is done to the menu, and what the screen is then.
const STEPS: [(&str, &[&str], Screen); 7] = [
    ("menu", &[], Screen::Text("GNU GRUB")),
    ("down", &["down"], Screen::Text("GNU GRUB")),
    ("graphics", &["ret"], Screen::Graphics),
    ("graphics-down", &["down"], Screen::Graphics),
    ("graphics-down-again", &["down"], Screen::Graphics),
    ("graphics-help", &["c"], Screen::Graphics),
    ("graphics-back", &["esc"], Screen::Graphics),
];

/// From the last step to the menu's first entry.
const TO_MEMTEST: [&str; 3] = ["up", "up", "ret"];

/// memtest86+'s first test that need not end.
const ENOUGH: u32 = 4;

#[derive(Clone, Copy)]
enum Screen {
    /// The text buffer is to hold this.
    Text(&'static str),
    Graphics,
}

/// See the module.
pub fn firmware(options: &Options) -> Result<()> {
    let image = image()?;
    let row = |machine: &str, irqchip: &str| format!("{machine:<9}{irqchip:<9}");
    let mut table = BootTable::new(LOGS, &row("machine", "irqchip"))?;
    for machine in chosen(&options.machines) {
        // No VGA, and no place where a PC boots from.
        if machine == Machine::Microvm {
            continue;
        }
        let mut theirs = None;
        for irqchip in chosen(&options.irqchips) {
            let log = format!("firmware-{}-{}", name(machine), name(irqchip));
            table.boot(&row(&name(machine), &name(irqchip)), &log, |sink| {
                let theirs = match &theirs {
                    Some(theirs) => theirs,
                    None => {
                        let log = format!("firmware-{}-tcg", name(machine));
                        let mut tcg = start(&image, machine, Accel::Tcg, &log)?;
                        theirs.insert(see(&mut tcg, None, options.limit(), sink)?)
                    }
                };
                let begun = Instant::now();
                let mut emulator = start(&image, machine, Accel::Rekvm(irqchip), &log)?;
                see(&mut emulator, Some(theirs), options.limit(), sink)?;
                let pictures = emulator.folder().display();
                Ok(format!("in {:.0} s, as TCG; pictures: {pictures}/{log}-*.png", begun.elapsed().as_secs_f64()))
            })?;
        }
    }
    table.end()
}

/// GRUB's rescue image with memtest86+ on it, which is a disk image too.
fn image() -> Result<PathBuf> {
    need("grub-mkrescue", "grub-common")?;
    need("xorriso", "xorriso")?;
    // Where the image has a place for EFI, it is made with these.
    need("mformat", "mtools")?;
    let (grub, memtest) = (deb::unpacked("grub-pc-bin")?, deb::unpacked("memtest86+")?);
    let root = cache().join("firmware");
    let boot = root.join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    fs::write(boot.join("grub/grub.cfg"), MENU)?;
    fs::copy(memtest.join("boot/memtest86+x64.bin"), boot.join("memtest"))?;
    let image = std::path::absolute(cache().join("firmware.iso"))?;
    let mut command = Command::new("grub-mkrescue");
    command.args(["--fonts=unicode", "--locales=", "--themes=", "--directory"]).arg(grub.join("usr/lib/grub/i386-pc"));
    command.arg("--output").arg(&image).arg(&root).stdout(std::process::Stdio::null());
    check(command.stderr(std::process::Stdio::null()))?;
    Ok(image)
}

fn start(image: &Path, machine: Machine, accel: Accel, log: &str) -> Result<Emulator> {
    let mut command = qemu(machine, accel, 1, MEMORY);
    command.args(["-vga", "std", "-snapshot"]);
    // By itself, QEMU tells guests of /dev/kvm that the processor is of this machine's vendor, and those of TCG that it is AMD's.
    command.args(["-cpu", "qemu64,vendor=AuthenticAMD"]);
    command.arg("-drive").arg(format!("format=raw,if=none,id=disk,file={}", image.display()));
    command.args(["-device", "ide-hd,drive=disk"]);
    Emulator::start(command, LOGS, log)
}

/// The screen after each step, and what memtest86+ says of the memory.
struct Seen {
    steps: Vec<Vec<u8>>,
    memory: Vec<String>,
}

/// Goes all steps. Without `like`, a screen counts when it has stood still; with it, when it is the same.
fn see(emulator: &mut Emulator, like: Option<&Seen>, limit: Duration, sink: &mut dyn FnMut(&str)) -> Result<Seen> {
    let mut steps: Vec<Vec<u8>> = Vec::new();
    for (i, (what, keys, kind)) in STEPS.into_iter().enumerate() {
        keys.iter().try_for_each(|key| emulator.press(key))?;
        let mut still = Still::default();
        let screen = emulator.until(&format!("the screen of step {what}"), limit, |emulator| {
            let picture = emulator.picture(what)?;
            let (screen, holds) = match kind {
                Screen::Text(wanted) => {
                    let text = emulator.text()?;
                    let holds = rows(&text).iter().any(|row| row.contains(wanted));
                    (text, holds)
                }
                Screen::Graphics => (picture, true),
            };
            let new = steps.last() != Some(&screen);
            let done = match like {
                Some(like) => like.steps.get(i) == Some(&screen),
                None => still.since(&screen) && holds && new,
            };
            Ok(done.then_some(screen))
        })?;
        sink(&format!("{what}: {} bytes\n", screen.len()));
        steps.push(screen);
    }
    TO_MEMTEST.iter().try_for_each(|key| emulator.press(key))?;
    let (text, memory) = emulator.until("the third test of memtest86+", limit, |emulator| {
        let text = rows(&emulator.text()?);
        // Before it has begun there is no number yet.
        ensure!(number(&text, "Errors:").is_none_or(|errors| errors == 0), "memtest86+ finds errors: {text:?}");
        // Between two tests it does not say what it tests.
        let memory = memory(&text).filter(|_| test(&text) >= Some(ENOUGH));
        Ok(memory.map(|memory| (text, memory)))
    })?;
    emulator.picture("memtest")?;
    text.iter().for_each(|row| sink(&format!("{row}\n")));
    if let Some(like) = like {
        ensure!(memory == like.memory, "memtest86+ sees another memory than on TCG: {memory:?}, {:?}", like.memory);
    }
    Ok(Seen { steps, memory })
}

/// A screen that does not change any more.
#[derive(Default)]
struct Still {
    screen: Vec<u8>,
    since: Option<Instant>,
}

impl Still {
    fn since(&mut self, screen: &[u8]) -> bool {
        if self.screen != screen {
            self.screen = screen.to_vec();
            self.since = None;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(2)
    }
}

/// The characters of the text screen; what is not ASCII is a dot.
fn rows(text: &[u8]) -> Vec<String> {
    let character = |cell: &[u8]| if (0x20..0x7f).contains(&cell[0]) { char::from(cell[0]) } else { '.' };
    text.chunks_exact(160).map(|row| row.chunks_exact(2).map(character).collect()).collect()
}

/// The number behind `mark`.
fn number(rows: &[String], mark: &str) -> Option<u32> {
    let rest = rows.iter().find_map(|row| Some(row.split_once(mark)?.1.trim_start()))?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok()
}

/// The number of the test that memtest86+ is at, in its first pass; any, if that has ended.
fn test(rows: &[String]) -> Option<u32> {
    if number(rows, "Pass:")? > 0 { Some(u32::MAX) } else { number(rows, "Test #") }
}

/// What does not depend on speed: the processor, sizes of caches and memory, and how much is tested.
fn memory(rows: &[String]) -> Option<Vec<String>> {
    let processor = rows.first()?.trim().to_owned();
    let sizes = rows.iter().take(6).filter_map(|row| {
        let (what, rest) = row.get(..28)?.split_once(':')?;
        (!what.contains("CLK")).then(|| format!("{} {}", what.trim(), rest.split_whitespace().next().unwrap_or("")))
    });
    let tested = rows.iter().find_map(|row| Some(row.split_once(" of ")?.1.split_once(']')?.0.to_owned()))?;
    Some([processor].into_iter().chain(sizes).chain([tested]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_of_memtest_is_read() {
        let rows: Vec<_> = [
            "      Memtest86+ v6.10      . QEMU Virtual CPU version 2.5+",
            "CLK/Temp: 3251MHz           . Pass 17% ######",
            "L1 Cache:   64KB  25.6 GB/s . Test 14% #####",
            "L2 Cache:  512KB            . Test #6  [Moving inversions, 64 bit pattern]",
            "L3 Cache:   16MB            . Testing: 0KB - 4MB [4MB of 23.4MB]",
            "Memory  :   23MB  1.2 GB/s  . Pattern: 0x0000000000004000",
            "Using: All Cores            . Pass:  0        Errors: 0",
        ]
        .map(str::to_owned)
        .to_vec();
        assert_eq!((test(&rows), number(&rows, "Errors:")), (Some(6), Some(0)));
        let seen = memory(&rows).expect("read");
        assert_eq!(seen[1..], ["L1 Cache 64KB", "L2 Cache 512KB", "L3 Cache 16MB", "Memory 23MB", "23.4MB"]);
        assert!(test(&rows[..4]).is_none() && memory(&rows[..4]).is_none());
    }
}
