//! AMD-V: guests on the processor's own virtualization (APM vol. 2, chapter 15, "Secure Virtual Machine").
//!
//! A vCPU's registers are in a page that the processor reads and writes, the *control block* ([`vmcb`]). The instruction VMRUN
//! loads them and runs the guest until something happens that the control block tells it to stop for; then the host goes on
//! behind VMRUN. This crate makes control blocks from the core's registers and back, and knows what to stop for.
//!
//! # One entry
//! `enter` ([`vcpu`]) writes what has changed into the control block, switches interrupts off, looks a last time whether anybody
//! wants the vCPU outside, and crosses over (`switch`). Between two entries nothing of the guest is on the processor but its
//! FPU, which the host's scheduler keeps like any other thread's, and what the processor may cache of the control block. So a
//! thread that is scheduled away needs no care, and what a light exit costs is what the instructions in `switch` cost.
//!
//! # Parts
//! Everything that is data is a small module without hardware, tested on any machine: [`segment`], [`control`] (registers),
//! [`intercept`] (what to stop for), [`exit`] (why it stopped), [`inject`] (events), [`permissions`] (ports and MSRs).
//! What the other vendor's back end does as well is in the crate `hardware`. What is done to the processor goes through
//! [`instructions`]; the tests' form records the steps, and so their order is tested too.
//!
//! # Paging
//! With nested paging the processor walks the guest's tables itself. Without, it walks shadow tables of the core's, and the
//! guest stops for whatever would change which tables it means (`Translation`).
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod backend;
pub mod block;
mod breakpoints;
pub mod control;
pub mod detect;
pub mod exit;
pub mod inject;
pub mod instructions;
pub mod intercept;
pub mod local;
mod native;
pub mod permissions;
pub mod segment;
mod switch;
mod sync;
#[cfg(test)]
mod testing;
pub mod vcpu;
pub mod vmcb;

pub use backend::{Amd, Options};
pub use vcpu::AmdVcpu;
