//! All shadow tables of a VM, as whoever holds the MMU lock sees them, and the elementary changes: an entry is made, an
//! entry goes. Everything else is built of these two, so that an entry, its element in a list and the counts agree always.
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;

use platform::{OutOfMemory, Platform, Shared, TablePage, fallible::try_vec};
use x86::paging::W;

use super::{
    arena::{Arena, Corrupt},
    life::{FlushDue, UnlinkedPages},
    open::{BUCKETS, Open, hash},
    page::{Link, NO_SLOT, Node, PageId},
    role::Role,
    roots::VcpuRoot,
    spte::{self, LARGE_LEVEL, Leaf, is_leaf},
    stats::Counter,
    unsync,
};

/// Result of what can only fail if the tables are in disorder.
pub(super) type Res<T = ()> = Result<T, Corrupt>;

/// Buckets of the reverse map before the first slot is there.
const FIRST_RMAP: usize = 1024;

/// The shadow tables of a VM.
pub(super) struct Tables<P: Platform> {
    pub(super) arena: Arena<P>,
    pub(super) open: Shared<Open>,
    /// First element of each bucket of the reverse map: leaves by frame. A power of two of them.
    pub(super) rmap: Vec<Node>,
    /// First page of each bucket of the hash of direct pages.
    pub(super) direct_heads: Vec<u32>,
    pub(super) youngest: u32,
    pub(super) oldest: u32,
    /// By vCPU.
    pub(super) roots: Vec<VcpuRoot>,
    /// Pages that are not in step with the guest's tables; there is room for [`unsync::MOST`].
    pub(super) unsync: Vec<PageId>,
    /// Pages that are found by (gfn, role).
    pub(super) pages: usize,
    pub(super) limit: usize,
    /// The bound follows the guest's memory.
    pub(super) limit_is_default: bool,
    /// Pages that were ever made.
    pub(super) births: u64,
    /// Leaves that are present.
    pub(super) leaves: usize,
    /// Large ones among them.
    pub(super) large: usize,
    /// Slot changes that have begun and not ended: the published slots do not tell all that is mapped.
    pub(super) changing: u32,
    pub(super) unlinked: UnlinkedPages<P>,
    /// Something that a processor may remember was taken away since the lock was taken.
    pub(super) must_flush: bool,
}

impl<P: Platform> Tables<P> {
    pub(super) fn new(open: Shared<Open>, vcpus: usize, limit: usize) -> Result<Self, OutOfMemory> {
        let mut roots = Vec::new();
        roots.try_reserve_exact(vcpus).map_err(|_| OutOfMemory)?;
        roots.extend((0..vcpus).map(|_| VcpuRoot::default()));
        let mut unsync = Vec::new();
        unsync.try_reserve_exact(unsync::MOST).map_err(|_| OutOfMemory)?;
        Ok(Self {
            arena: Arena::new(),
            open,
            rmap: try_vec(Node::NONE, FIRST_RMAP)?,
            direct_heads: try_vec(NO_SLOT, BUCKETS)?,
            youngest: NO_SLOT,
            oldest: NO_SLOT,
            roots,
            unsync,
            pages: 0,
            limit,
            limit_is_default: true,
            births: 0,
            leaves: 0,
            large: 0,
            changing: 0,
            unlinked: UnlinkedPages::new(),
            must_flush: false,
        })
    }

    /// What has to be done for the changes since the last call, once the lock is given back.
    pub(super) fn take_due(&mut self) -> FlushDue<P> {
        let flushes = &self.open.flushes;
        let number = if core::mem::take(&mut self.must_flush) { flushes.need() } else { flushes.needed() };
        FlushDue::new(number, core::mem::replace(&mut self.unlinked, UnlinkedPages::new()))
    }

    /// The entry `index` of a page, as it is in memory.
    pub(super) fn spte(&self, id: PageId, index: usize) -> Res<u64> {
        Ok(self.arena.get(id)?.table.entry(index).load(SeqCst))
    }

    /// What belongs to an entry that is present.
    pub(super) fn link(&self, id: PageId, index: usize) -> Res<Link> {
        self.arena.get(id)?.links.get(index).copied().ok_or(Corrupt)
    }

    pub(super) fn link_at(&mut self, node: Node) -> Res<&mut Link> {
        let (slot, index) = node.get().ok_or(Corrupt)?;
        self.arena.at_mut(slot)?.links.get_mut(index).ok_or(Corrupt)
    }

    /// Makes a leaf where no entry is.
    pub(super) fn add_leaf(&mut self, id: PageId, index: usize, gfn: u64, leaf: Leaf) -> Res {
        let (nested, format) = (self.open.nested, self.open.format);
        let page = self.arena.get_mut(id)?;
        let right = if leaf.large { nested && page.role.level == LARGE_LEVEL } else { page.role.level == 1 };
        if !right || page.table.entry(index).load(SeqCst) != 0 {
            return Err(Corrupt);
        }
        *page.links.get_mut(index).ok_or(Corrupt)? = Link::to_frame(gfn);
        page.present.put(index, true);
        let bucket = hash(gfn, self.rmap.len());
        let head = *self.rmap.get(bucket).ok_or(Corrupt)?;
        let head = self.push(Node::new(id.slot, index), head)?;
        *self.rmap.get_mut(bucket).ok_or(Corrupt)? = head;
        self.leaves += 1;
        self.large += usize::from(leaf.large);
        // Last: from here on processors use it.
        self.arena.get(id)?.table.entry(index).store(leaf.encode(format), SeqCst);
        Ok(())
    }

    /// Makes an entry that leads to another page, where no entry is.
    pub(super) fn add_child(&mut self, id: PageId, index: usize, child: PageId) -> Res {
        let target = self.arena.get(child)?;
        let (hpa, level, parents) = (target.table.hpa(), target.role.level, target.parents);
        let page = self.arena.get_mut(id)?;
        if page.role.level != level + 1 || page.table.entry(index).load(SeqCst) != 0 {
            return Err(Corrupt);
        }
        *page.links.get_mut(index).ok_or(Corrupt)? = Link::to_page(child);
        page.present.put(index, true);
        let value = if page.own_root { spte::pdpte(hpa) } else { spte::table(hpa) };
        let parents = self.push(Node::new(id.slot, index), parents)?;
        self.arena.get_mut(child)?.parents = parents;
        self.arena.get(id)?.table.entry(index).store(value, SeqCst);
        Ok(())
    }

    /// Takes away entry `index` of a page, if it is there. True if it was.
    pub(super) fn remove_entry(&mut self, id: PageId, index: usize) -> Res<bool> {
        let page = self.arena.get_mut(id)?;
        let old = page.table.entry(index).swap(0, SeqCst);
        if old == 0 {
            return Ok(false);
        }
        self.must_flush = true;
        if !page.present.put(index, false) {
            return Err(Corrupt);
        }
        let (leaf, node) = (is_leaf(page.role.level, old), Node::new(id.slot, index));
        let link = *page.links.get(index).ok_or(Corrupt)?;
        if leaf {
            // By the frame that was stored, whatever the guest's tables say by now.
            let bucket = hash(link.gfn(), self.rmap.len());
            let head = *self.rmap.get(bucket).ok_or(Corrupt)?;
            let head = self.unlink(node, head)?;
            *self.rmap.get_mut(bucket).ok_or(Corrupt)? = head;
            self.leaves = self.leaves.checked_sub(1).ok_or(Corrupt)?;
            self.large = self.large.checked_sub(Leaf::decode(old).large.into()).ok_or(Corrupt)?;
        } else {
            let head = self.arena.get(link.page())?.parents;
            let head = self.unlink(node, head)?;
            self.arena.get_mut(link.page())?.parents = head;
        }
        Ok(true)
    }

    /// Changes the rights of a leaf that stays where it is.
    pub(super) fn change_leaf(&mut self, id: PageId, index: usize, leaf: Leaf) -> Res {
        let new = leaf.encode(self.open.format);
        let old = self.arena.get(id)?.table.entry(index).swap(new, SeqCst);
        let before = Leaf::decode(old);
        if old == 0 || (before.hpa, before.large) != (leaf.hpa, leaf.large) {
            return Err(Corrupt);
        }
        self.must_flush |= !leaf.covers(before);
        Ok(())
    }

    /// Takes write access from the leaf at `node`. True if it had it.
    pub(super) fn protect_leaf(&mut self, node: Node) -> Res<bool> {
        let (slot, index) = node.get().ok_or(Corrupt)?;
        let had = self.arena.at(slot)?.table.entry(index).fetch_and(!W, SeqCst) & W != 0;
        self.must_flush |= had;
        Ok(had)
    }

    /// Puts `node` in front of the list that begins with `head`; returns the new head.
    fn push(&mut self, node: Node, head: Node) -> Res<Node> {
        if head != Node::NONE {
            self.link_at(head)?.previous = node;
        }
        let link = self.link_at(node)?;
        (link.next, link.previous) = (head, Node::NONE);
        Ok(node)
    }

    /// Takes `node` out of the list that begins with `head`; returns the new head.
    fn unlink(&mut self, node: Node, head: Node) -> Res<Node> {
        let link = *self.link_at(node)?;
        if link.next != Node::NONE {
            self.link_at(link.next)?.previous = link.previous;
        }
        if link.previous == Node::NONE {
            return if head == node { Ok(link.next) } else { Err(Corrupt) };
        }
        self.link_at(link.previous)?.next = link.next;
        Ok(head)
    }

    /// The page for `gfn` in this role.
    pub(super) fn find(&self, gfn: u64, role: &Role) -> Res<Option<PageId>> {
        let mut slot = self.bucket(gfn, role.direct());
        while slot != NO_SLOT {
            let page = self.arena.at(slot)?;
            if page.gfn == gfn && page.role == *role {
                return Ok(Some(self.arena.id(slot)?));
            }
            slot = page.hash_next;
        }
        Ok(None)
    }

    /// The first page in the bucket of `gfn`.
    pub(super) fn bucket(&self, gfn: u64, direct: bool) -> u32 {
        if direct {
            self.direct_heads.get(hash(gfn, BUCKETS)).copied().unwrap_or(NO_SLOT)
        } else {
            self.open.head(gfn).load(SeqCst)
        }
    }

    fn set_bucket(&mut self, gfn: u64, direct: bool, slot: u32) {
        if !direct {
            self.open.head(gfn).store(slot, SeqCst);
        } else if let Some(head) = self.direct_heads.get_mut(hash(gfn, BUCKETS)) {
            *head = slot;
        }
    }

    /// Makes a page that is in place be found by its frame and role, as the youngest of all.
    pub(super) fn enter_hash(&mut self, id: PageId) -> Res {
        let page = self.arena.get(id)?;
        let (gfn, direct) = (page.gfn, page.role.direct());
        let (next, older) = (self.bucket(gfn, direct), self.youngest);
        if next != NO_SLOT {
            self.arena.at_mut(next)?.hash_previous = id.slot;
        }
        self.births += 1;
        let page = self.arena.get_mut(id)?;
        page.born = self.births;
        (page.hashed, page.hash_next, page.hash_previous) = (true, next, NO_SLOT);
        self.set_bucket(gfn, direct, id.slot);
        self.enter_ages(id, older)?;
        self.pages += 1;
        Ok(())
    }

    fn enter_ages(&mut self, id: PageId, older: u32) -> Res {
        let page = self.arena.get_mut(id)?;
        (page.older, page.younger) = (older, NO_SLOT);
        if older == NO_SLOT {
            self.oldest = id.slot;
        } else {
            self.arena.at_mut(older)?.younger = id.slot;
        }
        self.youngest = id.slot;
        Ok(())
    }

    fn leave_ages(&mut self, id: PageId) -> Res {
        let page = self.arena.get(id)?;
        let (younger, older) = (page.younger, page.older);
        if younger == NO_SLOT {
            self.youngest = older;
        } else {
            self.arena.at_mut(younger)?.older = older;
        }
        if older == NO_SLOT {
            self.oldest = younger;
        } else {
            self.arena.at_mut(older)?.younger = younger;
        }
        Ok(())
    }

    /// Makes a page the youngest.
    pub(super) fn rejuvenate(&mut self, id: PageId) -> Res {
        self.leave_ages(id)?;
        let older = self.youngest;
        self.enter_ages(id, older)
    }

    /// From now on the page is not found by its frame any more.
    pub(super) fn leave_hash(&mut self, id: PageId) -> Res {
        let page = self.arena.get_mut(id)?;
        if !core::mem::take(&mut page.hashed) {
            return Ok(());
        }
        let (gfn, direct, next, previous) = (page.gfn, page.role.direct(), page.hash_next, page.hash_previous);
        if next != NO_SLOT {
            self.arena.at_mut(next)?.hash_previous = previous;
        }
        if previous != NO_SLOT {
            self.arena.at_mut(previous)?.hash_next = next;
        } else {
            self.set_bucket(gfn, direct, next);
        }
        self.leave_ages(id)?;
        self.pages = self.pages.checked_sub(1).ok_or(Corrupt)?;
        Ok(())
    }

    /// Takes a page out of use: everything that leads to it, everything that it leads to. It is freed when what comes out
    /// of [`Self::take_due`] is fulfilled; if it is a vCPU's root, when that vCPU has another one.
    pub(super) fn zap(&mut self, id: PageId) -> Res {
        self.open.counters.count(Counter::Zapped);
        // Also if nothing leads here and from here any more: a processor may remember what did.
        self.must_flush = true;
        self.delist(id)?;
        self.leave_hash(id)?;
        self.clear(id)?;
        while let Some((slot, index)) = self.arena.get(id)?.parents.get() {
            let parent = self.arena.id(slot)?;
            if !self.remove_entry(parent, index)? {
                return Err(Corrupt);
            }
        }
        if self.arena.get(id)?.roots != 0 {
            return self.forget_root(id);
        }
        let page = self.arena.remove(id)?;
        self.unlinked.push(page);
        Ok(())
    }

    /// Takes away all entries of a page.
    pub(super) fn clear(&mut self, id: PageId) -> Res {
        let mut from = 0;
        while let Some(index) = self.arena.get(id)?.present.next(from) {
            self.remove_entry(id, index)?;
            from = index + 1;
        }
        Ok(())
    }

    /// The pages that shadow the guest table in frame `gfn`, one after the other: `after` is the last one that was
    /// returned, as its place.
    pub(super) fn next_table(&self, gfn: u64, after: Option<u32>) -> Res<Option<PageId>> {
        let mut slot = match after {
            Some(slot) => self.arena.at(slot)?.hash_next,
            None => self.open.head(gfn).load(SeqCst),
        };
        while slot != NO_SLOT {
            let page = self.arena.at(slot)?;
            if page.shadows(gfn) {
                return Ok(Some(self.arena.id(slot)?));
            }
            slot = page.hash_next;
        }
        Ok(None)
    }

    /// Zaps every page that shadows the guest table in frame `gfn` (no alias). True if there was one.
    pub(super) fn zap_tables(&mut self, gfn: u64) -> Res<bool> {
        let mut any = false;
        while let Some(id) = self.next_table(gfn, None)? {
            self.zap(id)?;
            any = true;
        }
        Ok(any)
    }
}
