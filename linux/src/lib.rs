//! rekvm.ko: the hypervisor core as a module of a stock Linux kernel.
//!
//! [`platform::Linux`] gives the core what it needs from a host, by functions of the kernel that `glue/*.c` makes callable.
//! [`device`] stands behind the descriptors of /dev/kvm. Guests run on the processor's own virtualization, by the crate
//! `svm` or `vmx` ([`cpu`]). What is unsafe here is calls into C, and pointers that come back from there.
#![no_std]
extern crate alloc;

mod cpu;
mod device;
mod errno;
mod eventfd;
mod fpu;
mod glue;
mod heap;
mod lock;
mod machines;
mod memory;
mod module;
mod pages;
mod panic;
mod platform;
mod statistics;
mod timer;
mod vm;
mod wait;
mod watch;
mod wide;
