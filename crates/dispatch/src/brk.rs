//! The client's program break. The kernel's belongs to this program's own C library, so the client gets a range of its own.
use std::sync::atomic::{AtomicUsize, Ordering};

use user::sys;

/// As much as the client can ask for; it costs nothing until it does.
const ROOM: usize = 1 << 32;

static START: AtomicUsize = AtomicUsize::new(0);
static NOW: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Reserves the range, behind the program if there is room. Without it the client's `brk` fails, and its C library
/// takes mappings.
pub(crate) fn start(behind: usize) {
    let flags = ANONYMOUS as usize;
    // SAFETY: a new mapping.
    if let Ok(at) = unsafe { sys::call(libc::SYS_mmap, [behind, ROOM, 0, flags, usize::MAX, 0]) } {
        START.store(at, Ordering::Relaxed);
        NOW.store(at, Ordering::Relaxed);
        END.store(at + ROOM, Ordering::Relaxed);
    }
}

/// `brk`. Bare.
pub(crate) fn set(wanted: usize) -> usize {
    let (start, now, end) = (START.load(Ordering::Relaxed), NOW.load(Ordering::Relaxed), END.load(Ordering::Relaxed));
    if wanted < start || wanted > end || start == 0 {
        return now;
    }
    let (from, to) = (now.next_multiple_of(4096), wanted.next_multiple_of(4096));
    let changed = if to > from {
        let rights = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        // SAFETY: within the range, which is the client's.
        unsafe { sys::raw(libc::SYS_mprotect, [from, to - from, rights, 0, 0, 0]) }
    } else if to < from {
        // SAFETY: as above; what is given back reads as zeroes when it is taken again.
        unsafe { sys::raw(libc::SYS_mmap, [to, from - to, 0, (ANONYMOUS | libc::MAP_FIXED) as usize, usize::MAX, 0]) }
    } else {
        0
    };
    if changed < 0 {
        return now;
    }
    NOW.store(wanted, Ordering::Relaxed);
    wanted
}
