//! `rekvm run` with tiny guests: how they end, what they cost, how they leave the
//! terminal.
//!
//! `REKVM_TEST_ACCEL=kvm` runs these on the host's device instead of the software CPU.

mod code;
mod endings;
mod terminal;
