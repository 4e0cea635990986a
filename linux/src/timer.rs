//! Timers: the kernel's high-resolution ones, whose callbacks run in interrupt context.
use alloc::boxed::Box;
use core::ffi::c_void;

use platform::{Atomic, OutOfMemory, Timer, TimerCallback, fallible::try_box};

use crate::{
    glue::{self, Data},
    heap::Raw,
};

/// A one-shot timer.
pub struct HrTimer<C> {
    raw: Raw,
    /// At an address that the kernel knows.
    _callback: Box<C>,
}

/// # Safety
/// `data` is the callback of a timer that has not been dropped.
unsafe extern "C" fn expired<C: TimerCallback>(data: Data) {
    // SAFETY: as the caller promises; callbacks are shared.
    unsafe { &*data.cast::<C>() }.expired(&Atomic::at_entry());
}

impl<C: TimerCallback> Timer<C> for HrTimer<C> {
    fn new(callback: C) -> Result<Self, OutOfMemory> {
        let raw = Raw::new(glue::rekvm_timer_size)?;
        let callback = try_box(callback)?;
        let data = (&raw const *callback).cast_mut().cast::<c_void>();
        // SAFETY: the room is as large as a timer, and the callback stays until the timer has been cancelled.
        unsafe { glue::rekvm_timer_init(raw.at(), expired::<C>, data) };
        Ok(Self { raw, _callback: callback })
    }

    fn arm(&self, deadline_ns: u64) {
        // SAFETY: initialized by `new`.
        unsafe { glue::rekvm_timer_arm(self.raw.at(), i64::try_from(deadline_ns).unwrap_or(i64::MAX)) };
    }

    fn cancel(&self) {
        // SAFETY: initialized by `new`.
        unsafe { glue::rekvm_timer_try_cancel(self.raw.at()) };
    }
}

impl<C> Drop for HrTimer<C> {
    fn drop(&mut self) {
        // SAFETY: initialized by `new`. This waits for a running callback.
        unsafe { glue::rekvm_timer_cancel(self.raw.at()) };
    }
}
