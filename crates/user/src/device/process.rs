//! Which process an object belongs to: a VM is the process that made it (row A02). A child that fork made has a copy of
//! everything, but the guest's memory and the threads in it are its parent's.
use std::{
    io, ptr,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError, RwLockWriteGuard,
        atomic::{AtomicI32, AtomicPtr, Ordering},
    },
};

use hv::Errno;

use super::table::{Entries, TABLE};
use crate::{
    fault, log,
    per_process::{epoch, next_epoch},
    signals::{self, Call},
    sys, time,
};

/// The running process's number.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Stands for the running process in the table of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process(u32);

/// Held while something is made that all calls need, and that takes its time.
static PREPARING: Mutex<()> = Mutex::new(());

fn preparing() -> MutexGuard<'static, ()> {
    PREPARING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks that a child must find free: their other holders are not there.
struct Held {
    _preparing: MutexGuard<'static, ()>,
    _table: RwLockWriteGuard<'static, Entries>,
    _signals: MutexGuard<'static, ()>,
    _log: log::Held,
    _call: Call,
}

/// Those that the fork which is under way has taken; only their holder looks here.
static HELD: AtomicPtr<Held> = AtomicPtr::new(ptr::null_mut());

extern "C" fn before() {
    let call = Call::begin();
    // In the order in which calls take them.
    let _preparing = preparing();
    let held = Held { _preparing, _table: TABLE.lock(), _signals: signals::lock(), _log: log::lock(), _call: call };
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

/// Prepares what an open device needs in a process: by one thread at a time, and by none while another forks. That goes on while the
/// answer lives.
pub(super) fn prepare() -> Result<MutexGuard<'static, ()>, Errno> {
    watch()?;
    let preparing = preparing();
    fault::install()
        .map_err(|error| if error.kind() == io::ErrorKind::OutOfMemory { Errno::ENOMEM } else { Errno::ENODEV })?;
    time::tsc_khz();
    Ok(preparing)
}

/// Makes children known, once. Only what happens after that is safe from forks, so that whoever has the time does this before the
/// client's threads begin.
pub fn watch() -> Result<(), Errno> {
    static WATCHED: OnceLock<i32> = OnceLock::new();
    let answer = *WATCHED.get_or_init(|| {
        OWNER.store(sys::process_id(), Ordering::Relaxed);
        // SAFETY: the handlers take locks that nobody holds for long, and change atomics.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) }
    });
    if answer == 0 { Ok(()) } else { Err(Errno(answer)) }
}
