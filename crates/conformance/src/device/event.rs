//! Eventfds: what irqfd and ioeventfd are bound to.
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::Errno;

/// An eventfd that never blocks.
pub struct Event(OwnedFd);

impl Event {
    /// A new one, not signalled.
    ///
    /// # Panics
    /// If the process has no descriptor left.
    #[expect(clippy::new_without_default, reason = "a descriptor is not a default")]
    pub fn new() -> Self {
        // SAFETY: the descriptor is new and ours.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            assert!(fd >= 0, "eventfd: {}", Errno::last());
            Self(OwnedFd::from_raw_fd(fd))
        }
    }

    /// Its number.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Adds one.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes, as an eventfd takes them.
        assert_eq!(unsafe { libc::write(self.raw(), one.as_ptr().cast(), 8) }, 8, "write: {}", Errno::last());
    }

    /// What has been added since it was last asked.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        // SAFETY: eight bytes, as an eventfd gives them.
        match unsafe { libc::read(self.raw(), count.as_mut_ptr().cast(), 8) } {
            8 => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}
