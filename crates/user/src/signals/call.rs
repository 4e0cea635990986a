//! A call of the device as signals see it.
//!
//! The kernel can see a pending signal without delivering it; a process cannot. So a signal that arrives inside a call
//! is delivered to our handler, which notes it (KVM_RUN returns EINTR), blocks it in the interrupted context, and sends
//! it to its own thread again with everything that came with it. It is pending as before. When the call is over the
//! mask is put back: then the client's handler runs, or, if the client blocks the signal (it came in through
//! KVM_SET_SIGNAL_MASK), it stays pending for sigwait or signalfd.
use std::{
    cell::Cell,
    sync::atomic::{Ordering, compiler_fence},
};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use super::{FAULTS, NEVER_BLOCKED, action, bit, set_mask, wrap};
use crate::sys;

thread_local! {
    /// Calls that this thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// A signal has come during the present call.
    static NOTED: Cell<bool> = const { Cell::new(false) };
    /// Those that have come and wait for its end.
    static DEFERRED: Cell<u64> = const { Cell::new(0) };
    /// This thread is known not to block its own faults.
    static FAULTS_OPEN: Cell<bool> = const { Cell::new(false) };
}

/// Whether a signal has come during the present call.
#[inline]
pub(super) fn noted() -> bool {
    NOTED.get()
}

/// The calling thread's signal mask may have been changed: whoever sees the client do that calls this.
/// Async-signal-safe.
pub fn mask_changed() {
    FAULTS_OPEN.set(false);
}

/// What came for another thread that had the calling thread's variables is no business of the calls that follow. To be
/// called with all signals blocked.
pub fn forget_earlier() {
    NOTED.set(false);
    DEFERRED.set(0);
    mask_changed();
}

/// While it lives, handlers of the client do not run on the calling thread.
pub(crate) struct Call {
    /// The mask to be put back.
    outside: Option<u64>,
}

impl Call {
    /// Begins a call.
    #[inline]
    pub(crate) fn begin() -> Self {
        let depth = DEPTH.get();
        DEPTH.set(depth + 1);
        // Handlers of this thread look at it.
        compiler_fence(Ordering::SeqCst);
        if depth > 0 || FAULTS_OPEN.get() { Self { outside: None } } else { Self::open_faults() }
    }

    /// Accesses to the client's memory may fault, and a fault that is blocked kills.
    #[cold]
    fn open_faults() -> Self {
        let outside = set_mask(libc::SIG_UNBLOCK, FAULTS);
        FAULTS_OPEN.set(outside & FAULTS == 0);
        Self { outside: (outside & FAULTS != 0).then_some(outside) }
    }

    /// Has the mask of KVM_SET_SIGNAL_MASK (bit n - 1: signal n is blocked) in force until the call is over.
    pub(crate) fn with_mask(&mut self, mask: u64) {
        let mask = mask & !NEVER_BLOCKED;
        let outside = *self.outside.get_or_insert_with(|| set_mask(libc::SIG_BLOCK, 0));
        let mut let_through = outside & !mask & !NEVER_BLOCKED;
        while let_through != 0 {
            let signal = let_through.trailing_zeros() as c_int + 1;
            let_through &= let_through - 1;
            if !action::ignored(signal) {
                // The signal exists and can be caught, so this cannot fail.
                let _ = wrap(signal);
            }
        }
        set_mask(libc::SIG_SETMASK, mask);
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        let depth = DEPTH.get() - 1;
        if depth > 0 {
            DEPTH.set(depth);
            return;
        }
        // What only the mask of KVM_SET_SIGNAL_MASK lets through must not come to the client's handler: first that mask
        // goes.
        if let Some(outside) = self.outside {
            set_mask(libc::SIG_SETMASK, outside);
        }
        // A signal that comes before this is deferred, one that comes after it is the client's at once.
        DEPTH.set(0);
        compiler_fence(Ordering::SeqCst);
        NOTED.set(false);
        let deferred = DEFERRED.take() & !self.outside.unwrap_or(0);
        if deferred != 0 {
            set_mask(libc::SIG_UNBLOCK, deferred);
        }
    }
}

/// In a handler: if the thread is inside a call, or in any case, makes the signal wait until the mask is put back.
/// Async-signal-safe.
pub(super) fn defer(signal: c_int, info: *mut siginfo_t, context: *mut c_void, always: bool) -> bool {
    if DEPTH.get() == 0 && !always {
        return false;
    }
    NOTED.set(true);
    DEFERRED.set(DEFERRED.get() | bit(signal));
    // Also against a client that asked for SA_NODEFER.
    set_mask(libc::SIG_BLOCK, bit(signal));
    let context = context.cast::<ucontext_t>();
    // SAFETY: the kernel passes the interrupted context, whose mask it installs on return (its first 64 bits are the
    // kernel's set), and a siginfo that may be passed on to this thread.
    unsafe {
        *(&raw mut (*context).uc_sigmask).cast::<u64>() |= bit(signal);
        let args = [sys::process_id() as usize, sys::thread_id() as usize, signal as usize, info.addr(), 0, 0];
        sys::raw(libc::SYS_rt_tgsigqueueinfo, args);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::{attach, pending};
    use std::{
        mem, ptr,
        sync::atomic::{AtomicU32, AtomicUsize},
        thread,
    };

    fn raise(signal: c_int, value: usize) {
        let value = libc::sigval { sival_ptr: value as *mut c_void };
        // SAFETY: sends to this thread, where the signal is blocked or handled.
        unsafe { assert_eq!(libc::pthread_sigqueue(libc::pthread_self(), signal, value), 0) };
    }

    /// sigtimedwait without a time: the pending signal's value.
    fn take(signal: c_int) -> Option<usize> {
        // SAFETY: the sets and structures are valid for the call.
        unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigaddset(&mut set, signal);
            let mut info: siginfo_t = mem::zeroed();
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            (libc::sigtimedwait(&set, &mut info, &now) == signal).then(|| info.si_value().sival_ptr as usize)
        }
    }

    #[test]
    fn a_signal_let_through_is_noted_and_stays_pending() {
        // In a thread of its own: its mask is changed.
        thread::spawn(|| {
            let (before, inside, other) = (libc::SIGRTMIN() + 3, libc::SIGRTMIN() + 4, libc::SIGRTMIN() + 5);
            let word = AtomicU32::new(0);
            set_mask(libc::SIG_BLOCK, bit(before) | bit(inside) | bit(other));
            raise(before, 11);
            let mut window = Call::begin();
            window.with_mask(!bit(before));
            assert!(noted() && pending());
            drop(window);
            assert!(!noted());
            assert_eq!((take(before), take(before)), (Some(11), None));

            let mut window = Call::begin();
            window.with_mask(!bit(inside));
            assert!(!pending());
            attach(Some(&word));
            raise(other, 1);
            assert!(!pending());
            raise(inside, 22);
            raise(inside, 33);
            assert!(pending() && word.load(Ordering::SeqCst) == hv::request::SIGNAL);
            attach(None);
            drop(window);
            assert_eq!((take(inside), take(inside), take(inside)), (Some(22), Some(33), None));
            assert_eq!(take(other), Some(1));
        })
        .join()
        .unwrap();
    }

    static CALLS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn client(_: c_int) {
        CALLS.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn a_wrapped_handler_is_still_called() {
        let signal = libc::SIGRTMIN() + 6;
        // SAFETY: an ordinary handler.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = client as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
        wrap(signal).unwrap();
        wrap(signal).unwrap();
        assert!(wrap(libc::SIGSEGV).is_err() && wrap(0).is_err() && wrap(65).is_err());
        let word = AtomicU32::new(0);
        attach(Some(&word));
        raise(signal, 0);
        attach(None);
        assert_eq!((CALLS.load(Ordering::SeqCst), word.load(Ordering::SeqCst)), (1, hv::request::SIGNAL));

        let call = Call::begin();
        let inner = Call::begin();
        raise(signal, 0);
        drop(inner);
        assert!(noted() && CALLS.load(Ordering::SeqCst) == 1, "a handler ran inside the call");
        drop(call);
        assert!(!noted() && CALLS.load(Ordering::SeqCst) == 2, "it did not run after the call");
        raise(signal, 0);
        assert_eq!(CALLS.load(Ordering::SeqCst), 3, "the signal is still blocked");
    }
}
