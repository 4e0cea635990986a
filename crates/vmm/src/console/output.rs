//! The guest's output, unbuffered: what the guest has sent is out, whatever ends it.

use crate::control::Control;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// How long a reader that takes nothing may delay the machine's end.
const POLL_MS: i32 = 100;

/// Standard output, patient with slow and non-blocking readers while the machine runs.
pub struct Output {
    stdout: io::Stdout,
    control: Arc<Control>,
    gone: bool,
}

impl Output {
    /// Standard output.
    pub fn new(control: Arc<Control>) -> Self {
        Self { stdout: io::stdout(), control, gone: false }
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            if self.gone {
                return Ok(buf.len());
            }
            // SAFETY: the buffer is valid for reads of its own length.
            let n = unsafe { libc::write(self.stdout.as_raw_fd(), buf.as_ptr().cast(), buf.len()) };
            if let Ok(n) = usize::try_from(n) {
                return Ok(n);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => {
                    let mut poll = libc::pollfd { fd: self.stdout.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
                    // SAFETY: one valid entry.
                    unsafe { libc::poll(&raw mut poll, 1, POLL_MS) };
                }
                // The reader has gone away, or there never was one: the guest goes on unheard.
                Some(libc::EPIPE | libc::EBADF | libc::EIO) => self.gone = true,
                _ => return Err(error),
            }
            if self.control.ended() {
                return Ok(buf.len());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
