//! The hypervisor core: what a virtual machine *is*, independent of the processor that runs it and of the
//! machine that hosts it.
//!
//! A [`backend::Backend`] is a processor that can run a guest until something happens: AMD-V, VT-x, or the
//! software CPU. A `platform::Platform` is the host: a kernel or a process. The core stands between them and the
//! client (QEMU, `rekvm run`, ...): it owns the life of [`Kvm`], [`Vm`] and [`Vcpu`] behind their file descriptors,
//! answers their ioctls, and handles every exit of every back end once.
//!
//! Packaging (the kernel module, the in-process device) makes one [`Kvm`], resolves a file descriptor to its object,
//! and calls that object's `ioctl`. An [`Outcome`] that is a new object becomes a new file descriptor. The objects
//! are handles: cheap to clone, each keeping what it needs alive, so that descriptors can be closed in any order.
#![no_std]
#![cfg_attr(not(test), forbid(unsafe_code))]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod backend;
mod cpuid;
mod emulation;
mod errno;
mod exits;
mod kvm;
mod msr;
mod outcome;
mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod uaccess;
mod vcpu;
mod vm;

pub use emulate::decode::prepare;
pub use errno::Errno;
pub use kvm::Kvm;
pub use outcome::Outcome;
pub use stats::StatsFile;
pub use vcpu::{Vcpu, request};
pub use vm::Vm;
