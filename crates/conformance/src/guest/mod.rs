//! Guest programs for the cases: small machines in every processor mode, with page tables, interrupt handlers that
//! record, and code.
//!
//! A case describes a [`Machine`] (its mode, what is mapped, its code), makes it on the device ([`Machine::start`]) and
//! runs it; what happened is in the registers, in memory, and in the list of [`Event`]s that the guest's own handlers have
//! written. A [`Script`] is for cases about translation: accesses and changes of page tables one after the other, each
//! with what it must do, run in one go without an exit between.
//!
//! - [`layout`]: where everything lies, and the GDT's selectors.
//! - [`image`], [`tables`], [`segments`]: bytes of memory, paging entries, descriptors.
//! - [`handlers`]: what the guest does with an exception or interrupt.
//! - [`machine`]: the guest before it exists; [`live`]: the guest on a device.
pub mod handlers;
pub mod image;
pub mod layout;
pub mod live;
pub mod machine;
pub mod script;
pub mod segments;
pub mod tables;

pub use live::{Event, Live};
pub use machine::{Machine, Mode, cr0, cr4, efer};
pub use script::{Level, Script};
pub use tables::Paging;
