//! The allocator: the kernel's, charged to the client in whose system call we are. It fails instead of waiting for ever,
//! and counts: what is left when the module goes is a leak.
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed},
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

/// Allocates by `f`, and counts what it has given; for us or for others.
pub fn counted(f: impl FnOnce() -> *mut u8) -> *mut u8 {
    if refused() {
        return ptr::null_mut();
    }
    let at = f();
    if !at.is_null() {
        LIVE.fetch_add(1, Relaxed);
    }
    at
}

/// Whether a test wants this allocation to fail.
#[cfg(feature = "scarce")]
fn refused() -> bool {
    let left = &glue::scarce::rekvm_fail_at;
    left.load(Relaxed) > 0 && left.fetch_sub(1, Relaxed) == 1
}

#[cfg(not(feature = "scarce"))]
fn refused() -> bool {
    false
}

/// Counts the end of an allocation.
pub fn uncount() {
    LIVE.fetch_sub(1, Relaxed);
}

/// Room for what is made once and stays as long as the module, of which it is a part.
#[repr(align(4096))]
struct Permanent(UnsafeCell<[u8; PERMANENT]>);

// SAFETY: each piece is given out once.
unsafe impl Sync for Permanent {}

/// The decoder's tables take 420 KiB.
const PERMANENT: usize = 512 << 10;
static ROOM: Permanent = Permanent(UnsafeCell::new([0; PERMANENT]));
/// How much of it is taken. Beyond its end: nothing is to be taken from it any more.
static TAKEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs `f`, all of whose allocations last as long as the module. Nothing else runs in it yet.
pub fn permanently(f: impl FnOnce()) {
    TAKEN.store(0, Relaxed);
    f();
    TAKEN.store(usize::MAX, Relaxed);
}

/// A piece of that room, if it is being filled. Null: it is full.
fn permanent(layout: Layout) -> Option<*mut u8> {
    let start = TAKEN.load(Relaxed).checked_next_multiple_of(layout.align())?;
    let end = start.checked_add(layout.size())?;
    if end > PERMANENT {
        return Some(ptr::null_mut());
    }
    TAKEN.store(end, Relaxed);
    Some(ROOM.0.get().cast::<u8>().wrapping_add(start))
}

fn is_permanent(at: *mut u8) -> bool {
    (at as usize).wrapping_sub(ROOM.0.get() as usize) < PERMANENT
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
        if let Some(at) = permanent(layout) {
            return at;
        }
        // kmalloc aligns powers of two to their size, up to a page.
        let bytes = match layout.align() {
            0..=MIN_ALIGN => layout.size(),
            align if align > PAGE => return ptr::null_mut(),
            align if layout.size() <= PAGE => layout.size().max(align).next_power_of_two(),
            _ => layout.size(),
        };
        counted(|| glue::rekvm_alloc(bytes, glue::rekvm_preemptible()))
    }

    unsafe fn dealloc(&self, at: *mut u8, _layout: Layout) {
        if is_permanent(at) {
            return;
        }
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
