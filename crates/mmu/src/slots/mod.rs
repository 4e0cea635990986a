//! Memory slots: which guest frames are which memory of the client.
mod alias;
mod region;
mod space;

use alloc::vec::Vec;
use core::{marker::PhantomData, ops::Range};

use platform::{Hva, OutOfMemory, Platform, Shared, fallible::try_push};
use x86::paging::{LARGE_PAGE_SHIFT, PAGE_SHIFT};

pub use alias::{Alias, NR_ALIASES};
pub use region::{MAX_PAGES, NR_MEMSLOTS, OwnedMemory, Region};
pub use space::{AddressSpace, Change, ChangeKind, LockedView, View};

use crate::dirty::Bitmap;

/// Guest frame numbers end here: 52 bits of guest-physical address.
pub const GFN_END: u64 = 1 << (52 - PAGE_SHIFT);
/// Frames in a large page.
pub const LARGE_FRAMES: u64 = 1 << (LARGE_PAGE_SHIFT - PAGE_SHIFT);

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

/// One memory slot.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The client's number for it.
    pub id: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    /// First guest frame.
    pub base: u64,
    /// Frames.
    pub pages: u64,
    /// Where the first frame is in the client.
    pub hva: Hva,
    /// The memory belongs to the VM (KVM_SET_MEMORY_REGION).
    pub owned: bool,
    dirty: Option<Shared<Bitmap>>,
}

impl Slot {
    /// The dirty log, if the slot keeps one.
    pub fn dirty(&self) -> Option<&Bitmap> {
        self.dirty.as_deref()
    }

    /// The frames that `range` of the client serves.
    pub(crate) fn frames_at(&self, range: &Range<Hva>) -> Option<Range<u64>> {
        let end = self.hva.0.saturating_add(self.pages << PAGE_SHIFT);
        let (from, to) = (range.start.0.max(self.hva.0), range.end.0.min(end));
        let gfn = |hva: u64| self.base + ((hva - self.hva.0) >> PAGE_SHIFT);
        (from < to).then(|| gfn(from)..gfn(to - 1) + 1)
    }

    fn owned_memory(&self) -> OwnedMemory {
        OwnedMemory { gpa: self.base << PAGE_SHIFT, hva: self.hva, bytes: self.pages << PAGE_SHIFT }
    }

    #[inline]
    fn holds(&self, gfn: u64) -> bool {
        gfn.wrapping_sub(self.base) < self.pages
    }

    #[inline]
    fn frame(&self, gfn: u64) -> Frame {
        Frame {
            hva: self.hva.add((gfn - self.base) << PAGE_SHIFT),
            read_only: self.flags & abi::KVM_MEM_READONLY != 0,
            log_dirty: self.dirty.is_some(),
        }
    }
}

/// All slots and aliases of a VM at one moment.
pub struct Snapshot<P> {
    /// Sorted by `base`, without overlap.
    slots: Vec<Slot>,
    aliases: [Alias; NR_ALIASES],
    /// Whether there is any alias. Hardly any VM has one, and every look at a frame asks.
    aliased: bool,
    platform: PhantomData<fn() -> P>,
}

impl<P: Platform> Snapshot<P> {
    fn empty() -> Self {
        Self { slots: Vec::new(), aliases: [Alias::NONE; NR_ALIASES], aliased: false, platform: PhantomData }
    }

    /// A copy with the slot `id` left out and `new` put in its place in the order.
    fn with(&self, id: u32, new: Option<Slot>) -> Result<Self, OutOfMemory> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(self.slots.len() + 1).map_err(|_| OutOfMemory)?;
        let mut new = new;
        for slot in self.slots.iter().filter(|slot| slot.id != id) {
            if let Some(earlier) = new.take_if(|new| new.base < slot.base) {
                try_push(&mut slots, earlier)?;
            }
            try_push(&mut slots, slot.clone())?;
        }
        if let Some(last) = new {
            try_push(&mut slots, last)?;
        }
        Ok(Self { slots, aliases: self.aliases, aliased: self.aliased, platform: PhantomData })
    }

    fn with_alias(&self, index: usize, alias: Alias) -> Result<Self, OutOfMemory> {
        let mut copy = self.with(u32::MAX, None)?;
        if let Some(place) = copy.aliases.get_mut(index) {
            *place = alias;
        }
        copy.aliased = copy.aliases.iter().any(|alias| *alias != Alias::NONE);
        Ok(copy)
    }

    /// Pages of memory that the guest has.
    pub fn pages(&self) -> u64 {
        self.slots.iter().map(|slot| slot.pages).sum()
    }

    /// The slots in the order of their guest-physical addresses.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The memory that the VM owns.
    pub fn owned(&self) -> impl Iterator<Item = OwnedMemory> {
        self.slots.iter().filter(|slot| slot.owned).map(Slot::owned_memory)
    }

    /// The slot with the client's number `id`.
    pub fn slot(&self, id: u32) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.id == id)
    }

    /// The frame that `gfn` stands for: itself, or an alias' target. Aliases hide slots and are not chained.
    #[inline]
    pub fn unalias(&self, gfn: u64) -> u64 {
        if !self.aliased {
            return gfn;
        }
        self.aliases.iter().find_map(|alias| alias.target(gfn)).unwrap_or(gfn)
    }

    /// The index of the slot that holds `gfn` (no alias); `hint` is an index that may be right.
    #[inline]
    fn find(&self, gfn: u64, hint: usize) -> Option<(usize, &Slot)> {
        if let Some(slot) = self.slots.get(hint)
            && slot.holds(gfn)
        {
            return Some((hint, slot));
        }
        let index = self.slots.partition_point(|slot| slot.base <= gfn).checked_sub(1)?;
        let slot = self.slots.get(index)?;
        slot.holds(gfn).then_some((index, slot))
    }

    /// The frame `gfn`; None where there is no memory.
    #[inline]
    pub fn resolve(&self, gfn: u64) -> Option<Frame> {
        let gfn = self.unalias(gfn);
        self.find(gfn, 0).map(|(_, slot)| slot.frame(gfn))
    }

    /// The frame `gfn` that an alias may have led to, and its slot: aliases are not looked at again.
    pub(crate) fn resolve_unaliased(&self, gfn: u64) -> Option<(&Slot, Frame)> {
        self.find(gfn, 0).map(|(_, slot)| (slot, slot.frame(gfn)))
    }

    /// Whether the 2 MiB of guest-physical memory around frame `gfn` are one large page's worth of the client: in one slot, at
    /// a multiple of 2 MiB there too, and no alias among them.
    pub fn is_large(&self, gfn: u64) -> bool {
        let first = gfn & !(LARGE_FRAMES - 1);
        !self.aliases.iter().any(|alias| alias.touches(first, LARGE_FRAMES))
            && self.find(first, 0).is_some_and(|(_, slot)| {
                first + LARGE_FRAMES <= slot.base + slot.pages
                    && slot.frame(first).hva.0.is_multiple_of(LARGE_FRAMES << PAGE_SHIFT)
            })
    }

    /// How many frames of those behind `gfn`, `most` at most, follow it in the client as they do in the guest: in its slot, and no
    /// alias among them.
    pub fn behind(&self, gfn: u64, most: u64) -> u64 {
        if self.aliases.iter().any(|alias| alias.touches(gfn, most + 1)) {
            return 0;
        }
        self.find(gfn, 0).map_or(0, |(_, slot)| most.min(slot.base + slot.pages - gfn - 1))
    }

    /// Marks `gfn` in the dirty log of its slot, if it has one.
    #[inline]
    pub fn mark_dirty(&self, gfn: u64) {
        let gfn = self.unalias(gfn);
        if let Some((_, slot)) = self.find(gfn, 0)
            && let Some(dirty) = &slot.dirty
        {
            dirty.mark(gfn - slot.base);
        }
    }

    /// Whether `gfn` is marked in the dirty log of its slot.
    pub fn is_dirty(&self, gfn: u64) -> bool {
        let gfn = self.unalias(gfn);
        self.find(gfn, 0).is_some_and(|(_, slot)| slot.dirty.as_ref().is_some_and(|log| log.is_marked(gfn - slot.base)))
    }
}
