//! Signals that are to end KVM_RUN.
//!
//! A thread inside KVM_RUN has its vCPU's request word recorded here (`attach`). A signal handler that wants the
//! guest to stop calls [`note`], which sets the highest bit of that word: whether the thread executes guest
//! instructions, sleeps on the word or is about to, it sees the change. A signal that arrives when the thread is
//! not inside KVM_RUN leaves no trace, as with a stock kernel.
//!
//! A client's own handler knows nothing of [`note`]. Ours is put in front of it: of one signal ([`wrap`]), of those that
//! KVM_SET_SIGNAL_MASK lets through (`call`), or of all, where every change that the client makes is seen
//! ([`take_over`], [`set`]).
mod action;
mod blocked;
mod call;

pub use action::{Action, SA_RESTORER, set, take_over};
pub(crate) use action::{carry_out, from_kernel, lock, own, put_in_front};
pub use blocked::{Blocked, block_all};
pub(crate) use call::Call;
pub use call::{forget_earlier, mask_changed};

use std::{
    cell::Cell,
    io, mem, ptr,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
};

use hv::request::SIGNAL;
use libc::{c_int, c_void, siginfo_t};

use crate::sys;

/// A signal in the kernel's own format of a set.
pub const fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// Those by which the processor tells of memory that is not there.
pub const FAULTS: u64 = bit(libc::SIGSEGV) | bit(libc::SIGBUS);

/// Faults, which must reach their handlers, what cannot be blocked, and the C library's own two.
const NEVER_BLOCKED: u64 = FAULTS | bit(libc::SIGFPE) | bit(libc::SIGILL) | bit(libc::SIGTRAP) | NEVER_TAKEN;

/// What cannot be caught, and the C library's own two.
const NEVER_TAKEN: u64 = bit(libc::SIGKILL) | bit(libc::SIGSTOP) | bit(32) | bit(33);

/// Changes the thread's signal mask, returns the old one. On the kernel's own format of 64 bits. Touches no variable of
/// the thread.
pub fn set_mask(how: c_int, mask: u64) -> u64 {
    let mut old = 0u64;
    let args = [how as usize, (&raw const mask).addr(), (&raw mut old).addr(), size_of::<u64>(), 0, 0];
    // SAFETY: both sets are valid and have the size given; async-signal-safe.
    unsafe { sys::raw(libc::SYS_rt_sigprocmask, args) };
    old
}

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
    call::noted() || word().is_some_and(|word| word.load(Ordering::SeqCst) & SIGNAL != 0)
}

/// Puts a handler in front of the present disposition of `signal` that makes KVM_RUN, if the thread is inside it,
/// return EINTR; the client's own is called when the call is over. A later change of the disposition that is not made
/// with [`set`] undoes it.
pub fn wrap(signal: c_int) -> io::Result<()> {
    if !(1..=64).contains(&signal) || NEVER_BLOCKED & bit(signal) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    put_in_front(signal).map_err(|error| io::Error::from_raw_os_error(error.0))
}

/// Says whether the calling thread's variables are ours, or null: they are.
static OURS: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// For a process in which two C libraries share each thread: `ours` says whether the variables of the calling thread are
/// those of ours. Where they are not, the thread is in no call of the device. Where they are, no handler of the client
/// may run. `ours` is called in signal handlers and must touch no such variable.
pub fn share_threads(ours: fn() -> bool) {
    OURS.store(ours as *mut (), Ordering::Release);
}

/// Whether another C library's variables could be the thread's now: then, whether ours are.
fn ours() -> Option<bool> {
    let ours = OURS.load(Ordering::Acquire);
    // SAFETY: only `share_threads` stores there.
    (!ours.is_null()).then(|| unsafe { mem::transmute::<*mut (), fn() -> bool>(ours) }())
}

/// The handler in front of the client's. Async-signal-safe.
pub(crate) extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let ours = ours();
    if ours == Some(false) {
        return carry_out(signal, info, context);
    }
    // SAFETY: errno belongs to this thread; the interrupted code must find it unchanged.
    let errno = unsafe { *libc::__errno_location() };
    note();
    if !call::defer(signal, info, context, ours.is_some()) {
        carry_out(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
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
