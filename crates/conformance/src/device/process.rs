//! Child processes of a case: for what a descriptor means in another process, and for signals that kill.
use std::time::{Duration, Instant};

use super::Errno;
use crate::vm::scaled;

/// A child, killed and waited for when it goes.
pub struct Child(libc::pid_t);

/// Runs `act` in a copy of this process, which ends with what it returns. Of other threads it has only the locks that they hold:
/// those of the allocator and of the device are free in the copy, and `act` needs no others.
pub fn in_child(act: impl FnOnce() -> i32) -> Child {
    // SAFETY: as said above.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", Errno::last()),
        0 => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or(101);
            std::process::exit(status)
        }
        pid => Child(pid),
    }
}

/// Sets the group of the process to what it is, for which the C library interrupts all threads that it knows and waits for them.
pub fn set_own_group() -> Result<(), Errno> {
    // SAFETY: asks, and changes nothing.
    if unsafe { libc::setgid(libc::getgid()) } == 0 { Ok(()) } else { Err(Errno::last()) }
}

impl Child {
    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child, not waited for yet.
        unsafe { libc::kill(self.0, signal) };
    }

    /// Waits for its end: its exit status, or 128 and the signal's number.
    ///
    /// # Panics
    /// If it does not end soon.
    pub fn wait(mut self) -> i32 {
        let end = Instant::now() + scaled(Duration::from_secs(5));
        loop {
            let mut status = 0;
            // SAFETY: our own child.
            let pid = unsafe { libc::waitpid(self.0, &mut status, libc::WNOHANG) };
            if pid == self.0 {
                self.0 = 0;
                let signal = libc::WTERMSIG(status);
                return if libc::WIFSIGNALED(status) { 128 + signal } else { libc::WEXITSTATUS(status) };
            }
            assert!(pid == 0 && Instant::now() < end, "a child does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.0 != 0 {
            // SAFETY: our own child.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }
}
