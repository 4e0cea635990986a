//! Nested paging (NPT; row B10): tables behind the guest's own, which translate guest-physical addresses.
//!
//! The processor walks the guest's tables by itself and takes each guest-physical address that it meets through these ones.
//! They are shadow pages like all others, in a direct role from the root down: one tree for all vCPUs, of four levels
//! that begin at frame 0. So the reverse map, dirty logging, invalidation by the host, the bound and the end of a page are what
//! they are for shadow paging; only that no guest table stands behind a page, that a leaf may be `large`, and that
//! an alias is one more place in the tree at which its frame is mapped.
use platform::{MaySleep, OutOfMemory, Platform};

use super::{
    Shadow, ShadowError,
    cache::Cache,
    fault::{Access, Resolved},
    root::Root,
    spte::EntryFormat,
};
use crate::{AddressSpace, walk::Request};

/// Bits of a guest-physical address that four levels translate.
const BITS: u32 = 48;

impl<P: Platform> Shadow<P> {
    /// Empty nested tables for vCPUs 0 to `vcpus - 1`.
    pub fn nested(vcpus: usize, format: EntryFormat, cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Self::build(vcpus, Some(format), cx)
    }

    /// Whether they are nested tables.
    pub fn is_nested(&self) -> bool {
        self.open.nested
    }

    /// The root of nested tables for vCPU `vcpu` (its reader number too). If it is another one than before, the vCPU flushes its
    /// own translations before it enters. `flush` is as for [`Self::fulfil`].
    pub fn load_nested_root(
        &self,
        vcpu: usize,
        memory: &AddressSpace<P>,
        cache: &mut Cache<P>,
        cx: &MaySleep,
        flush: impl FnMut(),
    ) -> Result<Root, ShadowError> {
        self.load_root_of(vcpu, None, memory, cache, cx, flush)
    }

    /// Handles a fault of vCPU `vcpu` on nested tables, at `gpa`, whose root was loaded. `request` is [`Request::READ`],
    /// [`Request::WRITE`] or [`Request::FETCH`]; that a processor counts its accesses to the guest's tables as
    /// writes is right. `flush` is as for [`Self::fault`].
    #[allow(clippy::too_many_arguments)] // each is another owner's
    pub fn nested_fault(
        &self,
        vcpu: usize,
        gpa: u64,
        request: Request,
        memory: &AddressSpace<P>,
        cache: &mut Cache<P>,
        cx: &MaySleep,
        flush: impl FnMut(),
    ) -> Result<Resolved, ShadowError> {
        if gpa >> BITS != 0 {
            // The tables have no place for it.
            return Ok(Resolved::Device { gpa });
        }
        self.resolve(vcpu, Access::new(gpa, request, None), memory, cache, cx, flush)
    }
}
