//! The registers of a new guest processor.
use alloc::boxed::Box;

use platform::{OutOfMemory, fallible::try_box};
use x86::CpuState;

/// In reset state. In a frame of its own, and moved to the heap at once: a kernel's stack is small.
///
/// # Errors
/// There is no memory.
#[inline(never)]
pub fn registers() -> Result<Box<CpuState>, OutOfMemory> {
    try_box(CpuState::reset(0))
}
