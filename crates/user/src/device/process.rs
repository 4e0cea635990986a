//! Which process an object belongs to: a VM is the process that made it (row A02). A child that fork made has a copy of
//! everything, but the guest's memory and the threads in it are its parent's.
use std::{
    ptr,
    sync::{
        MutexGuard, OnceLock, RwLockWriteGuard,
        atomic::{AtomicI32, AtomicPtr, Ordering},
    },
};

use hv::Errno;

use super::table::{Entries, TABLE};
use crate::{
    per_process::{epoch, next_epoch},
    signals::{self, Call},
    sys,
};

/// The running process's number.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Stands for the running process in the table of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process(u32);

/// Locks that a child must find free: their other holders are not there. Dropped in this order.
struct Held {
    _table: RwLockWriteGuard<'static, Entries>,
    _signals: MutexGuard<'static, ()>,
    _call: Call,
}

/// Those that the fork which is under way has taken; only their holder looks here.
static HELD: AtomicPtr<Held> = AtomicPtr::new(ptr::null_mut());

extern "C" fn before() {
    let call = Call::begin();
    let held = Held { _table: TABLE.lock(), _signals: signals::lock(), _call: call };
    HELD.store(Box::into_raw(Box::new(held)), Ordering::Relaxed);
}

extern "C" fn in_parent() {
    let held = HELD.swap(ptr::null_mut(), Ordering::Relaxed);
    if !held.is_null() {
        // SAFETY: made by `before`, and taken out by this call alone.
        drop(unsafe { Box::from_raw(held) });
    }
}

extern "C" fn in_child() {
    next_epoch();
    OWNER.store(sys::process_id(), Ordering::Relaxed);
    signals::own();
    in_parent();
}

impl Process {
    pub(super) fn current() -> Self {
        Self(epoch())
    }
}

/// Whether the caller is a child that shares our memory, as one of vfork does: it has descriptors of its own, but the
/// table is its parent's.
pub(super) fn shares_memory() -> bool {
    OWNER.load(Ordering::Relaxed) != sys::process_id()
}

/// Makes children known, once.
pub(super) fn watch() -> Result<(), Errno> {
    static WATCHED: OnceLock<i32> = OnceLock::new();
    let answer = *WATCHED.get_or_init(|| {
        OWNER.store(sys::process_id(), Ordering::Relaxed);
        // SAFETY: the handlers take locks that nobody holds for long, and change atomics.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) }
    });
    if answer == 0 { Ok(()) } else { Err(Errno(answer)) }
}
