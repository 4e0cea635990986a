//! Locks on top of the platform's raw ones. Every lock has a rank, and a thread takes locks in rising rank
//! only: the order stands in [`rank`], and platforms check it in debug builds.
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use crate::OutOfMemory;

/// A mutual exclusion lock without data.
pub trait RawLock: Sized + Send + Sync {
    /// Makes an unlocked lock of the given rank.
    fn new(rank: u8) -> Result<Self, OutOfMemory>;
    /// Waits for the lock and takes it.
    fn lock(&self);
    /// Takes the lock if it is free.
    fn try_lock(&self) -> bool;
    /// Gives the lock back.
    ///
    /// # Safety
    /// The caller holds the lock.
    unsafe fn unlock(&self);
}

/// The one lock order of the project, outermost first.
pub mod rank {
    /// The list of VMs.
    pub const VM_LIST: u8 = 10;
    /// One vCPU: held for the length of a vCPU ioctl, KVM_RUN included.
    pub const VCPU: u8 = 20;
    /// A VM's configuration: vCPU creation, irqchip creation, capabilities.
    pub const VM: u8 = 30;
    /// The memory that a VM owns.
    pub const OWNED: u8 = 35;
    /// The eventfds that are bound to a VM.
    pub const EVENTFDS: u8 = 36;
    /// A VM's memory slots and aliases.
    pub const SLOTS: u8 = 40;
    /// What a client's mapping of the VM shows: taken by page faults of the client, which may come in the middle of a copy
    /// to or from it under any of the locks above.
    pub const SHOWN: u8 = 45;
    /// The MMU: shadow pages and reverse maps.
    pub const MMU: u8 = 50;
    /// A bus of in-hypervisor devices.
    pub const BUS: u8 = 60;
    /// PIT.
    pub const PIT: u8 = 70;
    /// The eventfds that are told of ends of interrupts.
    pub const RESAMPLE: u8 = 72;
    /// The ring of coalesced writes.
    pub const RING: u8 = 74;
    /// Interrupt routing and its line states.
    pub const ROUTING: u8 = 75;
    /// IOAPIC.
    pub const IOAPIC: u8 = 80;
    /// PIC.
    pub const PIC: u8 = 85;
    /// The platform's own: timers, wake-ups.
    pub const PLATFORM: u8 = 100;
}

/// Data under a raw lock `L`.
#[derive(Debug)]
pub struct Locked<L, T> {
    raw: L,
    data: UnsafeCell<T>,
}

/// Data under a sleeping lock of platform `P`.
pub type Mutex<P, T> = Locked<<P as crate::Platform>::RawMutex, T>;
/// Data under a spinning lock of platform `P`.
pub type SpinLock<P, T> = Locked<<P as crate::Platform>::RawSpin, T>;

// SAFETY: the lock lets one thread at a time reach the data.
unsafe impl<L: RawLock, T: Send> Sync for Locked<L, T> {}

impl<L: RawLock, T> Locked<L, T> {
    /// A lock of the given [`rank`] around `data`.
    pub fn new(rank: u8, data: T) -> Result<Self, OutOfMemory> {
        Ok(Self { raw: L::new(rank)?, data: UnsafeCell::new(data) })
    }

    /// Waits for the lock.
    pub fn lock(&self) -> Guard<'_, L, T> {
        self.raw.lock();
        Guard { lock: self, on_this_thread: PhantomData }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<Guard<'_, L, T>> {
        self.raw.try_lock().then(|| Guard { lock: self, on_this_thread: PhantomData })
    }

    /// The data, through a unique reference: nobody else can hold the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

/// The right to use the data; gives the lock back when dropped, on the thread that took it.
#[derive(Debug)]
pub struct Guard<'a, L: RawLock, T> {
    lock: &'a Locked<L, T>,
    /// Neither sent nor shared: the lock is this thread's, and `T` need not be `Sync`.
    on_this_thread: PhantomData<*mut ()>,
}

impl<L: RawLock, T> Deref for Guard<'_, L, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard's existence means that this thread holds the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<L: RawLock, T> DerefMut for Guard<'_, L, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in deref, and the guard is borrowed uniquely.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<L: RawLock, T> Drop for Guard<'_, L, T> {
    fn drop(&mut self) {
        // SAFETY: made by lock or a successful try_lock, dropped once.
        unsafe { self.lock.raw.unlock() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl RawLock for Nothing {
        fn new(_rank: u8) -> Result<Self, OutOfMemory> {
            Ok(Self)
        }
        fn lock(&self) {}
        fn try_lock(&self) -> bool {
            true
        }
        unsafe fn unlock(&self) {}
    }

    /// One implementation for every type, others for what is `Send` or `Sync`: for those, `_` is ambiguous.
    trait OfOneThread<Which> {
        fn check() {}
    }
    impl<T> OfOneThread<()> for T {}
    impl<T: Send> OfOneThread<u8> for T {}
    impl<T: Sync> OfOneThread<u16> for T {}

    #[test]
    fn a_guard_stays_on_its_thread() {
        // That it compiles is the test.
        <Guard<'_, Nothing, core::cell::Cell<u8>> as OfOneThread<_>>::check();
        <Guard<'_, Nothing, u8> as OfOneThread<_>>::check();
    }
}
