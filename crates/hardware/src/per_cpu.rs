//! What each processor of the host keeps for its guests. Only the processor itself touches it, with interrupts off, and only
//! while its virtualization is switched on.
use alloc::{boxed::Box, vec::Vec};
use core::cell::UnsafeCell;

use platform::{Atomic, Hardware, OutOfMemory, fallible::try_push, hardware::Refusal};

/// One value for each processor that the host can ever have.
pub struct PerCpu<T>(Box<[UnsafeCell<Local<T>>]>);

struct Local<T> {
    enabled: bool,
    value: T,
}

// SAFETY: a processor's value is reached by that processor only, with interrupts off: see `with`, `enable` and `disable`. What
// made the values and what drops them may be another thread.
unsafe impl<T: Send> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// For `cpus` processors, all switched off.
    pub fn new(cpus: usize, mut make: impl FnMut() -> Result<T, OutOfMemory>) -> Result<Self, OutOfMemory> {
        let mut all = Vec::new();
        for _ in 0..cpus {
            try_push(&mut all, UnsafeCell::new(Local { enabled: false, value: make()? }))?;
        }
        Ok(Self(all.into_boxed_slice()))
    }

    /// The value of the processor that runs this, with its number, if it is switched on. Interrupts are off.
    #[inline]
    pub fn with<P: Hardware, R>(&self, cx: &Atomic, f: impl FnOnce(&mut T, usize) -> R) -> Option<R> {
        let cpu = P::cpu(cx);
        self.here(cpu, |value| f(value, cpu))
    }

    /// The same, by who knows its number.
    #[inline]
    pub fn here<R>(&self, cpu: usize, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        let cell = self.0.get(cpu)?;
        // SAFETY: this processor's own, and with interrupts off nothing else of it runs; `f` is not entered twice, as nothing
        // that it is given leads here.
        let local = unsafe { &mut *cell.get() };
        local.enabled.then(|| f(&mut local.value))
    }

    /// Switches the processor that runs this on by `f`. Its number is `cpu`, and interrupts are off.
    pub fn enable(&self, cpu: usize, f: impl FnOnce(&mut T) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let cell = self.0.get(cpu).ok_or(Refusal::NotThere)?;
        // SAFETY: as in `with`.
        let local = unsafe { &mut *cell.get() };
        f(&mut local.value)?;
        local.enabled = true;
        Ok(())
    }

    /// Switches it off by `f`, in the same way. Nothing happens if it is not on.
    pub fn disable(&self, cpu: usize, f: impl FnOnce(&mut T)) {
        let Some(cell) = self.0.get(cpu) else { return };
        // SAFETY: as in `with`.
        let local = unsafe { &mut *cell.get() };
        if core::mem::take(&mut local.enabled) {
            f(&mut local.value);
        }
    }
}
