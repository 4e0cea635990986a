//! The two futex calls that locks and sleepers use, on words that no other process sees.
use std::{ptr, sync::atomic::AtomicU32};

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Somebody woke us, the word had another value, or no reason at all.
    Look,
    /// A signal handler ran.
    Signal,
}

/// Sleeps while `*word == value`.
pub(crate) fn wait(word: &AtomicU32, value: u32) -> Woken {
    // SAFETY: the word is valid for the length of the call; no timeout.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            ptr::null::<libc::timespec>(),
        )
    };
    // SAFETY: errno of this thread.
    if result < 0 && unsafe { *libc::__errno_location() } == libc::EINTR { Woken::Signal } else { Woken::Look }
}

/// Wakes at most `count` sleepers on `word`.
pub(crate) fn wake(word: &AtomicU32, count: i32) {
    // SAFETY: the kernel uses the address only as a key.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count);
    }
}
