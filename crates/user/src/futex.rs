//! The two futex calls that locks and sleepers use, on words that no other process sees. They touch no variable
//! of the thread.
use std::sync::atomic::AtomicU32;

use crate::sys;

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Somebody woke us, the word had another value, or no reason at all.
    Look,
    /// A signal handler ran.
    Signal,
}

/// Sleeps while `*word == value`.
pub fn wait(word: &AtomicU32, value: u32) -> Woken {
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is valid for the length of the call; no timeout.
    let result = unsafe { sys::raw(libc::SYS_futex, [word.as_ptr().addr(), op as usize, value as usize, 0, 0, 0]) };
    if result == -libc::EINTR as isize { Woken::Signal } else { Woken::Look }
}

/// Wakes at most `count` sleepers on `word`.
pub fn wake(word: &AtomicU32, count: i32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel uses the address only as a key.
    unsafe { sys::raw(libc::SYS_futex, [word.as_ptr().addr(), op as usize, count as usize, 0, 0, 0]) };
}
