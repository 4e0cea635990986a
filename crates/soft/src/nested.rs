//! The walk through nested tables: what the memory unit of a processor with nested paging does. It walks the guest's own tables,
//! and takes every guest-physical address that it meets on the way, and the one at the end, through tables that the core
//! fills. What is not there leaves the guest as [`Exit::NestedPageFault`](hv::backend::Exit::NestedPageFault).
//!
//! Like AMD's processors it counts every access to a guest's table as a write in user mode (APM vol. 2, 15.25.6). As on
//! shadow tables, code is known by its host-physical address.
use core::marker::PhantomData;

use mmu::{Frame, MemoryError, Paging, Request, TableMemory, shadow::Root, walk};
use platform::{Hva, Memory, Platform, Word};

use crate::{
    SoftVcpu,
    kept::{Frames, Known},
    memory::{Miss, Want, known},
    shadow::Tables,
};

/// Bits of a guest-physical address that four levels translate.
const BITS: u32 = 48;

/// Guest-physical memory through nested tables.
struct Nested<'a, P> {
    /// How they are walked.
    paging: &'a Paging,
    /// What the adversarial TLB keeps of them.
    frames: Option<&'a Frames>,
    platform: PhantomData<P>,
}

impl<P: Platform> Nested<'_, P> {
    /// The frame of `gpa`, and its number on the host. None: the tables do not let the access through.
    fn frame(&self, gpa: u64, request: Request) -> Option<(Frame, u64)> {
        if let Some(kept) = self.frames.and_then(|frames| frames.find(gpa >> 12)) {
            return Some(kept).filter(|(frame, _)| !(frame.read_only && request.is_write()));
        }
        if gpa >> BITS != 0 {
            return None;
        }
        let found = walk(&Tables::<P>(PhantomData), self.paging, gpa, request.user()).ok()?;
        let hpa = found.gpa & !0xfff;
        let frame = Frame { hva: Hva(hpa), read_only: !found.rights.writable(), log_dirty: false };
        if let Some(frames) = self.frames {
            frames.keep(gpa >> 12, frame, hpa >> 12);
        }
        Some((frame, hpa >> 12))
    }

    /// Where the entry of a guest's table at `gpa` is.
    fn entry(&self, gpa: u64) -> Result<Hva, MemoryError> {
        let (frame, _) = self.frame(gpa, Request::WRITE).ok_or(MemoryError::NoMemory(gpa))?;
        Ok(frame.hva.add(gpa & 0xfff))
    }
}

impl<P: Platform> TableMemory for Nested<'_, P> {
    fn load_entry<W: Word>(&self, gpa: u64) -> Result<W, MemoryError> {
        P::Memory::load(self.entry(gpa)?).map_err(|_| MemoryError::BadAddress(gpa))
    }

    fn exchange_entry<W: Word>(&self, gpa: u64, old: W, new: W) -> Result<W, MemoryError> {
        P::Memory::compare_exchange(self.entry(gpa)?, old, new).map_err(|_| MemoryError::BadAddress(gpa))
    }
}

impl<P: Platform> SoftVcpu<P> {
    /// Begins a stay in the guest with `root`. False: there is nothing to walk.
    pub(crate) fn set_nested_root(&mut self, root: Root) -> bool {
        if !matches!(&self.nested, Some((known, _)) if *known == root) {
            self.nested = Some((root, self.paging.shadowed(root, [0; 4])));
        }
        root.levels == 4
    }

    fn nested_memory<'a>(&'a self, paging: &'a Paging) -> Nested<'a, P> {
        Nested { paging, frames: self.kept.as_ref().map(|kept| &kept.frames), platform: PhantomData }
    }

    /// The walk of the guest's tables, by way of the nested ones.
    pub(crate) fn walk_nested(
        &self,
        nested: &Paging,
        linear: u64,
        request: Request,
        want: Want,
    ) -> Result<Known, Miss> {
        let memory = self.nested_memory(nested);
        let translation = walk(&memory, &self.paging, linear, request).map_err(Miss::Walk)?;
        let request = if want == Want::Write { Request::WRITE } else { Request::READ };
        known(&translation, memory.frame(translation.gpa, request), want, |_| {})
    }

    /// A word of guest-physical memory, for the processor's own purposes.
    pub(crate) fn load_nested(&self, nested: &Paging, gpa: u64) -> Result<u64, MemoryError> {
        self.nested_memory(nested).load_entry(gpa)
    }
}
