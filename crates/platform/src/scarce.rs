//! An allocator for tests that runs out of memory at a chosen allocation, so that each in turn can be the one that fails:
//! a test's program makes it its own by `#[global_allocator] static MEMORY: Scarce = Scarce;`.
extern crate std;
use core::cell::Cell;
use std::alloc::{GlobalAlloc, Layout, System};

use crate::OutOfMemory;

/// The system's memory, with the limits of [`run_short`].
pub struct Scarce;

/// How long a shortage lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// One allocation fails, and those after it do not.
    Once,
    /// That one and all after it fail.
    Lasting,
}

#[derive(Clone, Copy)]
struct Limit {
    /// Allocations before the shortage begins.
    left: u64,
    shortage: Shortage,
}

std::thread_local! {
    static LIMIT: Cell<Option<Limit>> = const { Cell::new(None) };
    static REFUSED: Cell<bool> = const { Cell::new(false) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
    static COUNTED: Cell<bool> = const { Cell::new(true) };
}

/// Runs `f`, which can allocate `count` times before its memory runs out. Also says whether it did. A panic in `f` ends the
/// program instead of the test, if it allocates.
pub fn run_short<R>(count: u64, shortage: Shortage, f: impl FnOnce() -> R) -> (R, bool) {
    REFUSED.set(false);
    LIMIT.set(Some(Limit { left: count, shortage }));
    let result = f();
    LIMIT.set(None);
    (result, REFUSED.get())
}

/// Takes one allocation of this thread's, for something of a test host's that can fail.
///
/// # Errors
/// If it is the one that fails.
pub fn allocate() -> Result<(), OutOfMemory> {
    let Some(limit) = LIMIT.get() else { return Ok(()) };
    if let Some(left) = limit.left.checked_sub(1) {
        LIMIT.set(Some(Limit { left, ..limit }));
        return Ok(());
    }
    REFUSED.set(true);
    LIMIT.set(Some(limit).filter(|limit| limit.shortage == Shortage::Lasting));
    Err(OutOfMemory)
}

/// Runs `f`, which belongs to a test and not to what is tested, without a limit.
pub fn plenty<R>(f: impl FnOnce() -> R) -> R {
    let limit = LIMIT.take();
    let result = f();
    LIMIT.set(limit);
    result
}

/// The same for what is kept for later tests: [`bytes`] does not count it.
pub fn for_good<R>(f: impl FnOnce() -> R) -> R {
    plenty(|| {
        let counted = COUNTED.replace(false);
        let result = f();
        COUNTED.set(counted);
        result
    })
}

/// How much this thread has allocated and not freed.
pub fn bytes() -> i64 {
    BYTES.get()
}

fn count(change: i64) {
    if COUNTED.get() {
        BYTES.set(BYTES.get() + change);
    }
}

// SAFETY: all is the system allocator's; a null pointer is how an allocation fails.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if allocate().is_err() {
            return core::ptr::null_mut();
        }
        count(layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if allocate().is_err() {
            return core::ptr::null_mut();
        }
        count(layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if allocate().is_err() {
            return core::ptr::null_mut();
        }
        count(size as i64 - layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fallible::{try_box, try_vec};

    #[global_allocator]
    static MEMORY: Scarce = Scarce;

    #[test]
    fn the_chosen_allocation_fails() {
        let three = || (try_box(1u8).is_ok(), try_vec(2u8, 3).is_ok(), try_box(4u8).is_ok());
        assert_eq!(run_short(1, Shortage::Once, three), ((true, false, true), true));
        assert_eq!(run_short(1, Shortage::Lasting, three), ((true, false, false), true));
        assert_eq!(run_short(3, Shortage::Lasting, three), ((true, true, true), false));
        let (all, refused) = run_short(1, Shortage::Lasting, || plenty(three));
        assert_eq!((all, refused), ((true, true, true), false));
    }

    #[test]
    fn what_is_not_freed_is_counted() {
        let before = bytes();
        let kept = try_vec(0u8, 100).unwrap();
        assert_eq!(bytes() - before, 100);
        drop(kept);
        let for_later = for_good(|| try_vec(0u8, 100)).unwrap();
        assert_eq!(bytes(), before);
        for_good(|| drop(for_later));
        assert_eq!(bytes(), before);
    }
}
