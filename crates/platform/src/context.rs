//! Tokens that say in which context code runs. A function that allocates, takes a sleeping lock or touches
//! client memory asks for a [`MaySleep`]; one that runs with preemption off hands out an [`Atomic`]. They are
//! neither `Send` nor constructible by accident: packaging code makes them at the entry points it knows.
use core::marker::PhantomData;

/// The holder runs in a thread that may sleep.
#[derive(Debug)]
pub struct MaySleep(PhantomData<*mut ()>);

impl MaySleep {
    /// Claims that the calling context may sleep. Made at the entry of a system call or a thread, nowhere else.
    pub const fn at_entry() -> Self {
        Self(PhantomData)
    }
}

/// The holder runs with preemption off or in interrupt context: it must neither sleep nor allocate.
#[derive(Debug)]
pub struct Atomic(PhantomData<*mut ()>);

impl Atomic {
    /// Claims atomic context. Made by timers, notifiers and the code that switches preemption off.
    pub const fn at_entry() -> Self {
        Self(PhantomData)
    }
}
