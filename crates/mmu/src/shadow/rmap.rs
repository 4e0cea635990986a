//! The reverse map: from a frame to every leaf that maps it (row B03). Leaves are in lists by bucket; the frame stands in
//! each leaf's link. A large leaf is found by its first frame.
use alloc::vec::Vec;
use core::{ops::Range, sync::atomic::Ordering::SeqCst};

use platform::{OutOfMemory, Platform, TablePage, fallible::try_vec};

use super::{
    arena::Corrupt,
    open::hash,
    page::Node,
    spte::{LARGE_LEVEL, is_leaf},
    stats::Counter,
    tables::{Res, Tables},
};
use crate::slots::LARGE_FRAMES;

/// Whether two ranges of frames have one in common.
pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Most buckets.
const MAX_BUCKETS: usize = 1 << 22;

impl<P: Platform> Tables<P> {
    /// The leaf of this level that maps pages from `gfn` on and follows `after` in its list, or the first.
    fn next_leaf(&mut self, gfn: u64, level: u8, after: Option<Node>) -> Res<Option<Node>> {
        let mut node = match after {
            Some(node) => self.link_at(node)?.next,
            None => *self.rmap.get(hash(gfn, self.rmap.len())).ok_or(Corrupt)?,
        };
        while let Some((slot, index)) = node.get() {
            let page = self.arena.at(slot)?;
            let link = page.links.get(index).ok_or(Corrupt)?;
            if link.gfn() == gfn && page.role.level == level {
                return Ok(Some(node));
            }
            node = link.next;
        }
        Ok(None)
    }

    /// Calls `each` with every leaf whose frames `wanted` is true of, which may take it away. Looks at all leaves.
    pub(super) fn for_leaves_where(
        &mut self,
        wanted: impl Fn(&Range<u64>) -> bool,
        mut each: impl FnMut(&mut Self, Node) -> Res,
    ) -> Res {
        for slot in self.arena.slots() {
            let mut from = 0;
            while let Ok(page) = self.arena.at(slot)
                && page.role.level <= LARGE_LEVEL
                && let Some(index) = page.present.next(from)
            {
                from = index + 1;
                let level = page.role.level;
                if !is_leaf(level, page.table.entry(index).load(SeqCst)) {
                    continue;
                }
                let gfn = page.links.get(index).ok_or(Corrupt)?.gfn();
                let frames = if level == LARGE_LEVEL { LARGE_FRAMES } else { 1 };
                if wanted(&(gfn..gfn + frames)) {
                    each(self, Node::new(slot, index))?;
                }
            }
        }
        Ok(())
    }

    /// Calls `each` with every leaf of the frames `gfns`, which may take it away. Of a large leaf a part may be outside.
    pub(super) fn for_leaves(&mut self, gfns: Range<u64>, mut each: impl FnMut(&mut Self, Node) -> Res) -> Res {
        let count = gfns.end.saturating_sub(gfns.start);
        if count > self.leaves as u64 {
            // More frames than leaves.
            return self.for_leaves_where(|leaf| overlap(leaf, &gfns), each);
        }
        if self.large != 0 {
            let first = gfns.start & !(LARGE_FRAMES - 1);
            for gfn in (first..gfns.end).step_by(LARGE_FRAMES as usize) {
                self.for_leaves_at(gfn, LARGE_LEVEL, &mut each)?;
            }
        }
        for gfn in gfns {
            self.for_leaves_at(gfn, 1, &mut each)?;
        }
        Ok(())
    }

    fn for_leaves_at(&mut self, gfn: u64, level: u8, each: &mut impl FnMut(&mut Self, Node) -> Res) -> Res {
        let mut node = self.next_leaf(gfn, level, None)?;
        while let Some(at) = node {
            node = self.next_leaf(gfn, level, Some(at))?;
            each(self, at)?;
        }
        Ok(())
    }

    /// Takes away the leaf at `node`.
    pub(super) fn drop_leaf(&mut self, node: Node) -> Res {
        let (slot, index) = node.get().ok_or(Corrupt)?;
        let id = self.arena.id(slot)?;
        if self.remove_entry(id, index)? { Ok(()) } else { Err(Corrupt) }
    }

    /// Takes write access from every leaf of the frames `gfns`. True if any had it.
    pub(super) fn protect(&mut self, gfns: Range<u64>) -> Res<bool> {
        let mut any = false;
        self.for_leaves(gfns, |tables, node| {
            any |= tables.protect_leaf(node)?;
            Ok(())
        })?;
        if any {
            self.open.counters.count(Counter::Protected);
        }
        Ok(any)
    }

    /// Whether the leaf at `node` was used since its accessed bit was last taken; takes it if `take` is set.
    /// Processors may go on using what they remember without setting it again: an estimate, as on every host.
    pub(super) fn young_leaf(&self, node: Node, take: bool) -> Res<bool> {
        let accessed = self.open.format.accessed();
        let (slot, index) = node.get().ok_or(Corrupt)?;
        let entry = self.arena.at(slot)?.table.entry(index);
        let old = if take { entry.fetch_and(!accessed, SeqCst) } else { entry.load(SeqCst) };
        Ok(old & accessed != 0)
    }

    /// Moves the reverse map to other buckets, a power of two of them; returns the old ones, to be dropped outside of
    /// the lock.
    pub(super) fn rehash(&mut self, heads: Vec<Node>) -> Res<Vec<Node>> {
        if heads.len() <= self.rmap.len() {
            return Ok(heads);
        }
        let old = core::mem::replace(&mut self.rmap, heads);
        for first in &old {
            let mut node = *first;
            while node != Node::NONE {
                let link = *self.link_at(node)?;
                let bucket = hash(link.gfn(), self.rmap.len());
                let head = *self.rmap.get(bucket).ok_or(Corrupt)?;
                if head != Node::NONE {
                    self.link_at(head)?.previous = node;
                }
                let here = self.link_at(node)?;
                (here.next, here.previous) = (head, Node::NONE);
                *self.rmap.get_mut(bucket).ok_or(Corrupt)? = node;
                node = link.next;
            }
        }
        Ok(old)
    }
}

/// Buckets for a guest of `pages` pages.
pub(super) fn buckets(pages: u64) -> Result<Vec<Node>, OutOfMemory> {
    let wanted = usize::try_from(pages / 4).unwrap_or(MAX_BUCKETS).clamp(1, MAX_BUCKETS);
    try_vec(Node::NONE, wanted.next_power_of_two())
}
