//! How guests end, that they end only themselves, and what they cost.

use crate::code::{Code, Guest, accel, command, wait};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

#[track_caller]
fn run(code: Code) -> Output {
    command(&code.kernel()).output().unwrap()
}

#[track_caller]
fn check(code: Code, status: i32, stdout: &str, stderr: &str) {
    let output = run(code);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), stdout);
    assert!(errors.starts_with("rekvm: back end: "), "{errors}");
    assert!(errors.contains(stderr), "{errors}");
}

/// Starts a guest that prints "go" before it does anything else; returns once it has.
fn start(code: &Code, options: &[&str]) -> Guest {
    let all = Code::default().print("go\n").raw(&code.0);
    let kernel = all.kernel();
    let mut child = Guest::spawn(command(&kernel).args(options));
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "go\n", "{}", errors(&mut child));
    child
}

fn errors(child: &mut Guest) -> String {
    let mut text = String::new();
    child.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
    text
}

fn signal(child: &Guest, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// User and system time of a process, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn power_off_is_success_and_loses_no_output() {
    let text = "all of this, to the last letter\n".repeat(40);
    check(Code::default().print(&text).power_off().spin(), 0, &text, "switched itself off");
}

#[test]
fn reset_has_its_status() {
    check(Code::default().out8(0x64, 0xfe).spin(), 3, "", "asked for a reset");
}

#[test]
fn a_triple_fault_is_a_crash_with_registers() {
    let output = run(Code::default().print("x").triple_fault());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("the guest crashed: triple fault on vCPU 0"), "{errors}");
    assert!(errors.contains("\n  rip    ") && errors.contains("\n  cs     "), "{errors}");
}

#[test]
fn where_nothing_is_reads_are_ones_and_writes_are_lost() {
    let code = Code::default()
        // mov ebx, 0xd8000000; mov [rbx], ebx; mov eax, [rbx]
        .raw(&[0xbb, 0, 0, 0, 0xd8, 0x89, 0x1b, 0x8b, 0x03])
        .expect_all_ones()
        .out16(0x9999, 1)
        .in32(0x9999)
        .expect_all_ones()
        .print("ok")
        .power_off()
        .spin();
    check(code, 0, "ok", "");
}

#[test]
fn input_reaches_a_guest_that_polls() {
    // next: mov dx, 0x3fd; in al, dx; test al, 1; jz next; mov dx, 0x3f8; in al, dx; out dx, al;
    // cmp al, 'q'; jne next
    let echo = Code::default()
        .raw(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7])
        .raw(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'q', 0x75, 0xed])
        .power_off()
        .spin();
    // More than the port's FIFO holds, and an escape key that is none without a terminal.
    let text = "\x01x".to_owned() + &"0123456789".repeat(200) + "q";
    let kernel = echo.kernel();
    let mut child = Guest::spawn(command(&kernel).stdin(Stdio::piped()));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let mut output = String::new();
    child.stdout.as_mut().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(output, text);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_guest_that_spins_is_ended_by_signals() {
    for (name, status) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let mut child = start(&Code::default().spin(), &["--cpus", "2"]);
        signal(&child, name);
        wait(|| child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(status), "{}", errors(&mut child));
    }
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_guest() {
    // The delay lets the pipe close before the guest goes on: mov ecx, 2^26; loop to itself
    let code = Code::default().raw(&[0xb9, 0, 0, 0, 4, 0xe2, 0xfe]).print("unheard").power_off().spin();
    let mut child = start(&code, &[]);
    drop(child.stdout.take());
    wait(|| child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", errors(&mut child));
}

#[test]
fn a_halted_guest_costs_next_to_nothing() {
    let mut child = start(&Code::default().halt(), &["--cpus", "2"]);
    std::thread::sleep(Duration::from_millis(200));
    let before = ticks(child.id());
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks(child.id()) - before;
    signal(&child, "TERM");
    child.wait().unwrap();
    // 200 ticks are two seconds of a processor; 2 % are 4.
    assert!(used <= 4, "{used} ticks in two seconds");
}

#[test]
fn memory_beyond_the_guests_is_little() {
    let mut child = start(&Code::default().halt(), &["--memory", "512"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let field = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = field.split_whitespace().nth(1).unwrap().parse().unwrap();
    signal(&child, "TERM");
    child.wait().unwrap();
    // This guest touches a few pages of its own.
    assert!(kib < 64 << 10, "{kib} KiB");
}

#[test]
fn the_first_instruction_comes_soon() {
    if accel() != "soft" {
        return; // The test guest comes before the guest.
    }
    let kernel = Code::default().power_off().spin().kernel();
    let once = || {
        let start = Instant::now();
        let status = command(&kernel).args(["--memory", "512"]).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(0));
        start.elapsed()
    };
    // From exec to the end of the process; the best of some, for a busy machine.
    let best = (0..10).map(|_| once()).min().unwrap();
    assert!(best < Duration::from_millis(50), "{best:?}");
}

#[test]
fn statistics_of_running_guests() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = Code::default().print("go").halt().kernel();
    let spawn = || {
        let mut child = Guest::spawn(command(&kernel).env("XDG_RUNTIME_DIR", directory.path()));
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        child
    };
    let stat = || {
        let output = Command::new(env!("CARGO_BIN_EXE_rekvm"))
            .args(["stat", "--once"])
            .env("XDG_RUNTIME_DIR", directory.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mut first = spawn();
    let alone = stat();
    let mut second = spawn();
    let both = stat();
    for child in [&mut first, &mut second] {
        signal(child, "TERM");
        child.wait().unwrap();
    }
    assert!(alone.starts_with(&format!("{}  up 0:00:0", first.id())), "{alone}");
    assert!(alone.contains("exits") || alone.contains("no statistics"), "{alone}");
    assert!(both.contains("several") && both.contains(&second.id().to_string()), "{both}");
    assert_eq!(std::fs::read_dir(directory.path().join("rekvm")).unwrap().count(), 0);
}
