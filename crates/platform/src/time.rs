//! Timers: the local APIC's and the PIT's.
use crate::{Atomic, OutOfMemory};

/// What a timer does when it expires. It runs in a context that must not sleep and may run on any thread;
/// usually it sets a request bit and wakes a vCPU.
pub trait TimerCallback: Send + Sync + 'static {
    /// The deadline has passed.
    fn expired(&self, cx: &Atomic);
}

/// A one-shot timer. Dropping it cancels it and waits until a running callback has returned.
pub trait Timer<C: TimerCallback>: Sized + Send + Sync {
    /// Makes an idle timer.
    fn new(callback: C) -> Result<Self, OutOfMemory>;
    /// Sets the deadline, in the nanoseconds of `Platform::now_ns`; replaces an earlier one. A deadline that has
    /// passed expires at once.
    fn arm(&self, deadline_ns: u64);
    /// Forgets the deadline. A callback may still be running on another thread.
    fn cancel(&self);
}
