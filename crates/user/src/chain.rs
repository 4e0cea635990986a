//! Calling the signal handler that was there before ours, as the kernel would have.
use std::{
    io, mem, ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use platform::fallible::try_box;

use libc::{SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_SIGINFO, SIG_DFL, SIG_IGN, c_int, c_void, siginfo_t};

/// A handler with SA_SIGINFO.
pub(crate) type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// The disposition that a handler of ours replaced.
pub(crate) struct Chain(AtomicPtr<libc::sigaction>);

impl Chain {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Puts `handler` in front of the present disposition of `signal`. It runs with the mask and the flags of the
    /// present one, on the alternate stack if the thread has one.
    pub(crate) fn install(&self, signal: c_int, handler: Handler) -> io::Result<()> {
        // SAFETY: all-zero is a valid sigaction (SIG_DFL, no flags).
        let mut old: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: only asks.
        if unsafe { libc::sigaction(signal, ptr::null(), &mut old) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut new = old;
        new.sa_sigaction = handler as usize;
        new.sa_flags = SA_SIGINFO | SA_ONSTACK | old.sa_flags & (SA_NODEFER | SA_RESTART);
        // Never freed: a handler may be running on another thread at any time.
        let old = Box::into_raw(try_box(old).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?);
        self.0.store(old, Ordering::Release);
        // SAFETY: `new` is complete, and `old` is valid for writes.
        if unsafe { libc::sigaction(signal, &new, old) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Does what the replaced disposition says. Async-signal-safe.
    pub(crate) fn call(&self, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        let old = self.0.load(Ordering::Acquire);
        // SAFETY: null or the leaked sigaction of `install`, which is written only before handlers can run.
        let Some(old) = (unsafe { old.as_ref() }) else { return };
        match old.sa_sigaction {
            SIG_DFL => default(signal, info),
            // The kernel does not let a fault be ignored, but a signal that somebody sent.
            SIG_IGN if !from_kernel(info) => {}
            SIG_IGN => default(signal, info),
            handler => {
                if old.sa_flags & SA_RESETHAND != 0 {
                    self.0.store(ptr::null_mut(), Ordering::Release);
                    reset(signal);
                }
                if old.sa_flags & SA_SIGINFO != 0 {
                    // SAFETY: the client installed this address as a handler of three arguments.
                    let handler: Handler = unsafe { mem::transmute(handler) };
                    handler(signal, info, context);
                } else {
                    // SAFETY: the client installed this address as a handler of one argument.
                    let handler: extern "C" fn(c_int) = unsafe { mem::transmute(handler) };
                    handler(signal);
                }
            }
        }
    }
}

/// Whether the signal is a fault of this thread rather than sent by a process.
fn from_kernel(info: *const siginfo_t) -> bool {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    unsafe { (*info).si_code > 0 }
}

/// Back to SIG_DFL.
fn reset(signal: c_int) {
    // SAFETY: all-zero is SIG_DFL without flags; sigaction is async-signal-safe.
    unsafe {
        let plain: libc::sigaction = mem::zeroed();
        libc::sigaction(signal, &plain, ptr::null_mut());
    }
}

/// The default action. A fault happens again when the handler returns, and then ends the process with the right core;
/// a signal that was sent has to be sent again.
fn default(signal: c_int, info: *const siginfo_t) {
    reset(signal);
    if !from_kernel(info) {
        // SAFETY: tgkill to this thread; async-signal-safe.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal);
        }
    }
}
