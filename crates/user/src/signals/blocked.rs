//! Keeping signals of the client away: from threads of the hypervisor, which inherit the mask of who starts them, and
//! from a thread that changes what handlers read.
use super::{FAULTS, set_mask};

/// While it lives, the calling thread takes no signals (faults excepted).
#[derive(Debug)]
pub struct Blocked(u64);

/// Blocks all signals that are not faults: to be done around the start of a thread with which the client has nothing to do.
pub fn block_all() -> Blocked {
    Blocked(set_mask(libc::SIG_SETMASK, !FAULTS))
}

/// Blocks all signals; the caller touches no memory of the client's.
pub(super) fn block_everything() -> Blocked {
    Blocked(set_mask(libc::SIG_SETMASK, !0))
}

impl Drop for Blocked {
    fn drop(&mut self) {
        set_mask(libc::SIG_SETMASK, self.0);
    }
}
