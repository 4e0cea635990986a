//! KVM_SET_SIGNAL_MASK: signals that are blocked except while KVM_RUN runs, end it, and stay pending.
//!
//! The kernel can see a pending signal without delivering it; a process cannot. So inside the window such a signal
//! is unblocked, and its handler, which is ours, notes it, blocks it again in the interrupted context, and sends it to
//! its own thread with everything that came with it: it is pending as before, and the client finds it with sigwait,
//! signalfd or by unblocking it.
use std::{
    cell::Cell,
    io, mem, ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use super::note;
use crate::chain::Chain;

/// One for each signal number.
static CHAINS: [Chain; 65] = [const { Chain::new() }; 65];
/// Signals that have our handler in front.
static WRAPPED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Signals that the present window lets through and that are blocked outside.
    static LET_THROUGH: Cell<u64> = const { Cell::new(0) };
    /// One of them has come.
    static NOTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a signal has come through the present window.
pub(super) fn noted() -> bool {
    NOTED.get()
}

const fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// Faults, which must reach their handlers, what cannot be blocked, and the C library's own two.
const NEVER_BLOCKED: u64 = bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGFPE)
    | bit(libc::SIGILL)
    | bit(libc::SIGTRAP)
    | bit(libc::SIGKILL)
    | bit(libc::SIGSTOP)
    | bit(32)
    | bit(33);

/// Sets the thread's signal mask, returns the old one. On the kernel's own format of 64 bits.
fn set_mask(how: c_int, mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both sets are valid and have the size given; async-signal-safe.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, how, ptr::from_ref(&mask), ptr::from_mut(&mut old), size_of::<u64>());
    }
    old
}

/// Puts a handler in front of the present disposition of `signal` that makes KVM_RUN, if the thread is inside it,
/// return EINTR. Once for each signal; a later change of the disposition by the client undoes it.
pub fn wrap(signal: c_int) -> io::Result<()> {
    static LOCK: Mutex<()> = Mutex::new(());
    let chain = usize::try_from(signal).ok().filter(|n| *n > 0).and_then(|n| CHAINS.get(n));
    let chain = chain.filter(|_| NEVER_BLOCKED & bit(signal) == 0);
    let Some(chain) = chain else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
    let _lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if WRAPPED.load(Ordering::Acquire) & bit(signal) == 0 {
        chain.install(signal, on_signal)?;
        WRAPPED.fetch_or(bit(signal), Ordering::AcqRel);
    }
    Ok(())
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: errno belongs to this thread; the interrupted code must find it unchanged.
    let errno = unsafe { *libc::__errno_location() };
    note();
    if LET_THROUGH.get() & bit(signal) != 0 {
        NOTED.set(true);
        // Also against a client that asked for SA_NODEFER.
        set_mask(libc::SIG_BLOCK, bit(signal));
        let context = context.cast::<ucontext_t>();
        // SAFETY: the kernel passes the interrupted context, whose mask it installs on return (its first 64 bits are
        // the kernel's set), and a siginfo that may be passed on to this thread.
        unsafe {
            *ptr::addr_of_mut!((*context).uc_sigmask).cast::<u64>() |= bit(signal);
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), libc::gettid(), signal, info);
        }
    } else if let Some(chain) = usize::try_from(signal).ok().and_then(|n| CHAINS.get(n)) {
        chain.call(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// The signal mask of KVM_SET_SIGNAL_MASK, in force while this lives.
pub(crate) struct Window {
    outside: u64,
}

impl Window {
    /// Switches to `mask` (bit n - 1: signal n is blocked).
    pub(crate) fn open(mask: u64) -> Self {
        let mask = mask & !NEVER_BLOCKED;
        let outside = set_mask(libc::SIG_BLOCK, 0);
        let let_through = outside & !mask & !NEVER_BLOCKED;
        let mut new = let_through & !WRAPPED.load(Ordering::Acquire);
        while new != 0 {
            let signal = new.trailing_zeros() as c_int + 1;
            new &= new - 1;
            if !ignored(signal) {
                // The signal exists and can be caught, so this cannot fail.
                let _ = wrap(signal);
            }
        }
        NOTED.set(false);
        LET_THROUGH.set(let_through);
        set_mask(libc::SIG_SETMASK, mask);
        Self { outside }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        set_mask(libc::SIG_SETMASK, self.outside);
        LET_THROUGH.set(0);
        NOTED.set(false);
    }
}

/// Whether a signal would be discarded when it is delivered.
fn ignored(signal: c_int) -> bool {
    // SAFETY: only asks; all-zero is a valid sigaction.
    let handler = unsafe {
        let mut now: libc::sigaction = mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut now);
        now.sa_sigaction
    };
    let by_default = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT].contains(&signal);
    handler == libc::SIG_IGN || (handler == libc::SIG_DFL && by_default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::{attach, pending};
    use std::{
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
            let window = Window::open(!bit(before));
            assert!(noted() && pending());
            drop(window);
            assert!(!noted());
            assert_eq!((take(before), take(before)), (Some(11), None));

            let window = Window::open(!bit(inside));
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
    }
}
