//! What is known of each of the client's threads.
use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering},
};

use user::sys::thread_id;

use crate::clone::Start;

/// Threads that a client can have at once.
pub(crate) const THREADS: usize = 4096;

/// The kernel's values of a selector: SYSCALL_DISPATCH_FILTER_ALLOW and _BLOCK.
pub(crate) const ALLOW: u8 = 0;
pub(crate) const BLOCK: u8 = 1;

/// Of a thread that is about to start.
const STARTING: i32 = -1;

/// One thread of the client's.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// Its number; 0: nobody's.
    pub(crate) tid: AtomicI32,
    /// Whether the kernel lets its system calls through: it reads this byte.
    pub(crate) selector: AtomicU8,
    /// Place and one of what it has borrowed from us ([`crate::world`]); 0: nothing yet.
    pub(crate) lender: AtomicUsize,
    /// What it starts with; its parent's until it starts.
    pub(crate) start: UnsafeCell<Start>,
}

// SAFETY: `start` belongs to whoever has claimed the slot, and then to the thread that starts.
unsafe impl Sync for Slot {}

impl Slot {
    const fn new() -> Self {
        Self {
            tid: AtomicI32::new(0),
            selector: AtomicU8::new(ALLOW),
            lender: AtomicUsize::new(0),
            start: UnsafeCell::new(Start::EMPTY),
        }
    }
}

static SLOTS: [Slot; THREADS] = [const { Slot::new() }; THREADS];

/// The slots, beginning with the one where the thread `tid` would be if it were alone.
fn from(tid: i32) -> impl Iterator<Item = &'static Slot> {
    let home = tid.unsigned_abs() as usize % THREADS;
    SLOTS.iter().cycle().skip(home).take(THREADS)
}

/// Takes a free slot for the calling thread, or None. Bare.
pub(crate) fn claim() -> Option<&'static Slot> {
    let tid = thread_id();
    from(tid).find(|slot| slot.tid.compare_exchange(0, tid, Ordering::AcqRel, Ordering::Relaxed).is_ok())
}

/// Takes a free slot for a thread that will start, or None. Bare.
pub(crate) fn claim_for_another() -> Option<&'static Slot> {
    // Numbers of threads mostly ascend.
    let free = |slot: &&Slot| slot.tid.compare_exchange(0, STARTING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    from(thread_id().wrapping_add(1)).find(free)
}

/// The calling thread's slot. Bare.
pub(crate) fn own() -> Option<&'static Slot> {
    let tid = thread_id();
    // Where it was claimed by its parent, it is below.
    let near = from(tid.wrapping_sub(NEAR)).take(2 * NEAR as usize);
    near.chain(&SLOTS).find(|slot| slot.tid.load(Ordering::Acquire) == tid)
}

/// Where a slot is looked for first, on both sides of its home.
const NEAR: i32 = 32;

/// Gives the slot back. Bare.
pub(crate) fn release(slot: &Slot) {
    slot.tid.store(0, Ordering::Release);
}

/// In a child of fork: of all threads only the calling one is left. Bare.
pub(crate) fn only(slot: &Slot) {
    for other in SLOTS.iter().filter(|other| !std::ptr::eq(*other, slot)) {
        other.lender.store(0, Ordering::Relaxed);
        release(other);
    }
    slot.tid.store(thread_id(), Ordering::Release);
}
