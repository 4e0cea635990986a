//! Locks of the kernel.
use platform::{OutOfMemory, RawLock, lock::rank};

use crate::{glue, heap::Raw};

/// A lock under which its holder may sleep: the kernel's mutex.
pub struct KernelMutex(Raw);

impl RawLock for KernelMutex {
    fn new(rank: u8) -> Result<Self, OutOfMemory> {
        let raw = Raw::new(glue::rekvm_mutex_size)?;
        // SAFETY: the room is as large as a mutex.
        unsafe { glue::rekvm_mutex_init(raw.at(), rank) };
        Ok(Self(raw))
    }

    fn lock(&self) {
        // SAFETY: initialized by `new`.
        unsafe { glue::rekvm_mutex_lock(self.0.at()) };
    }

    fn try_lock(&self) -> bool {
        // SAFETY: initialized by `new`.
        unsafe { glue::rekvm_mutex_trylock(self.0.at()) }
    }

    unsafe fn unlock(&self) {
        // SAFETY: initialized by `new`, and the caller holds it.
        unsafe { glue::rekvm_mutex_unlock(self.0.at()) };
    }
}

/// A lock that is held for moments, with preemption off. From the PIT's rank on they are taken by timers and eventfds, in
/// interrupt context: those switch interrupts off as well. Such locks are given back in the reverse order.
pub struct KernelSpin {
    raw: Raw,
    irqs_off: bool,
}

impl RawLock for KernelSpin {
    fn new(of: u8) -> Result<Self, OutOfMemory> {
        let raw = Raw::new(glue::rekvm_spin_size)?;
        // SAFETY: the room is as large as a spin lock.
        unsafe { glue::rekvm_spin_init(raw.at(), of) };
        Ok(Self { raw, irqs_off: of >= rank::PIT })
    }

    #[inline]
    fn lock(&self) {
        // SAFETY: initialized by `new`.
        unsafe {
            match self.irqs_off {
                true => glue::rekvm_spin_lock_irq(self.raw.at()),
                false => glue::rekvm_spin_lock(self.raw.at()),
            }
        }
    }

    fn try_lock(&self) -> bool {
        // SAFETY: initialized by `new`.
        unsafe {
            match self.irqs_off {
                true => glue::rekvm_spin_trylock_irq(self.raw.at()),
                false => glue::rekvm_spin_trylock(self.raw.at()),
            }
        }
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: initialized by `new`, and the caller holds it.
        unsafe {
            match self.irqs_off {
                true => glue::rekvm_spin_unlock_irq(self.raw.at()),
                false => glue::rekvm_spin_unlock(self.raw.at()),
            }
        }
    }
}
