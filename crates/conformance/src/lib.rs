//! The conformance suite: cases that speak ioctls to a `/dev/kvm`, whichever it is, and say what it has to answer.
//!
//! The same cases run on the software CPU (the device inside this process) and on a device node: Linux's own KVM, which
//! tells whether a case is right, or rekvm's module. A case is a function that makes a VM on the [`Device`] it is given,
//! runs a few instructions in it and panics when something is not as the manuals or the documented interface have it.
//!
//! - [`device`]: the system-call boundary: descriptors, ioctls, mappings, on either kind of device.
//! - [`vm`]: virtual machines, vCPUs, memory and exits in the terms that cases think in.
//! - [`guest`]: guest programs and machines in every processor mode, for cases that need more than real mode.
//! - [`runner`]: what a case is, where it applies, and how all are run, each in a process of its own.
//! - [`cases`]: the cases, a folder for each subject.
//! - [`hard`]: clients that are no cases, for a device of the kernel's.
//! - [`cost`]: no cases, but guests that measure what exits cost.
pub mod cases;
pub mod cost;
pub mod device;
pub mod guest;
pub mod hard;
pub mod runner;
pub mod vm;

pub use device::{Device, Errno};
