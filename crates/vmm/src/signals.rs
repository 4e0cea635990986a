//! Signals that ask the program to end, as something to poll for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT, kept from every thread and read from a descriptor.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals in this thread and those it starts from now on.
    ///
    /// # Errors
    /// When the host has no descriptor to spare.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the set is initialised before it is used.
        let fd = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
                // nohup and its like mean that the signal is to be ignored.
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &raw mut action);
                if action.sa_sigaction != libc::SIG_IGN {
                    libc::sigaddset(&raw mut set, signal);
                }
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Readable when a signal came.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next signal that came, if any.
    pub fn next(&self) -> Option<i32> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.0);
        // SAFETY: the buffer has the size given, and is read only when it was filled.
        unsafe {
            let n = libc::read(fd, info.as_mut_ptr().cast(), size);
            (usize::try_from(n) == Ok(size)).then(|| info.assume_init().ssi_signo as i32)
        }
    }
}
