//! One shadow page, and the names by which pages and their entries are called.
use alloc::{boxed::Box, vec::Vec};

use platform::{
    MaySleep, OutOfMemory, Platform, TablePage,
    fallible::{try_box, try_vec},
    table::TABLE_ENTRIES,
};

use super::{life::Unlinked, present::Present, role::Role, unsync::Sync};

/// The place of a page, and which of the pages that were there. A handle of a page that is gone finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl PageId {
    const fn packed(self) -> u64 {
        (self.slot as u64) << 32 | self.generation as u64
    }

    const fn unpacked(packed: u64) -> Self {
        Self { slot: (packed >> 32) as u32, generation: packed as u32 }
    }
}

/// Places for pages: a place and an index in the page fit in 32 bits, and one value is left to say "none".
pub(super) const MAX_SLOTS: u32 = (1 << 23) - 1;

/// An entry of some page: an element of the lists of entries that lead to one frame or one page. May be "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(u32);

impl Node {
    pub(super) const NONE: Self = Self(u32::MAX);

    pub(super) const fn new(slot: u32, index: usize) -> Self {
        Self(slot << 9 | index as u32 & 511)
    }

    /// Place and index, unless it is none.
    pub(super) fn get(self) -> Option<(u32, usize)> {
        (self != Self::NONE).then_some((self.0 >> 9, (self.0 & 511) as usize))
    }
}

/// What belongs to an entry that is present: where it leads, and its neighbours in the list of the entries that lead
/// to the same frame (by the bucket of the frame), or to the same page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// A leaf: the frame as it was when the entry was made. Else the page.
    target: u64,
    pub(super) next: Node,
    pub(super) previous: Node,
}

impl Link {
    const NONE: Self = Self { target: 0, next: Node::NONE, previous: Node::NONE };

    pub(super) const fn to_frame(gfn: u64) -> Self {
        Self { target: gfn, ..Self::NONE }
    }

    pub(super) const fn to_page(id: PageId) -> Self {
        Self { target: id.packed(), ..Self::NONE }
    }

    pub(super) const fn gfn(&self) -> u64 {
        self.target
    }

    pub(super) const fn page(&self) -> PageId {
        PageId::unpacked(self.target)
    }
}

/// No page: the end of the lists of pages, which are linked by places.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// A shadow page.
pub(super) struct ShadowPage<P: Platform> {
    pub(super) table: P::TablePage,
    /// One for each entry.
    pub(super) links: Vec<Link>,
    /// The frame of the guest table that is shadowed (no alias); of a direct page, the first frame that it maps.
    pub(super) gfn: u64,
    pub(super) role: Role,
    /// Entries that lead here.
    pub(super) parents: Node,
    /// vCPUs whose root this is.
    pub(super) roots: u32,
    /// Entries that are present.
    pub(super) present: Present,
    /// Counts the pages that were made before.
    pub(super) born: u64,
    /// Writes by the guest to its table since a fault last came through this page.
    pub(super) writes: u32,
    /// Once all flushes up to this one are done, no processor can write the guest's table unseen any more. A page that is in step
    /// is not used before.
    pub(super) readable_after: u64,
    /// Whether the guest may write its table.
    pub(super) sync: Sync,
    /// A vCPU's own root page, whose four entries are PDPTEs.
    pub(super) own_root: bool,
    /// Found by (gfn, role). Not so: a vCPU's own root page, and a page that is kept only because it is some vCPU's root.
    pub(super) hashed: bool,
    pub(super) hash_next: u32,
    pub(super) hash_previous: u32,
    /// Pages by age; the next one is younger.
    pub(super) younger: u32,
    pub(super) older: u32,
    /// The next page in a list of unlinked ones.
    pub(super) unlinked: Option<Unlinked<P>>,
}

impl<P: Platform> ShadowPage<P> {
    /// A page that is not for anything yet; `nested`: in nested tables.
    pub(super) fn new(nested: bool, cx: &MaySleep) -> Result<Box<Self>, OutOfMemory> {
        // Below 4 GiB, because any page may become a PAE root; but nested tables have none.
        let table = P::TablePage::new(!nested, cx)?;
        let links = try_vec(Link::NONE, TABLE_ENTRIES)?;
        try_box(Self {
            table,
            links,
            gfn: 0,
            role: Role::NONE,
            parents: Node::NONE,
            roots: 0,
            present: Present::NONE,
            born: 0,
            writes: 0,
            readable_after: 0,
            sync: Sync::InStep,
            own_root: false,
            hashed: false,
            hash_next: NO_SLOT,
            hash_previous: NO_SLOT,
            younger: NO_SLOT,
            older: NO_SLOT,
            unlinked: None,
        })
    }

    /// Makes a page that has ended one that is not for anything yet. Nothing leads to it or from it any more, so that its table is
    /// empty and it is in no list; what is left of it is what it was for.
    pub(super) fn renew(&mut self) {
        (self.gfn, self.role) = (0, Role::NONE);
        (self.born, self.writes, self.readable_after) = (0, 0, 0);
        (self.own_root, self.hash_next, self.hash_previous) = (false, NO_SLOT, NO_SLOT);
        (self.younger, self.older) = (NO_SLOT, NO_SLOT);
    }

    /// The frame that entry `index` of a direct page maps, or begins to map; as the guest has it, aliases included.
    pub(super) fn direct_gfn(&self, index: usize) -> u64 {
        self.gfn + ((index as u64) << (9 * (self.role.level.max(1) - 1)))
    }

    /// Whether it shadows the table of the guest in this frame.
    pub(super) fn shadows(&self, gfn: u64) -> bool {
        self.hashed && self.gfn == gfn && !self.role.direct()
    }
}
