//! A guest's floating-point registers, kept by the kernel as those of a thread are.
use platform::{
    MaySleep, OutOfMemory,
    hardware::{FpuArea, GuestFpu},
};

use crate::{glue, heap::Raw};

/// x87, SSE, AVX: what a guest can be given.
const COMPONENTS: u64 = 7;

/// One guest's.
pub struct KernelFpu {
    raw: Raw,
    loaded: bool,
}

impl KernelFpu {
    /// Runs `f` while the registers are in memory, wherever they were.
    fn at_rest<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let loaded = self.loaded;
        if loaded {
            self.swap(false);
        }
        let result = f(self);
        if loaded {
            self.swap(true);
        }
        result
    }

    fn swap(&mut self, to_guest: bool) {
        // SAFETY: initialized by `new`. The thread's own registers are the others: `loaded` alternates.
        unsafe { glue::rekvm_fpu_swap(self.raw.at(), to_guest) };
        self.loaded = to_guest;
    }

    /// Room for the registers as the ABI has them.
    fn area(&mut self) -> &mut [u8; 4096] {
        // SAFETY: C keeps a page for it there, which is ours while `self` is.
        unsafe { &mut *self.raw.at().add(glue::rekvm_fpu_area).cast() }
    }
}

impl GuestFpu for KernelFpu {
    fn new(_cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let raw = Raw::new(glue::rekvm_fpu_size)?;
        // SAFETY: the room is as large as C's structure, and zeroed.
        if unsafe { glue::rekvm_fpu_init(raw.at()) } { Ok(Self { raw, loaded: false }) } else { Err(OutOfMemory) }
    }

    fn load(&mut self) {
        if !self.loaded {
            self.swap(true);
        }
    }

    fn put(&mut self) {
        if self.loaded {
            self.swap(false);
        }
    }

    fn save(&mut self, to: &mut FpuArea) {
        self.at_rest(|fpu| {
            // SAFETY: initialized by `new`, and in memory.
            unsafe { glue::rekvm_fpu_save(fpu.raw.at(), COMPONENTS) };
            let (area, _) = fpu.area().split_at(to.len());
            to.copy_from_slice(area);
        });
    }

    fn restore(&mut self, from: &FpuArea) -> bool {
        self.at_rest(|fpu| {
            let area = fpu.area();
            area.fill(0);
            area.split_at_mut(from.len()).0.copy_from_slice(from);
            // SAFETY: initialized by `new`, and in memory.
            unsafe { glue::rekvm_fpu_restore(fpu.raw.at(), COMPONENTS) == 0 }
        })
    }
}

impl Drop for KernelFpu {
    fn drop(&mut self) {
        // SAFETY: initialized by `new`; a vCPU is dropped outside of KVM_RUN, where the registers are in memory.
        unsafe { glue::rekvm_fpu_destroy(self.raw.at()) };
    }
}
