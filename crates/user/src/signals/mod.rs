//! Signals that are to end KVM_RUN.
//!
//! A thread inside KVM_RUN has its vCPU's request word recorded here (`attach`). A signal handler that wants the
//! guest to stop calls [`note`], which sets the highest bit of that word: whether the thread executes guest
//! instructions, sleeps on the word or is about to, it sees the change. A signal that arrives when the thread is
//! not inside KVM_RUN leaves no trace, as with a stock kernel.
//!
//! A client's own handler knows nothing of [`note`]: [`wrap`] puts one that does in front of it. Signals that only
//! KVM_SET_SIGNAL_MASK lets through are wrapped without being asked (`Window`).
mod blocked;
mod window;

pub(crate) use blocked::block_all;
pub(crate) use window::Window;
pub use window::wrap;

use std::{
    cell::Cell,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use hv::request::SIGNAL;

thread_local! {
    /// The request word of the vCPU that this thread runs, or null.
    static WORD: Cell<*const AtomicU32> = const { Cell::new(ptr::null()) };
}

/// Records the request word of the vCPU that this thread runs; the word outlives the next call with None.
pub(crate) fn attach(word: Option<&AtomicU32>) {
    WORD.set(word.map_or(ptr::null(), ptr::from_ref));
}

fn word<'a>() -> Option<&'a AtomicU32> {
    // SAFETY: null, or a word that stays until its thread, this one, detaches it.
    unsafe { WORD.get().as_ref() }
}

/// To be called by a signal handler: the calling thread's KVM_RUN, if it is inside one, is to return EINTR.
/// Async-signal-safe.
pub fn note() {
    if let Some(word) = word() {
        word.fetch_or(SIGNAL, Ordering::SeqCst);
    }
}

/// Whether a signal that ends KVM_RUN has arrived for the calling thread.
#[inline]
pub(crate) fn pending() -> bool {
    window::noted() || word().is_some_and(|word| word.load(Ordering::SeqCst) & SIGNAL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FutexWaiter;
    use platform::{MaySleep, WaitEnd, Waiter};
    use std::{mem, os::unix::thread::JoinHandleExt, thread, time::Duration};

    extern "C" fn handler(_: libc::c_int) {
        note();
    }

    #[test]
    fn a_signal_changes_the_word_and_ends_the_sleep() {
        // SAFETY: a handler that only calls `note`.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut());
        }
        static REQUESTS: AtomicU32 = AtomicU32::new(0);
        let waiter = FutexWaiter::new().unwrap();
        let sleeper = thread::spawn(move || {
            waiter.attach(Some(&REQUESTS));
            assert!(!pending());
            let end = loop {
                let end = waiter.wait(&REQUESTS, 0, &MaySleep::at_entry());
                if REQUESTS.load(Ordering::SeqCst) != 0 {
                    break end;
                }
            };
            assert!(pending());
            waiter.attach(None);
            assert!(!pending());
            note();
            end
        });
        thread::sleep(Duration::from_millis(20));
        // SAFETY: the thread has not been joined yet.
        unsafe { libc::pthread_kill(sleeper.as_pthread_t(), libc::SIGUSR1) };
        assert_eq!(sleeper.join().unwrap(), WaitEnd::Signal);
        assert_eq!(REQUESTS.load(Ordering::SeqCst), SIGNAL);
    }

    #[test]
    fn wake_ends_the_sleep() {
        static REQUESTS: AtomicU32 = AtomicU32::new(0);
        let waiter = FutexWaiter::new().unwrap();
        thread::scope(|s| {
            let sleeper = s.spawn(|| {
                while REQUESTS.load(Ordering::SeqCst) == 0 {
                    waiter.wait(&REQUESTS, 0, &MaySleep::at_entry());
                }
            });
            REQUESTS.store(1, Ordering::SeqCst);
            waiter.wake(&REQUESTS);
            sleeper.join().unwrap();
        });
    }
}
