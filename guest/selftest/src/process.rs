//! Processes are forked, replaced by another program, talked to through pipes and waited for.
use std::{
    io::{Read, Write},
    process::{Command, Stdio},
};

use crate::{Check, ensure};

/// The argument that makes this program the child.
pub const CHILD: &str = "--child";
const STATUS: i32 = 42;

/// What the child does: answers each byte with its complement and ends with a status of its own.
pub fn child() -> ! {
    let mut input = Vec::new();
    let status = match std::io::stdin().read_to_end(&mut input) {
        Ok(_) => {
            input.iter_mut().for_each(|b| *b = !*b);
            std::io::stdout().write_all(&input).map_or(1, |()| STATUS)
        }
        Err(_) => 1,
    };
    std::process::exit(status)
}

/// See the module.
pub fn check() -> Check {
    for round in 0..10u8 {
        let mut child = Command::new("/proc/self/exe")
            .arg(CHILD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("spawn: {e}"))?;
        let sent = vec![round; 3000];
        child.stdin.take().ok_or("no pipe")?.write_all(&sent).map_err(|e| format!("write: {e}"))?;
        let output = child.wait_with_output().map_err(|e| format!("wait: {e}"))?;
        ensure!(output.status.code() == Some(STATUS), "the child ended with {}", output.status);
        ensure!(output.stdout == vec![!round; 3000], "the child's answer was damaged");
    }
    copy_on_write()
}

/// A child's writes must not be seen by its parent.
fn copy_on_write() -> Check {
    let mut pages = vec![7u8; 64 * 4096];
    // SAFETY: the child only touches its own copy of memory and leaves with _exit.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork failed");
    if pid == 0 {
        pages.iter_mut().for_each(|b| *b = 9);
        let ok = std::hint::black_box(&pages).iter().all(|&b| b == 9);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(if ok { STATUS } else { 1 }) }
    }
    let mut status = 0;
    // SAFETY: waits for our own child; status is a valid place.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    ensure!(waited == pid && libc::WEXITSTATUS(status) == STATUS, "the forked child saw wrong memory");
    ensure!(std::hint::black_box(&pages).iter().all(|&b| b == 7), "the parent saw its child's writes");
    Ok(())
}
