//! Clients that make it hard for a device of the kernel's, for what no case can show: `conformance scarce` lets its allocations
//! fail one after the other, `conformance random` calls whatever comes to its mind. Both say only that each call answers as it may;
//! that the kernel is well afterwards, its log says.
mod guest;
pub mod random;
mod rng;
pub mod scarce;
