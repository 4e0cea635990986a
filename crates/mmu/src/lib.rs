//! Guest memory: how a guest-physical address becomes memory of the client, and how a guest-virtual one becomes
//! guest-physical.
//!
//! Memory slots map ranges of guest-physical addresses (gpa) to ranges of the client's virtual addresses (hva). They are
//! an immutable snapshot that every vCPU reads without a lock; a change publishes a new one. The walkers
//! read the guest's page tables in every paging mode. Shadow and nested tables, which hardware needs, build on both.
#![no_std]
extern crate alloc;

use platform::{Hva, MaySleep, OutOfMemory, Platform};

/// The guest-physical address space of one VM.
#[derive(Debug)]
pub struct AddressSpace<P: Platform>(core::marker::PhantomData<P>);

/// One guest frame that memory serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it is in the client.
    pub hva: Hva,
    /// Guest writes are to be treated as device accesses (KVM_MEM_READONLY).
    pub read_only: bool,
    /// Writes have to be marked before they are made: a write translation may be kept only after `mark_dirty`,
    /// and only until the next flush that a dirty-log read requests.
    pub log_dirty: bool,
}

impl<P: Platform> AddressSpace<P> {
    /// An empty address space for `readers` vCPUs.
    pub fn new(_readers: usize, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Ok(Self(core::marker::PhantomData))
    }

    /// The frame `gfn` as reader `reader` (its vCPU index) sees it now; None where there is no memory.
    pub fn resolve(&self, _reader: usize, _gfn: u64) -> Option<Frame> {
        None
    }

    /// Marks `gfn` in the dirty log of its slot, if it has one.
    pub fn mark_dirty(&self, _reader: usize, _gfn: u64) {}
}
