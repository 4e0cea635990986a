//! Keeping signals of the client away: from threads of the hypervisor, which inherit the mask of who starts them, and
//! from a thread that changes what handlers read.
use super::{FAULTS, bit, set_mask};

/// While it lives, the calling thread takes no signals (faults excepted).
#[derive(Debug)]
pub struct Blocked(u64);

/// Two signals that the client's C library keeps for itself. By one of them `setuid` and its kin change all threads, and wait for
/// each; ours are threads of the client's C library too.
const OF_THE_LIBRARY: u64 = bit(32) | bit(33);

/// Blocks all signals of the client that are not faults: to be done around the start of a thread with which the client has nothing
/// to do.
pub fn block_all() -> Blocked {
    Blocked(set_mask(libc::SIG_SETMASK, !(FAULTS | OF_THE_LIBRARY)))
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
