//! Which process an object belongs to: a VM is the process that made it (row A02). A child that fork made has a copy of
//! everything, but the guest's memory and the threads in it are its parent's.
use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use hv::Errno;

/// Another number in every child.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Stands for the running process in the table of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process(u32);

extern "C" fn in_child() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
}

impl Process {
    pub(super) fn current() -> Self {
        Self(EPOCH.load(Ordering::Relaxed))
    }
}

/// Makes children known, once.
pub(super) fn watch() -> Result<(), Errno> {
    static WATCHED: OnceLock<i32> = OnceLock::new();
    // SAFETY: the handler only changes an atomic.
    let answer = *WATCHED.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(in_child)) });
    if answer == 0 { Ok(()) } else { Err(Errno(answer)) }
}
