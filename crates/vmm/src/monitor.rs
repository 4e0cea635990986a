//! What the main thread does while the guest runs: hands it input, and waits
//! for signals and the end.

use crate::console::{self, Action, Escape, Output};
use crate::control::{Control, Ending};
use crate::devices::serial::Com1;
use crate::signals::Signals;
use std::io;
use std::os::fd::AsRawFd;

/// Input kept for a guest that does not read. From a terminal, more is dropped (the
/// escape key must stay alive); from a file or pipe, no more is read.
const KEEP: usize = 4096;

/// The monitor's loop.
pub struct Monitor<'a> {
    /// The machine's end.
    pub control: &'a Control,
    /// The console.
    pub com1: &'a Com1<Output>,
    /// Signals that end the program.
    pub signals: &'a Signals,
    /// Input comes from a terminal: the escape key works.
    pub terminal: bool,
    /// There is input to read at all.
    pub input: bool,
}

impl Monitor<'_> {
    /// Returns when the machine has ended.
    pub fn run(mut self) {
        let mut escape = Escape::default();
        let mut pending = Vec::new();
        while !self.control.ended() {
            let listen = self.input && (self.terminal || pending.len() < KEEP);
            let poll = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut fds = [
                poll(self.control.event().as_raw_fd()),
                poll(self.signals.fd().as_raw_fd()),
                // A negative descriptor is passed over.
                poll(if listen { libc::STDIN_FILENO } else { -1 }),
            ];
            // SAFETY: as many valid entries as told.
            if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) } < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    self.control.end(Ending::Host(format!("cannot wait for events: {error}")));
                }
                continue;
            }
            let [event, signal, input] = fds.map(|fd| fd.revents != 0);
            if event {
                self.control.woken();
            }
            if signal && let Some(number) = self.signals.next() {
                self.control.end(Ending::Signal(number));
            }
            if input {
                self.read(&mut escape, &mut pending);
            }
            if !pending.is_empty() {
                let taken = self.com1.input(&pending);
                pending.drain(..taken);
            }
        }
    }

    fn read(&mut self, escape: &mut Escape, pending: &mut Vec<u8>) {
        let mut buffer = [0u8; 1024];
        // SAFETY: the buffer is valid for writes of its own length.
        let n = unsafe { libc::read(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), buffer.len()) };
        let typed = match usize::try_from(n) {
            Ok(n) if n > 0 => &buffer[..n],
            Err(_) if matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                return;
            }
            // End of input, or none to be had: the guest goes on without.
            _ => {
                self.input = false;
                return;
            }
        };
        if !self.terminal {
            pending.extend_from_slice(typed);
            return;
        }
        match escape.filter(typed, pending) {
            Some(Action::Quit) => self.control.end(Ending::Quit),
            Some(Action::Help) => console::say_below(console::HELP),
            None => {}
        }
        pending.truncate(KEEP);
    }
}
