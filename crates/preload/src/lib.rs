//! /dev/kvm inside an unmodified client.
//!
//! `rekvm exec` has the program loader put this library in front of the C library (LD_PRELOAD). Its functions have the
//! names of the C library's. A call that concerns /dev/kvm, or a descriptor made from it, goes to the device inside this
//! process ([`user::device`]); every other goes on to the C library as it came (`next`).
//!
//! What the client opens are real descriptors, so that only calls that mean something else for /dev/kvm than for a memfd
//! need to be here: `poll`, `epoll`, sending them over sockets, and /proc are the kernel's own.

mod descriptors;
mod files;
mod next;
mod reads;
mod signals;
mod start;
mod syscall;

use libc::c_int;

/// Tells the calling thread an error number; what failed calls return.
fn fail(errno: c_int) -> c_int {
    // SAFETY: errno belongs to this thread.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// What a call answers: a value, or the error number with -1.
fn answer(result: Result<c_int, c_int>) -> c_int {
    result.unwrap_or_else(fail)
}
