//! What the fuzz targets share, and the targets themselves as functions of their input, so that a test can run a
//! saved input without a fuzzer.
//!
//! A target is deterministic as far as it can be: everything that it does follows from its input. What takes time
//! (a guest that spins, a vCPU that sleeps) is ended by [`deadline`].
pub mod deadline;
pub mod emulator;
pub mod input;
pub mod invariants;
pub mod ioctls;
pub mod memory;

/// The bits of `fuzz_targets`: what a fuzzer calls once.
pub fn start() {
    // The device's fault handler has to be in front of the sanitizer's before a guest touches memory.
    user::fault::install().expect("no fault handler");
}
