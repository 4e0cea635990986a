//! The allocator: the kernel's, charged to the client in whose system call we are. It fails instead of waiting for ever,
//! and counts: what is left when the module goes is a leak.
use core::{
    alloc::{GlobalAlloc, Layout},
    ptr,
    sync::atomic::{AtomicIsize, Ordering::Relaxed},
};

use alloc::alloc::{alloc_zeroed, dealloc};
use platform::OutOfMemory;

use crate::glue;

/// Allocations of any kind that have not been given back.
static LIVE: AtomicIsize = AtomicIsize::new(0);

/// How many allocations are alive.
pub fn live() -> isize {
    LIVE.load(Relaxed)
}

/// Counts an allocation that `at` shows to have succeeded; one of ours or one made by other ways.
pub fn count(at: *mut u8) -> *mut u8 {
    if !at.is_null() {
        LIVE.fetch_add(1, Relaxed);
    }
    at
}

/// Counts the end of an allocation.
pub fn uncount() {
    LIVE.fetch_sub(1, Relaxed);
}

/// What kmalloc aligns every allocation to.
const MIN_ALIGN: usize = 8;
const PAGE: usize = 4096;

struct Kernel;

#[global_allocator]
static KERNEL: Kernel = Kernel;

// SAFETY: kvmalloc's memory is as large as asked for, and belongs to the caller until it is freed.
unsafe impl GlobalAlloc for Kernel {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // kmalloc aligns powers of two to their size, up to a page.
        let bytes = match layout.align() {
            0..=MIN_ALIGN => layout.size(),
            align if align > PAGE => return ptr::null_mut(),
            align if layout.size() <= PAGE => layout.size().max(align).next_power_of_two(),
            _ => layout.size(),
        };
        count(glue::rekvm_alloc(bytes, glue::rekvm_preemptible()))
    }

    unsafe fn dealloc(&self, at: *mut u8, _layout: Layout) {
        uncount();
        // SAFETY: `at` came from `alloc` above.
        unsafe { glue::rekvm_free(at) };
    }
}

/// A structure of the kernel's whose size only C knows, zeroed, at an address that does not change.
pub struct Raw {
    at: *mut u8,
    layout: Layout,
}

// SAFETY: only an address; what lies there is shared by the kernel's own rules.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    /// Room for `bytes`, aligned to 64.
    pub fn new(bytes: usize) -> Result<Self, OutOfMemory> {
        let layout = Layout::from_size_align(bytes.max(1), 64).map_err(|_| OutOfMemory)?;
        // SAFETY: the size is not zero.
        let at = unsafe { alloc_zeroed(layout) };
        if at.is_null() { Err(OutOfMemory) } else { Ok(Self { at, layout }) }
    }

    /// Where it is.
    pub fn at(&self) -> *mut u8 {
        self.at
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.at, self.layout) };
    }
}
