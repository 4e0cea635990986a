//! The machine's legacy devices: as little of a PC as Linux needs.

pub mod cmos;
pub mod i8042;
pub mod pm;
pub mod serial;

use std::sync::{Mutex, MutexGuard};

/// An input of the interrupt controllers.
pub trait IrqLine: Send + Sync {
    /// Drives the line.
    fn set(&self, level: bool);
}

/// Locks a device. A panic in another thread is reported and ends the machine
/// there; it must not take this thread's ability to end with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
