//! When a thread loses its processor: the kernel's scheduler tells.
use alloc::boxed::Box;
use core::ffi::c_void;

use platform::{
    Atomic, MaySleep, OutOfMemory,
    fallible::try_box,
    hardware::{LosesProcessor, Watch},
};

use crate::{
    glue::{self, Data},
    heap::Raw,
};

/// Of one thread at a time.
pub struct SwitchWatch<L> {
    raw: Raw,
    /// At an address that the kernel knows.
    told: Box<L>,
}

/// # Safety
/// `data` is who is told by a watch that has not ended.
unsafe extern "C" fn loses<L: LosesProcessor>(data: Data) {
    // SAFETY: as the caller promises; who is told is shared.
    unsafe { &*data.cast::<L>() }.loses_processor(&Atomic::at_entry());
}

impl<L: LosesProcessor> Watch<L> for SwitchWatch<L> {
    fn new(told: L, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let raw = Raw::new(glue::rekvm_switch_size)?;
        let told = try_box(told)?;
        let data = (&raw const *told).cast_mut().cast::<c_void>();
        // SAFETY: the room is as large as C's structure, and who is told stays until the watch has ended.
        unsafe { glue::rekvm_switch_init(raw.at(), loses::<L>, data) };
        Ok(Self { raw, told })
    }

    #[inline]
    fn told(&self) -> &L {
        &self.told
    }

    fn begin(&self) {
        // SAFETY: initialized by `new`, and not begun: whoever begins it ends it.
        unsafe { glue::rekvm_switch_begin(self.raw.at()) };
    }

    fn end(&self) {
        // SAFETY: begun by this thread.
        unsafe { glue::rekvm_switch_end(self.raw.at()) };
    }
}

impl<L> Drop for SwitchWatch<L> {
    fn drop(&mut self) {
        // SAFETY: initialized by `new`; a vCPU is dropped outside of KVM_RUN, where nobody is watched.
        unsafe { glue::rekvm_switch_destroy(self.raw.at()) };
    }
}
