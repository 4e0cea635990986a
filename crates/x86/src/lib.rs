//! The x86 processor as data: every register, descriptor, paging entry, model-specific register, feature
//! bit and exception that rekvm talks about is typed here once, under the name that the manuals use.
//!
//! Nothing in this crate acts. [`CpuState`] is the architectural state of one guest processor, the form
//! in which the core, the emulator and every back end exchange it; the other modules give names to the
//! bits inside. "SDM" in the comments is Intel's Software Developer's Manual, "APM" AMD's Architecture
//! Programmer's Manual.
#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod debug;
pub mod exception;
pub mod features;
pub mod flags;
pub mod fpu;
pub mod msr;
pub mod paging;
pub mod segment;
pub mod state;

pub use control::{Cr0, Cr4, Efer};
pub use exception::{Exception, Vector};
pub use features::Features;
pub use flags::Flags;
pub use fpu::Fpu;
pub use segment::{Attr, Segment, Table};
pub use state::{CpuState, Mode, Seg, Shadow};
