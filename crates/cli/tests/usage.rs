//! What `rekvm` says when it is given what it cannot use: one clear line on
//! standard error, a status that is not 0, and nothing on standard output.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn rekvm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rekvm")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The one line of a failure.
#[track_caller]
fn failure(arguments: &[&str], status: i32) -> String {
    let output = rekvm(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    assert!(text.starts_with("rekvm: "), "{text}");
    text
}

#[track_caller]
fn fails(arguments: &[&str], status: i32, expected: &str) {
    let text = failure(arguments, status);
    assert!(text.contains(expected), "{arguments:?}: {text}");
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.dir.path().join(name);
        fs::File::create(&path).unwrap().write_all(contents).unwrap();
        text(&path)
    }

    /// A kernel that could be started: an ELF file whose only instruction is HLT.
    fn kernel(&self) -> String {
        self.file("kernel", &elf())
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn elf() -> Vec<u8> {
    let mut image = vec![0u8; 64 + 56 + 16];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    for (at, value, len) in [
        (18, 62, 2),
        (24, 0x10_0000, 8),
        (32, 64, 8),
        (54, 56, 2),
        (56, 1, 2),
        (64, 1, 4),
        (72, 120, 8),
        (88, 0x10_0000, 8),
        (96, 16, 8),
        (104, 16, 8u64),
    ] {
        image[at..at + len as usize].copy_from_slice(&u64::to_le_bytes(value)[..len as usize]);
    }
    image[120..].fill(0xf4);
    image
}

#[test]
fn missing_and_wrong_kernels() {
    let files = Files::new();
    let run = |kernel: &str| ["run", "--kernel", kernel].map(str::to_owned);
    let check = |kernel: &str, expected| fails(&run(kernel).each_ref().map(|s| s.as_str()), 1, expected);
    check("/nonexistent/vmlinuz", "kernel /nonexistent/vmlinuz: cannot open it: No such file");
    check("/tmp", "not a regular file");
    check("/dev/zero", "not a regular file");
    check(&files.file("empty", b""), "the file is empty");
    check(&files.file("text", &[b'x'; 4096]), "neither a bzImage nor an ELF kernel");
    check(&files.file("short", b"MZ"), "neither a bzImage nor an ELF kernel");
    check(&files.file("truncated", &elf()[..130]), "truncated");
    let mut i386 = elf();
    i386[4] = 1;
    check(&files.file("i386", &i386), "neither a bzImage nor an ELF kernel");
}

#[test]
fn initramfs() {
    let files = Files::new();
    let kernel = files.kernel();
    let run = ["run", "--memory", "16", "--kernel", &kernel, "--initrd"];
    let check = |initrd: &str, expected| fails(&[&run[..], &[initrd]].concat(), 1, expected);
    check("/nonexistent", "initrd /nonexistent: cannot open it");
    check(&files.file("empty", b""), "the file is empty");
    let large = files.file("large", b"x");
    fs::OpenOptions::new().write(true).open(&large).unwrap().set_len(32 << 20).unwrap();
    check(&large, "32768 KiB do not fit beside the kernel");
}

#[test]
fn memory_and_processors() {
    let files = Files::new();
    let kernel = files.kernel();
    let check = |option: &str, value: &str, status, expected| {
        fails(&["run", "--kernel", &kernel, option, value], status, expected);
    };
    check("--memory", "0", 2, "too little");
    check("--memory", "1K", 2, "too little");
    check("--memory", "", 2, "not a memory size");
    check("--memory", "-5", 2, "not a memory size");
    check("--memory", "lots", 2, "not a memory size");
    check("--memory", "99999999999999999999G", 2, "not a memory size");
    check("--memory", "17000000000G", 1, "more than this host has");
    check("--memory", "1000000G", 1, "more than this host has");
    check("--cpus", "0", 2, "not a number of processors");
    check("--cpus", "-1", 2, "not a number of processors");
    check("--cpus", "two", 2, "not a number of processors");
    check("--cpus", "5000000000", 2, "not a number of processors");
    check("--cpus", "4000000000", 1, "there can be 1 to");
}

#[test]
fn disks() {
    let files = Files::new();
    let kernel = files.kernel();
    let check = |disk: &str, status, expected| fails(&["run", "--kernel", &kernel, "--disk", disk], status, expected);
    check("/nonexistent", 1, "disk /nonexistent: No such file");
    check("/nonexistent,rw", 2, "the only option after the path is ro");
    check("/tmp,ro", 1, "neither a regular file nor a block device");
    check(&files.file("empty", b""), 1, "smaller than one sector");
    let disk = files.file("disk", &[0; 512]);
    let mut many = vec!["run", "--kernel", &kernel];
    for _ in 0..9 {
        many.extend(["--disk", &disk]);
    }
    fails(&many, 1, "9 disks are asked for; there can be up to 8");
    fails(&["run", "--kernel", &kernel, "--disk", &disk, "--disk", &disk], 1, "locked");
}

#[test]
fn options_of_the_software_cpu_are_for_it_alone() {
    let files = Files::new();
    let kernel = files.kernel();
    for options in [["--soft-tlb", "adversarial"], ["--soft-paging", "shadow"]] {
        fails(&["run", "--kernel", &kernel, options[0], options[1]], 2, "need --accel soft");
    }
}

#[test]
fn a_device_that_is_demanded_is_not_replaced() {
    let files = Files::new();
    let kernel = files.kernel();
    let check = |device: &str, expected| {
        fails(&["run", "--kernel", &kernel, "--accel", "kvm", "--device", device], 1, expected);
    };
    check("/nonexistent", "/nonexistent cannot be opened: No such file");
    check("/dev/null", "/dev/null failed to run a test guest");
    check(&text(&PathBuf::from("/tmp")), "/tmp cannot be opened");
}

#[test]
fn command_lines() {
    let files = Files::new();
    let kernel = files.kernel();
    let long = "x".repeat(4000);
    fails(&["run", "--kernel", &kernel, "--append", &long], 1, "4000 characters; this kernel takes at most 2047");
}

#[test]
fn unknown_options_and_missing_ones_are_usage() {
    for arguments in [&["run"][..], &["run", "--kernel"], &["frobnicate"], &[], &["run", "--accel", "magic"]] {
        let output = rekvm(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn statistics_of_nobody() {
    let empty = tempfile::tempdir().unwrap();
    for (pid, expected) in [(None, "no guest is running"), (Some("4194305"), "no rekvm runs with process id")] {
        let output = Command::new(env!("CARGO_BIN_EXE_rekvm"))
            .args(["stat", "--once"])
            .args(pid)
            .env("XDG_RUNTIME_DIR", empty.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().contains(expected));
    }
}

#[test]
fn clients_that_cannot_be_run() {
    let files = Files::new();
    fails(&["exec", "--", "no-such-program"], 127, "there is no program no-such-program");
    fails(&["exec", "--", "/no/such/program"], 127, "there is no program /no/such/program");
    let text = files.file("text", b"no program");
    fails(&["exec", "--", &text], 126, "is no program for x86-64 Linux");
    let mut short = elf();
    short.truncate(70);
    fails(&["exec", "--", &files.file("short", &short)], 126, "cannot read");
}
