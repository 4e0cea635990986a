//! The auditor: looks whether every invariant of the shadow tables holds, for tests after each step and on a live VM.
//!
//! A live VM's vCPUs may be between a write to a guest table and telling the shadow about it. What disagrees with the guest's
//! memory for that reason only is right a moment later: see [`Finding::is_of_guest_memory`].
use alloc::vec::Vec;
use core::{fmt, sync::atomic::Ordering::SeqCst};

use platform::{Hva, OutOfMemory, Platform, TablePage, fallible::try_push, fallible::try_vec, table::TABLE_ENTRIES};

use super::{
    Shadow, ShadowError,
    arena::Corrupt,
    open::{BUCKETS, hash},
    page::{NO_SLOT, Node, PageId, ShadowPage},
    present::Present,
    role::Access,
    roots::expected_pdpte,
    spte::{self, FRAME, LARGE_LEVEL, Leaf},
    tables::{Res, Tables},
    unsync::{self, Sync},
};
use crate::{AddressSpace, Snapshot, slots::LARGE_FRAMES};
use x86::paging::PAGE_SHIFT;

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// References lead to pages that exist, and lists end.
    Structure,
    /// Each leaf is in the reverse map exactly once, under the frame that it maps, and nothing else is.
    ReverseMap,
    /// Each entry that leads to a page is among that page's parents exactly once, and leads to its table.
    Parents,
    /// Each page that is not a root only is found by its frame and role, once; it is in the order of ages once.
    Hash,
    /// The numbers of entries, leaves and pages are right.
    Counts,
    /// Roots are counted, and every vCPU's root is there.
    Roots,
    /// An entry has only bits that it may have.
    Encoding,
    /// No frame that holds a shadowed table is writable.
    WriteProtection,
    /// Every leaf maps a frame of a slot, and the host's page behind it.
    Slots,
    /// What is writable in a slot with a dirty log is marked there.
    DirtyLog,
    /// Every entry is what the guest's tables say, or may have said if they are not in step.
    InSync,
    /// Pages that are not in step are of the last level and in their list, once; the guest may write all tables of a frame or none.
    Unsync,
    /// A page is not walked before the flush that its guest table waits for.
    Flushes,
}

/// One violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What does not hold.
    pub rule: Rule,
    /// The frame that the page shadows, or maps from on.
    pub gfn: u64,
    /// Level of the page.
    pub level: u8,
    /// The entry, if it is about one.
    pub index: Option<usize>,
    /// The entry's value.
    pub spte: u64,
}

impl Finding {
    /// A vCPU may have written its table and be about to tell: look again.
    pub fn is_of_guest_memory(&self) -> bool {
        self.rule == Rule::InSync
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: page of frame {:#x} at level {}", self.rule, self.gfn, self.level)?;
        match self.index {
            Some(index) => write!(f, ", entry {index}: {:#x}", self.spte),
            None => Ok(()),
        }
    }
}

/// Most findings that are reported.
const MOST: usize = 16;

/// What an audit saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Shadow pages.
    pub pages: usize,
    /// Leaves.
    pub leaves: usize,
    /// Those of 2 MiB among them.
    pub large: usize,
    /// The first violations.
    pub findings: Vec<Finding>,
}

/// Why there is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditError {
    /// No memory for it.
    OutOfMemory,
    /// The VM had been ended for disorder before.
    Dead,
}

impl From<OutOfMemory> for AuditError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<Corrupt> for AuditError {
    fn from(_: Corrupt) -> Self {
        Self::Dead
    }
}

impl<P: Platform> Shadow<P> {
    /// Looks at everything with the lock held, which takes long. `host_frame` says which host-physical page is behind an
    /// address of the client, where that is known.
    pub fn audit(
        &self,
        memory: &AddressSpace<P>,
        host_frame: impl Fn(Hva) -> Option<u64>,
    ) -> Result<Report, AuditError> {
        self.audit_as(memory, host_frame, false)
    }

    /// The same when every vCPU's guest has flushed since it last wrote its tables: what a root leads to is in step.
    #[cfg(feature = "testing")]
    pub fn audit_flushed(
        &self,
        memory: &AddressSpace<P>,
        host_frame: impl Fn(Hva) -> Option<u64>,
    ) -> Result<Report, AuditError> {
        self.audit_as(memory, host_frame, true)
    }

    fn audit_as(
        &self,
        memory: &AddressSpace<P>,
        host_frame: impl Fn(Hva) -> Option<u64>,
        flushed: bool,
    ) -> Result<Report, AuditError> {
        let (result, due) = self.locked(|tables| {
            let view = memory.notifier_view().ok_or(AuditError::Dead)?;
            let Tables { pages, leaves, large, .. } = *tables;
            let report = Report { pages, leaves, large, findings: Vec::new() };
            let mut audit = Audit { tables, slots: &view, host_frame, flushed, report };
            audit.run()?;
            Ok(audit.report)
        });
        due.abandon();
        result
    }

    /// The error of a VM that is over, for callers that have seen none yet.
    pub fn check_alive(&self) -> Result<(), ShadowError> {
        if self.open.dead.load(SeqCst) { Err(ShadowError::Dead) } else { Ok(()) }
    }
}

struct Audit<'a, P: Platform, F> {
    tables: &'a Tables<P>,
    slots: &'a Snapshot<P>,
    host_frame: F,
    /// Every guest has flushed since it last wrote its tables.
    flushed: bool,
    report: Report,
}

/// How often each entry of each page is in some list: a bit for each.
struct Seen(Vec<u64>);

impl Seen {
    fn new(slots: u32) -> Result<Self, OutOfMemory> {
        Ok(Self(try_vec(0, slots as usize * TABLE_ENTRIES / 64)?))
    }

    /// Notes it; false if it was noted before.
    fn note(&mut self, slot: u32, index: usize) -> bool {
        let bit = slot as usize * TABLE_ENTRIES + index;
        let Some(word) = self.0.get_mut(bit / 64) else { return false };
        let new = *word >> (bit % 64) & 1 == 0;
        *word |= 1 << (bit % 64);
        new
    }

    fn has(&self, slot: u32, index: usize) -> bool {
        let bit = slot as usize * TABLE_ENTRIES + index;
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }
}

impl<P: Platform, F: Fn(Hva) -> Option<u64>> Audit<'_, P, F> {
    fn finding(&mut self, rule: Rule, page: &ShadowPage<P>, index: Option<usize>) -> Result<(), AuditError> {
        if self.report.findings.len() < MOST {
            let spte = index.map_or(0, |index| page.table.entry(index).load(SeqCst));
            let finding = Finding { rule, gfn: page.gfn, level: page.role.level, index, spte };
            try_push(&mut self.report.findings, finding)?;
        }
        Ok(())
    }

    /// A rule about the whole.
    fn broken(&mut self, rule: Rule) -> Result<(), AuditError> {
        if self.report.findings.len() < MOST {
            try_push(&mut self.report.findings, Finding { rule, gfn: 0, level: 0, index: None, spte: 0 })?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), AuditError> {
        let tables = self.tables;
        let mut seen = Seen::new(tables.arena.slots().end)?;
        self.reverse_map(&mut seen)?;
        self.hash()?;
        let (mut pages, mut leaves, mut large) = (0, 0, 0);
        for (id, page) in tables.arena.iter() {
            self.parents(id, page, &mut seen)?;
            pages += usize::from(page.hashed);
        }
        for (id, page) in tables.arena.iter() {
            let present = self.entries(id, page, &seen)?;
            if present != page.present {
                self.finding(Rule::Counts, page, None)?;
            }
            let all = (0..TABLE_ENTRIES).map(|index| page.table.entry(index).load(SeqCst));
            let mine = all.filter(|entry| *entry != 0 && self.is_leaf(page, *entry)).count();
            leaves += mine;
            large += if page.role.level > 1 { mine } else { 0 };
            let used = !page.present.is_empty() && !page.own_root && page.sync == Sync::InStep;
            if used && !tables.open.flushes.is_done(page.readable_after) {
                self.finding(Rule::Flushes, page, None)?;
            }
            self.unsync(id, page)?;
        }
        if (pages, leaves, large) != (tables.pages, tables.leaves, tables.large) {
            self.broken(Rule::Counts)?;
        }
        if tables.unsync.len() > unsync::MOST || tables.unsync.len() != tables.open.unsync.load(SeqCst) {
            self.broken(Rule::Unsync)?;
        }
        self.roots()
    }

    /// Whether a page may be in step or not, as it is.
    fn unsync(&mut self, id: PageId, page: &ShadowPage<P>) -> Result<(), AuditError> {
        let tables = self.tables;
        let listed = tables.unsync.iter().filter(|other| **other == id).count();
        let mut right = listed == usize::from(page.sync != Sync::InStep);
        if page.sync != Sync::InStep {
            right &= page.hashed && !page.role.direct() && page.role.level == 1;
        }
        if page.sync == Sync::Unsync {
            right &= !tables.is_protected(page.gfn)?;
        }
        if right { Ok(()) } else { self.finding(Rule::Unsync, page, None) }
    }

    /// Whether an entry that is present maps a page, or would if it had the bits that it may have.
    fn is_leaf(&self, page: &ShadowPage<P>, entry: u64) -> bool {
        page.role.level == 1 || self.tables.open.nested && spte::is_leaf(page.role.level, entry)
    }

    /// Every element of every bucket.
    fn reverse_map(&mut self, seen: &mut Seen) -> Result<(), AuditError> {
        let tables = self.tables;
        for (bucket, first) in tables.rmap.iter().enumerate() {
            let (mut node, mut previous) = (*first, Node::NONE);
            while let Some((slot, index)) = node.get() {
                let Ok(page) = tables.arena.at(slot) else { return self.broken(Rule::Structure) };
                let Some(link) = page.links.get(index) else { return self.broken(Rule::Structure) };
                if !seen.note(slot, index) {
                    // Twice, or in a circle.
                    return self.finding(Rule::ReverseMap, page, Some(index));
                }
                let entry = page.table.entry(index).load(SeqCst);
                let right = entry != 0
                    && self.is_leaf(page, entry)
                    && hash(link.gfn(), tables.rmap.len()) == bucket
                    && link.previous == previous;
                if !right {
                    self.finding(Rule::ReverseMap, page, Some(index))?;
                }
                (previous, node) = (node, link.next);
            }
        }
        Ok(())
    }

    /// Each page is in its bucket once, and in the order of ages once.
    fn hash(&mut self) -> Result<(), AuditError> {
        let tables = self.tables;
        let mut found = try_vec(0u8, tables.arena.slots().end as usize)?;
        let shadowing = tables.open.heads().enumerate().map(|(bucket, first)| (false, bucket, first));
        let direct = tables.direct_heads.iter().enumerate().map(|(bucket, first)| (true, bucket, *first));
        for (direct, bucket, first) in shadowing.chain(direct) {
            let (mut slot, mut previous) = (first, NO_SLOT);
            while slot != NO_SLOT {
                let Ok(page) = tables.arena.at(slot) else { return self.broken(Rule::Structure) };
                let Some(times) = found.get_mut(slot as usize) else { return self.broken(Rule::Structure) };
                *times += 1;
                let right = page.hashed
                    && page.role.direct() == direct
                    && hash(page.gfn, BUCKETS) == bucket
                    && page.hash_previous == previous;
                if !right || *times > 1 {
                    return self.finding(Rule::Hash, page, None);
                }
                (previous, slot) = (slot, page.hash_next);
            }
        }
        let (mut slot, mut younger, mut count) = (tables.youngest, NO_SLOT, 0);
        while slot != NO_SLOT && count <= tables.pages {
            let Ok(page) = tables.arena.at(slot) else { return self.broken(Rule::Structure) };
            if !page.hashed || page.younger != younger {
                self.finding(Rule::Hash, page, None)?;
            }
            count += 1;
            (younger, slot) = (slot, page.older);
        }
        if count != tables.pages || tables.oldest != younger {
            self.broken(Rule::Hash)?;
        }
        for (id, page) in tables.arena.iter() {
            let twin = tables.find(page.gfn, &page.role)?;
            let right = if page.hashed {
                twin == Some(id) && found.get(id.slot as usize) == Some(&1)
            } else {
                // Kept for a vCPU only; or a page that is in a cache's hands does not exist here.
                (page.roots != 0 || page.own_root) && found.get(id.slot as usize) == Some(&0)
            };
            if !right {
                self.finding(Rule::Hash, page, None)?;
            }
        }
        Ok(())
    }

    fn parents(&mut self, id: PageId, page: &ShadowPage<P>, seen: &mut Seen) -> Result<(), AuditError> {
        let tables = self.tables;
        let (mut node, mut previous) = (page.parents, Node::NONE);
        while let Some((slot, index)) = node.get() {
            let Ok(parent) = tables.arena.at(slot) else { return self.finding(Rule::Structure, page, None) };
            let Some(link) = parent.links.get(index) else { return self.finding(Rule::Structure, page, None) };
            let value = parent.table.entry(index).load(SeqCst);
            let right = seen.note(slot, index)
                && link.page() == id
                && link.previous == previous
                && parent.role.level == page.role.level + 1
                && value & FRAME == page.table.hpa();
            if !right {
                return self.finding(Rule::Parents, parent, Some(index));
            }
            (previous, node) = (node, link.next);
        }
        let zapped = !page.hashed && !page.own_root;
        if zapped && (!page.present.is_empty() || page.parents != Node::NONE) {
            self.finding(Rule::Parents, page, None)?;
        }
        Ok(())
    }

    /// Every entry of a page; how many are present.
    fn entries(&mut self, id: PageId, page: &ShadowPage<P>, seen: &Seen) -> Result<Present, AuditError> {
        let mut present = Present::NONE;
        for index in 0..TABLE_ENTRIES {
            let value = page.table.entry(index).load(SeqCst);
            if value == 0 {
                if seen.has(id.slot, index) {
                    self.finding(Rule::ReverseMap, page, Some(index))?;
                }
                continue;
            }
            present.put(index, true);
            if !seen.has(id.slot, index) {
                let rule = if self.is_leaf(page, value) { Rule::ReverseMap } else { Rule::Parents };
                self.finding(rule, page, Some(index))?;
            }
            if self.is_leaf(page, value) {
                self.leaf(page, index, value)?;
            } else {
                let hpa = value & FRAME;
                let made = if page.own_root { spte::pdpte(hpa) } else { spte::table(hpa) };
                let processors = self.tables.open.format.processors();
                if value & !processors != made {
                    self.finding(Rule::Encoding, page, Some(index))?;
                }
            }
            if !self.in_sync(id, page, index)? {
                self.finding(Rule::InSync, page, Some(index))?;
            }
        }
        Ok(present)
    }

    fn leaf(&mut self, page: &ShadowPage<P>, index: usize, value: u64) -> Result<(), AuditError> {
        let leaf = Leaf { large: page.role.level == LARGE_LEVEL, ..Leaf::decode(value) };
        let format = self.tables.open.format;
        let processors = format.processors();
        if value & !processors != leaf.encode(format) & !processors {
            self.finding(Rule::Encoding, page, Some(index))?;
        }
        let Some(link) = page.links.get(index) else { return self.finding(Rule::Structure, page, Some(index)) };
        let first = link.gfn();
        for n in 0..if leaf.large { LARGE_FRAMES } else { 1 } {
            let part = Leaf { hpa: leaf.hpa + (n << PAGE_SHIFT), ..leaf };
            self.mapped(page, index, first + n, part)?;
        }
        Ok(())
    }

    /// A leaf, or a part of it, that maps frame `gfn`.
    fn mapped(&mut self, page: &ShadowPage<P>, index: usize, gfn: u64, leaf: Leaf) -> Result<(), AuditError> {
        if leaf.write && self.tables.is_protected(gfn)? {
            self.finding(Rule::WriteProtection, page, Some(index))?;
        }
        match self.slots.resolve_unaliased(gfn) {
            Some((slot, frame)) => {
                let moved = (self.host_frame)(frame.hva).is_some_and(|hpa| hpa != leaf.hpa);
                if moved || leaf.write && frame.read_only {
                    self.finding(Rule::Slots, page, Some(index))?;
                }
                if leaf.write && slot.dirty().is_some_and(|log| !log.is_marked(gfn - slot.base)) {
                    self.finding(Rule::DirtyLog, page, Some(index))?;
                }
            }
            None => self.finding(Rule::Slots, page, Some(index))?,
        }
        Ok(())
    }

    fn in_sync(&self, id: PageId, page: &ShadowPage<P>, index: usize) -> Res<bool> {
        let tables = self.tables;
        let unalias = |gfn| self.slots.unalias(gfn);
        if page.own_root {
            // Of a root that is not in use nothing is left but what its last use has left.
            let user = tables.roots.iter().find(|root| root.own == Some(id));
            let Some((current, Some(paging))) = user.and_then(|root| root.current) else { return Ok(true) };
            return if current == id {
                tables.is_as(id, index, expected_pdpte(&paging, index), unalias)
            } else {
                Ok(true)
            };
        }
        if let Some(leaf) = tables.large_at(id, index)? {
            let access = page.role.access;
            let same = leaf.user == access.has(Access::USER) && leaf.execute == access.has(Access::EXECUTE);
            return Ok(same && tables.link(id, index)?.gfn() == page.direct_gfn(index));
        }
        if page.role.direct() {
            return tables.is_as(id, index, page.expected_direct(index), unalias);
        }
        if page.sync == Sync::InStep || self.flushed && tables.is_used(id)? {
            return tables.agrees(id, index, self.slots);
        }
        // Whatever the table said: no more than the tables above allow.
        let (leaf, access) = (Leaf::decode(tables.spte(id, index)?), page.role.access);
        let write = !leaf.write || access.has(Access::WRITE) || !page.role.wp;
        let user = !leaf.user || access.has(Access::USER);
        Ok(write && user && (!leaf.execute || access.has(Access::EXECUTE)))
    }

    fn roots(&mut self) -> Result<(), AuditError> {
        let tables = self.tables;
        for root in &tables.roots {
            let current = root.current.map(|(id, _)| id);
            for id in [current, root.own].into_iter().flatten() {
                if tables.arena.get(id).is_err() {
                    self.broken(Rule::Roots)?;
                }
            }
        }
        for (id, page) in tables.arena.iter() {
            let users = tables.roots.iter().filter(|root| root.current.is_some_and(|(root, _)| root == id)).count();
            let owners = tables.roots.iter().filter(|root| root.own == Some(id)).count();
            if users != page.roots as usize || owners != usize::from(page.own_root) {
                self.finding(Rule::Roots, page, None)?;
            }
        }
        Ok(())
    }
}
