//! What back ends that use a processor's own virtualization have in common, whoever made the processor: the guest's registers
//! that entering a guest leaves alone, control registers, the form of events and what one writes besides being delivered, tags of
//! translations, and what guests may be offered. How a guest is entered, and why it has stopped, is each back end's own.
//!
//! What the processor is told goes through the trait [`Instructions`], whose real form is [`native::Native`]. The tests put a
//! recorder there (`testing`), so that the order of the steps is tested without such a processor.
#![no_std]
extern crate alloc;
#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod asked;
pub mod control;
pub mod event;
pub mod features;
pub mod fpu;
pub mod instructions;
pub mod keep;
pub mod native;
pub mod payload;
pub mod per_cpu;
pub mod predictions;
pub mod reset;
pub mod tags;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use instructions::Instructions;
