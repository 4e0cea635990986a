//! The terminal is left as it was found, whatever ends the guest.

use crate::code::{Code, Guest, command, wait};
use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

/// A terminal with a guest on it.
struct Session {
    /// The end where a person would sit.
    person: File,
    /// The end where the program sits.
    program: File,
    child: Guest,
    before: libc::termios,
}

fn settings(terminal: &File) -> libc::termios {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the structure is written before it is read.
    unsafe {
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()), 0);
        settings.assume_init()
    }
}

fn is_raw(terminal: &File) -> bool {
    settings(terminal).c_lflag & (libc::ICANON | libc::ISIG | libc::ECHO) == 0
}

impl Session {
    /// Starts a guest that prints "go" first; returns once it has.
    fn start(code: &Code) -> Self {
        let (mut person, mut program) = (0, 0);
        let null = std::ptr::null_mut();
        // SAFETY: two descriptors are written; the rest is left to the system.
        assert_eq!(unsafe { libc::openpty(&mut person, &mut program, null, null.cast(), null.cast()) }, 0);
        // SAFETY: both are new and owned by nobody else.
        let (person, program) = unsafe { (File::from_raw_fd(person), File::from_raw_fd(program)) };
        let before = settings(&program);
        let kernel = Code::default().print("go").raw(&code.0).kernel();
        let stream = || Stdio::from(program.try_clone().unwrap());
        let mut command = command(&kernel);
        command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = Guest::spawn(&mut command);
        let mut session = Self { person, program, child, before };
        session.expect("Ctrl-A x");
        session.expect("go");
        session
    }

    /// Reads up to a text.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let mut seen = Vec::new();
        let mut poll = libc::pollfd { fd: self.person.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        while !String::from_utf8_lossy(&seen).contains(text) {
            // SAFETY: one valid entry.
            let ready = unsafe { libc::poll(&mut poll, 1, 10_000) };
            assert_eq!(ready, 1, "waiting for {text:?} after {:?}", String::from_utf8_lossy(&seen));
            let mut byte = [0];
            self.person.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    }

    /// Waits for the end and compares the terminal with what it was.
    #[track_caller]
    fn ends(mut self, status: Option<i32>) {
        wait(|| self.child.try_wait().unwrap().is_some());
        assert_eq!(self.child.wait().unwrap().code(), status);
        let after = settings(&self.program);
        let flags = |t: &libc::termios| (t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag);
        assert_eq!(flags(&after), flags(&self.before));
    }
}

#[test]
fn keys_go_to_the_guest_and_the_escape_key_ends_it() {
    // Waits for a byte, answers with its successor.
    let code = Code::default()
        .raw(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7])
        .raw(&[0x66, 0xba, 0xf8, 0x03, 0xec, 0xfe, 0xc0, 0xee, 0xeb, 0xed]);
    let mut session = Session::start(&code);
    assert!(is_raw(&session.program));
    // Ctrl-C is the guest's, and Ctrl-A typed twice.
    session.person.write_all(b"\x03a\x01\x01").unwrap();
    session.expect("\x04b\x02");
    session.person.write_all(b"\x01h").unwrap();
    session.expect("Ctrl-A x ends the guest");
    session.person.write_all(b"\x01x").unwrap();
    session.ends(Some(130));
}

#[test]
fn the_escape_key_works_when_the_guest_does_not_read() {
    let mut session = Session::start(&Code::default().spin());
    for _ in 0..50 {
        session.person.write_all(&[b'k'; 200]).unwrap();
    }
    session.person.write_all(b"\x01x").unwrap();
    session.ends(Some(130));
}

#[test]
fn endings_of_the_guest_restore_the_terminal() {
    Session::start(&Code::default().power_off().spin()).ends(Some(0));
    Session::start(&Code::default().out8(0x64, 0xfe).spin()).ends(Some(3));
    Session::start(&Code::default().triple_fault()).ends(Some(4));
}

#[test]
fn signals_restore_the_terminal() {
    for (signal, status) in [
        (libc::SIGTERM, Some(143)),
        (libc::SIGHUP, Some(129)),
        (libc::SIGINT, Some(130)),
        (libc::SIGSEGV, None),
        (libc::SIGABRT, None),
    ] {
        let session = Session::start(&Code::default().spin());
        assert!(is_raw(&session.program));
        // SAFETY: the child has not been waited for, so the number is its own.
        unsafe { libc::kill(session.child.id() as libc::pid_t, signal) };
        session.ends(status);
    }
}
