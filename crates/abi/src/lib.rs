//! Wire structures and numbers of `/dev/kvm`, 2007's and today's, for x86.
//!
//! A client and the hypervisor talk through ioctls whose numbers, arguments and shared pages were fixed long ago.
//! This crate is that contract and nothing else: numbers ([`ioctl`], [`cap`], [`exit`]), the structures that cross the
//! boundary ([`regs`], [`irq`], [`memory`], ...) and what only the interface of July 2007 had ([`legacy2007`]).
//! Constants carry the names of the interface (`KVM_CREATE_VM`); structures carry them in Rust's spelling
//! (`kvm_regs` is [`regs::KvmRegs`]) with the fields' names unchanged.
//!
//! Every structure is plain old data without hidden padding: any bytes are a valid value, and a value can be seen as
//! bytes ([`Pod`]). Addresses in the client's memory are `u64`, so the layout is the same for 32-bit builds.
//! Structures with a tail of variable length are given as the header and the element.
//!
//! Tests compare each size, offset and number with the `kvm-bindings` crate.

#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod wire;

pub mod cap;
pub mod cpuid;
pub mod debug;
pub mod device;
pub mod events;
pub mod exit;
pub mod ioctl;
pub mod irq;
pub mod legacy2007;
pub mod memory;
pub mod misc;
pub mod msr;
pub mod pit;
pub mod regs;
pub mod stats;

pub use cap::*;
pub use cpuid::*;
pub use debug::*;
pub use device::*;
pub use events::*;
pub use exit::*;
pub use ioctl::*;
pub use irq::*;
pub use legacy2007::*;
pub use memory::*;
pub use misc::*;
pub use msr::*;
pub use pit::*;
pub use regs::*;
pub use stats::*;
pub use wire::Pod;
pub use zerocopy;

/// What `KVM_GET_API_VERSION` answers, in 2007 and today.
pub const KVM_API_VERSION: u32 = 12;
