//! Keeping signals of the client away from threads of the hypervisor: they inherit the mask of who starts them.
use std::{mem, ptr};

/// While it lives, the calling thread takes no signals but its own faults.
pub(crate) struct Blocked(libc::sigset_t);

/// Blocks all signals that are not faults.
pub(crate) fn block_all() -> Blocked {
    // SAFETY: the sets are initialised by the calls.
    unsafe {
        let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&mut all);
        libc::sigdelset(&mut all, libc::SIGSEGV);
        libc::sigdelset(&mut all, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        Blocked(old)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: restores the mask that was read before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}
