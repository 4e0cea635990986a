//! How a running machine ends, and who learns of it.
//!
//! Devices, vCPU threads and the console all may end the machine. The first
//! reason stays; everybody else sees a flag, and the main thread is woken.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed; the text says how.
    Crash(String),
    /// The hypervisor could not run the guest; the text says why.
    Hypervisor(String),
    /// Something in this program or host failed.
    Host(String),
    /// The user pressed the escape key's `x`.
    Quit,
    /// A signal asked this program to end.
    Signal(i32),
}

impl Ending {
    /// The program's exit status: 0 power-off, 3 reset, 4 crash, 5 the hypervisor failed,
    /// 1 the host failed, 128 + n signal n; quitting by the escape key counts as SIGINT.
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Quit => 130,
            Self::Host(_) => 1,
            Self::Reset => 3,
            Self::Crash(_) => 4,
            Self::Hypervisor(_) => 5,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(1),
        }
    }
}

/// The machine's end, and a way to wake the main thread.
#[derive(Debug)]
pub struct Control {
    ending: OnceLock<Ending>,
    ended: AtomicBool,
    event: OwnedFd,
}

impl Control {
    /// A machine that has not ended.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { ending: OnceLock::new(), ended: AtomicBool::new(false), event })
    }

    /// Ends the machine, unless it has ended for another reason already.
    pub fn end(&self, ending: Ending) {
        let _ = self.ending.set(ending);
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Has the machine ended?
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Why it ended.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.get().cloned()
    }

    /// Makes the main thread look around: at the end, or at input it could not deliver.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are read from a local. A full counter is awake already.
        let _ = unsafe { libc::write(self.raw(), (&raw const one).cast(), 8) };
    }

    /// Readable after [`Control::wake`] until [`Control::woken`].
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes the wake-ups that were there.
    pub fn woken(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes are written to a local; the descriptor does not block.
        let _ = unsafe { libc::read(self.raw(), (&raw mut count).cast(), 8) };
    }

    fn raw(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&self.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let control = Control::new().unwrap();
        assert_eq!((control.ended(), control.ending()), (false, None));
        control.end(Ending::PowerOff);
        control.end(Ending::Reset);
        assert_eq!((control.ended(), control.ending()), (true, Some(Ending::PowerOff)));
    }

    #[test]
    fn statuses_tell_endings_apart() {
        let endings = [
            (Ending::PowerOff, 0),
            (Ending::Quit, 130),
            (Ending::Host(String::new()), 1),
            (Ending::Reset, 3),
            (Ending::Crash(String::new()), 4),
            (Ending::Hypervisor(String::new()), 5),
            (Ending::Signal(15), 143),
        ];
        for (ending, status) in endings {
            assert_eq!(ending.status(), status);
        }
    }
}
