//! VT-x: guests on the processor's own virtualization (SDM vol. 3, part 3, "Virtual Machine Extensions").
//!
//! A vCPU's registers are in a page that only the processor knows the layout of, the *control structure* (VMCS). It is reached by
//! VMREAD and VMWRITE, field by field ([`fields`]), while it is the *current* one of a processor ([`vmcs`]). VMLAUNCH or VMRESUME
//! loads the guest's registers from it and runs the guest until something happens that the control fields tell it to stop for;
//! then the host goes on where the control structure says. This crate writes the core's registers there and reads them back,
//! and knows what to stop for.
//!
//! # One entry
//! `enter` ([`vcpu`]) switches interrupts off, looks a last time whether anybody wants the vCPU outside, makes its control
//! structure the current one, writes what has changed, crosses over (`switch`), and reads what every exit needs. The
//! rest is read when somebody asks. Between two entries the processor has of the guest's its FPU, which the host's scheduler keeps like
//! any other thread's, what only user mode would miss ([`user_mode`]), and what it keeps of the control structure. When the thread is
//! scheduled away, user mode's registers become the host's again; who finds the control structure active on another processor has it
//! cleared there first ([`region`]).
//!
//! # Parts
//! Everything that is data is a small module without hardware, tested on any machine: [`segment`], [`control`], [`guest_state`]
//! (registers), [`controls`] (what to stop for), [`exit`] (why it stopped), [`inject`] (events), [`permissions`] (MSRs). What the
//! other vendor's back end does as well is in the crate `hardware`. What is done to the processor goes through
//! [`instructions`]; the tests' form has control structures of its own and records the steps.
//!
//! # Paging, and real mode
//! With EPT and unrestricted guests the processor walks the guest's tables itself, and runs every mode. If it lacks one of the two,
//! or EFER in the control structure, it walks shadow tables of the core's, and only runs protected mode with segments that loads
//! have left there. Real mode with plain segments runs as virtual-8086 mode ([`guest_state`]); all else the core executes
//! (`BackendVcpu::can_enter`).
//!
//! # What is not here
//! EPT without unrestricted guests. Posted interrupts, APIC-access pages,
//! VMX for guests.
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod backend;
pub mod control;
pub mod controls;
pub mod detect;
pub mod exit;
pub mod failure;
pub mod fields;
pub mod guest_state;
pub mod inject;
pub mod instructions;
pub mod local;
mod native;
pub mod permissions;
pub mod region;
pub mod segment;
mod switch;
mod sync;
#[cfg(test)]
mod testing;
pub mod user_mode;
pub mod vcpu;
pub mod vmcs;

pub use backend::{Intel, Options};
pub use vcpu::IntelVcpu;
