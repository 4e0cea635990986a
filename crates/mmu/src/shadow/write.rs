//! Writes to guest tables, and frames that stop being tables (rows B02, B04).
//!
//! A frame with shadowed tables cannot be written by a processor: the write faults and is emulated. Whoever writes guest
//! memory in the hypervisor, for whatever reason, tells the shadow afterwards what was written, with the old and new bytes, in
//! one call. The entries made of those bytes are then held against what the guest's table says *now*, under the lock,
//! and go if they do not agree: so the order in which two writers get here does not matter, and a write that changes nothing
//! takes nothing away. (The old bytes alone would not do: a frame that is no table for a while may be written by the
//! client's devices, which nobody sees, and cleared afterwards by a guest that finds zeros there already.)
use core::sync::atomic::Ordering::SeqCst;

use platform::{Hva, Memory, Platform};
use x86::paging::{PAGE_SHIFT, PAGE_SIZE};

use super::{
    Shadow, ShadowError,
    arena::Corrupt,
    expect::{Expected, Kind, expected, leaf, leaf_holds},
    life::FlushDue,
    page::PageId,
    role::Role,
    spte::Leaf,
    stats::Counter,
    tables::{Res, Tables},
    unsync::Sync,
};
use crate::Snapshot;

/// Writes to a table without a fault through it in between after which it is no longer taken for one.
const FLOOD: u32 = 3;

/// Bytes of guest memory that were written, all in one page.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Guest-physical address of the first.
    pub gpa: u64,
    /// What was there before; empty if the writer does not know.
    pub old: &'a [u8],
    /// What was written.
    pub new: &'a [u8],
}

impl<P: Platform> Shadow<P> {
    /// Whether [`Shadow::written`] need not be called for a write that has just been made to frame `gfn` (no alias),
    /// because it holds no shadowed table. Without a lock.
    pub fn is_plain(&self, gfn: u64) -> bool {
        !self.open.may_be_table(gfn)
    }

    /// Guest memory was written. `slots` are as they were for the write, or newer. Before the writer relies on the
    /// change (the instruction ends), what comes back is fulfilled.
    pub fn written(&self, slots: &Snapshot<P>, write: &Written<'_>) -> (Result<(), ShadowError>, FlushDue<P>) {
        let gfn = slots.unalias(write.gpa >> PAGE_SHIFT);
        let (result, due) = self.locked(|tables| {
            let mut after = None;
            let mut any = false;
            while let Some(id) = tables.next_table(gfn, after)? {
                any = true;
                after = Some(id.slot);
                tables.update(id, slots, write)?;
            }
            if any {
                tables.open.counters.count(Counter::Written);
                tables.count_writes(gfn, write)?;
            }
            Ok(())
        });
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }

    /// The instruction that writes frame `gpa` cannot be emulated: nothing of the frame is shadowed any more, so that the
    /// guest can execute it by itself. True if something was.
    pub fn unprotect(&self, slots: &Snapshot<P>, gpa: u64) -> (Result<bool, ShadowError>, FlushDue<P>) {
        let gfn = slots.unalias(gpa >> PAGE_SHIFT);
        let (result, due) = self.locked(|tables| {
            let any = tables.zap_tables(gfn)?;
            if any {
                tables.open.counters.count(Counter::Unprotected);
            }
            Ok(any)
        });
        (result.map_err(|_: Corrupt| ShadowError::Dead), due)
    }
}

impl<P: Platform> Tables<P> {
    /// Brings the entries of a page that are made of the written bytes in step.
    fn update(&mut self, id: PageId, slots: &Snapshot<P>, write: &Written<'_>) -> Res {
        let role = self.arena.get(id)?.role;
        let place = self.place(id, slots)?;
        let bytes = role.entry_bytes();
        let first = write.gpa % PAGE_SIZE;
        let end = (first + write.new.len().max(1) as u64).min(PAGE_SIZE);
        let mut offset = first - first % bytes;
        while offset < end {
            for index in role.entries_at(offset) {
                if self.spte(id, index)? != 0 {
                    self.settle(id, index, place, slots)?;
                }
            }
            offset += bytes;
        }
        Ok(())
    }

    /// Where the guest's table of a page is in the client, and whether it is read-only there.
    pub(super) fn place(&self, id: PageId, slots: &Snapshot<P>) -> Res<Option<(Hva, bool)>> {
        let gfn = self.arena.get(id)?.gfn;
        Ok(slots.resolve_unaliased(gfn).map(|(_, frame)| (frame.hva, frame.read_only)))
    }

    /// What an entry of a page that shadows a guest table has to be, by the table as it is now.
    fn expected_now(&self, id: PageId, index: usize, place: Option<(Hva, bool)>) -> Res<Expected> {
        let Some((table, read_only)) = place else { return Ok(Expected::Nothing) };
        let role = &self.arena.get(id)?.role;
        let at = table.add(role.guest_offset(index));
        let entry = if role.entry_bytes() == 4 {
            P::Memory::load_atomic::<u32>(at).map(u64::from)
        } else {
            P::Memory::load_atomic::<u64>(at)
        };
        let Ok(mut entry) = entry else { return Ok(Expected::Nothing) };
        if read_only {
            // A processor's accessed and dirty bits go nowhere there.
            entry |= x86::paging::A | x86::paging::D;
        }
        Ok(expected(role, index, entry))
    }

    /// Brings an entry that is present in step with the guest's table at `place`: it stays, loses rights, or goes.
    pub(super) fn settle(&mut self, id: PageId, index: usize, place: Option<(Hva, bool)>, slots: &Snapshot<P>) -> Res {
        let expected = self.expected_now(id, index, place)?;
        if self.is_as(id, index, expected, |gfn| slots.unalias(gfn))? {
            return Ok(());
        }
        self.open.counters.count(Counter::Updated);
        match expected {
            Expected::Page { gfn, access } if self.link(id, index)?.gfn() == slots.unalias(gfn) => {
                let role = self.arena.get(id)?.role;
                let old = Leaf::decode(self.spte(id, index)?);
                self.change_leaf(id, index, leaf(&role, access, Kind::Plain, old.hpa, old.write))
            }
            _ => self.remove_entry(id, index).map(|_| ()),
        }
    }

    /// Whether an entry that is present in a page that shadows a guest table is one that could be made of the table as it
    /// is now.
    pub(super) fn agrees(&self, id: PageId, index: usize, slots: &Snapshot<P>) -> Res<bool> {
        let expected = self.expected_now(id, index, self.place(id, slots)?)?;
        self.is_as(id, index, expected, |gfn| slots.unalias(gfn))
    }

    /// Whether an entry that is present is what is expected.
    pub(super) fn is_as(
        &self,
        id: PageId,
        index: usize,
        expected: Expected,
        unalias: impl Fn(u64) -> u64,
    ) -> Res<bool> {
        let link = self.link(id, index)?;
        Ok(match expected {
            Expected::Nothing => false,
            Expected::Child { gfn, role } => {
                let child = self.arena.get(link.page())?;
                // Rights that the guest has added meanwhile (or the processor: the dirty bit of a large page) come with
                // the next fault.
                let same = Role { access: child.role.access, ..role } == child.role;
                same && role.access.has(child.role.access)
                    && child.gfn == if role.direct() { gfn } else { unalias(gfn) }
            }
            Expected::Page { gfn, access } => {
                let role = self.arena.get(id)?.role;
                let leaf = Leaf { large: false, ..Leaf::decode(self.spte(id, index)?) };
                link.gfn() == unalias(gfn) && leaf_holds(&role, access, leaf)
            }
        })
    }

    /// Notes a write to the tables in frame `gfn`, and gives up those that are no tables any more.
    fn count_writes(&mut self, gfn: u64, write: &Written<'_>) -> Res {
        if write.old == write.new {
            return Ok(());
        }
        let mut next = self.next_table(gfn, None)?;
        while let Some(id) = next {
            next = self.next_table(gfn, Some(id.slot))?;
            let page = self.arena.get_mut(id)?;
            if page.sync != Sync::InStep {
                // The guest may write there as often as it likes.
                continue;
            }
            page.writes += 1;
            if page.writes >= FLOOD || !looks_like_entry(&page.role, write) {
                self.open.counters.count(Counter::Flooded);
                self.zap(id)?;
            }
        }
        Ok(())
    }

    /// The accessed bits of the entries that lead to a page: whether any was set; they are cleared.
    pub(super) fn take_accessed(&mut self, id: PageId) -> Res<bool> {
        let (mut any, accessed) = (false, self.open.format.accessed());
        let mut node = self.arena.get(id)?.parents;
        while let Some((slot, index)) = node.get() {
            let entry = platform::TablePage::entry(&self.arena.at(slot)?.table, index);
            any |= entry.fetch_and(!accessed, SeqCst) & accessed != 0;
            node = self.link_at(node)?.next;
        }
        Ok(any)
    }
}

/// Whether a write is one that software makes to an entry of a table: whole entries, or one byte at the beginning of one
/// (flags set by a byte operation).
fn looks_like_entry(role: &Role, write: &Written<'_>) -> bool {
    let (offset, len, bytes) = (write.gpa % PAGE_SIZE, write.new.len() as u64, role.entry_bytes());
    let aligned = offset.is_multiple_of(4) && len.is_multiple_of(4);
    aligned || offset.is_multiple_of(bytes) && len == 1
}
