//! Guest memory: how a guest-physical address becomes memory of the client, and how a guest-virtual one becomes
//! guest-physical.
//!
//! Memory slots map ranges of guest-physical addresses (gpa) to ranges of the client's virtual addresses (hva). They
//! are an immutable [`Snapshot`] that every vCPU reads without a lock; a change publishes a new one
//! ([`AddressSpace`]). On top of a snapshot stand reading and writing of guest-physical memory ([`physical`]), the
//! log of pages that were written ([`dirty`]) and the walker of the guest's own page tables in every paging mode
//! ([`mod@walk`]). Shadow and nested tables, which hardware needs, build on the same parts.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod dirty;
mod error;
pub mod physical;
pub mod shadow;
pub mod slots;
#[cfg(feature = "testing")]
pub mod testing;
pub mod walk;

pub use error::{MemoryError, SlotError};
pub use physical::PhysMem;
pub use slots::{
    AddressSpace, Change, ChangeKind, Frame, LockedView, NR_MEMSLOTS, OwnedMemory, Region, Snapshot, View,
};
pub use walk::{Paging, PagingMode, Request, Rights, TableMemory, Translation, WalkError, translate, walk};
