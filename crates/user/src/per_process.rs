//! What each process makes for itself: threads are not copied by fork, so a child that uses timers or eventfds has to
//! start its own.
use std::{
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
};

use platform::{OutOfMemory, fallible::try_box};

/// Another number in every child.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Stands for the running process.
pub(crate) fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// Called in a child.
pub(crate) fn next_epoch() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
}

struct Made<T> {
    epoch: u32,
    value: T,
}

/// A value for each process, made when it is first asked for and never ended.
pub(crate) struct PerProcess<T: 'static>(AtomicPtr<Made<T>>);

impl<T: Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// The running process's, which `make` makes if there is none. Nobody waits here, for a child of fork might wait for a thread
    /// that it does not have: of two that make it at once, one makes it in vain.
    pub(crate) fn get<E: From<OutOfMemory>>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&'static T, E> {
        let present = self.0.load(Ordering::Acquire);
        // SAFETY: null, or made below and never freed.
        if let Some(made) = unsafe { present.as_ref() }
            && made.epoch == epoch()
        {
            return Ok(&made.value);
        }
        let new = Box::into_raw(try_box(Made { epoch: epoch(), value: make()? })?);
        match self.0.compare_exchange(present, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: made above, and nobody will free it.
            Ok(_) => Ok(unsafe { &(*new).value }),
            Err(others) => {
                // SAFETY: ours, and told to nobody; the others' stays for good.
                unsafe {
                    drop(Box::from_raw(new));
                    Ok(&(*others).value)
                }
            }
        }
    }
}
