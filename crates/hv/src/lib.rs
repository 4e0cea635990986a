//! The hypervisor core: what a virtual machine *is*, independent of the processor that runs it and of the
//! machine that hosts it.
//!
//! A [`backend::Backend`] is a processor that can run a guest until something happens: AMD-V, VT-x, or the
//! software CPU. A `platform::Platform` is the host: a kernel or a process. The core stands between them and the
//! client (QEMU, `rekvm run`, ...): it owns the life of `Kvm`, `Vm` and `Vcpu` behind their file descriptors, answers
//! their ioctls, and handles every exit of every back end once.
#![no_std]
extern crate alloc;

pub mod backend;
