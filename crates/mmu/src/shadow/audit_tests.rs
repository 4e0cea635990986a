//! That the auditor can find something: shadow tables in order, one thing in them put out of order, and what it says.
use alloc::{vec, vec::Vec};
use core::sync::atomic::Ordering::SeqCst;

use abi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use platform::{
    TablePage,
    testing::{self, Test},
};
use x86::{
    Cr0, Cr4, Efer,
    paging::{P, U, W},
};

use super::{
    audit::Rule::{self, *},
    open::hash,
    page::{Link, NO_SLOT, Node, PageId, ShadowPage},
    tables::Tables,
    unsync::Sync,
};
use crate::testing::{Access, End, Machine};

const ROOT: u64 = 0x10;
/// The guest's page table, and what its entries lead to: memory, the page table itself, read-only and logged memory.
const TABLE: u64 = ROOT + 3;
const FRAMES: [u64; 4] = [0x100, TABLE, 0x1000, 0x2000];
const CLIENT: u64 = 0x5000_0000_0000;

/// Processor 0 in long mode, which has used all of [`FRAMES`] from linear address 0 on; processor 1 without paging.
fn machine() -> Machine {
    let mut m = Machine::new(2);
    for (slot, flags, frame, pages) in
        [(0, 0, 0, 0x400), (1, KVM_MEM_READONLY, 0x1000, 16), (2, KVM_MEM_LOG_DIRTY_PAGES, 0x2000, 16)]
    {
        assert!(m.set_slot(slot, flags, frame << 12, pages, CLIENT + (frame << 12)));
    }
    for level in 0..3 {
        m.put((ROOT + level) << 12, (ROOT + level + 1) << 12 | P | W | U);
    }
    for (n, frame) in FRAMES.iter().enumerate() {
        m.put(TABLE << 12 | (n as u64) << 3, frame << 12 | P | W | U);
    }
    m.set_registers(0, |state| {
        state.cr0 = (Cr0::PE | Cr0::PG | Cr0::WP).bits();
        state.cr4 = Cr4::PAE.bits();
        state.efer = (Efer::LME | Efer::LMA | Efer::NXE).bits();
        state.cr3 = ROOT << 12;
        state.refresh();
    });
    assert_eq!(m.access(0, Access::write(0, 1)), End::Done(0x10_0000));
    for n in 1..4 {
        assert_eq!(m.access(0, Access::read(n << 12)), End::Done(FRAMES[n as usize] << 12));
    }
    assert_eq!(m.access(1, Access::write(0x20_1000, 1)), End::Done(0x20_1000));
    // The page table is in step from now on.
    m.guest_flush();
    m.check();
    m
}

/// The one page of this level that is a guest table's, or is direct.
fn id(tables: &Tables<Test>, level: u8, direct: bool) -> PageId {
    let wanted = |page: &ShadowPage<Test>| page.role.level == level && page.role.direct() == direct;
    tables.arena.iter().find(|(_, page)| wanted(page)).expect("there is one").0
}

fn page(tables: &mut Tables<Test>, level: u8) -> &mut ShadowPage<Test> {
    let id = id(tables, level, false);
    tables.arena.get_mut(id).expect("it was just found")
}

/// Processor 1's own root page.
fn own(tables: &mut Tables<Test>) -> &mut ShadowPage<Test> {
    let id = id(tables, 3, true);
    tables.arena.get_mut(id).expect("it was just found")
}

/// Changes leaf `n` of the guest's page table.
fn leaf(tables: &mut Tables<Test>, n: usize, change: impl FnOnce(u64) -> u64) {
    let entry = page(tables, 1).table.entry(n);
    entry.store(change(entry.load(SeqCst)), SeqCst);
}

/// The rules that the auditor says are broken by `change`, each once.
fn broken_by(change: impl FnOnce(&mut Tables<Test>)) -> Vec<Rule> {
    let m = machine();
    change(&mut m.shadow().tables.lock());
    let mut rules = Vec::new();
    for finding in findings(&m) {
        if !rules.contains(&finding.rule) {
            rules.push(finding.rule);
        }
    }
    rules
}

fn findings(m: &Machine) -> Vec<super::Finding> {
    m.shadow().audit(m.memory(), testing::frame_of).expect("alive").findings
}

const NOWHERE: Node = Node::new(0x1234, 5);

#[test]
fn what_leads_nowhere() {
    assert_eq!(broken_by(|_| {}), []);
    assert_eq!(broken_by(|t| t.rmap[hash(0x300, 1024)] = NOWHERE), [Structure, ReverseMap]);
    assert_eq!(broken_by(|t| page(t, 1).parents = NOWHERE), [Structure, Parents]);
    assert_eq!(broken_by(|t| t.youngest = 0x1234), [Structure]);
    assert_eq!(broken_by(|t| page(t, 1).older = 0x1234), [Structure]);
    assert_eq!(broken_by(|t| t.direct_heads[hash(0x300, 4096)] = 0x1234), [Structure]);
    assert_eq!(broken_by(|t| t.open.head(0x300).store(0x1234, SeqCst)), [Structure]);
}

#[test]
fn leaves_and_the_reverse_map() {
    let bucket = hash(FRAMES[0], 1024);
    assert_eq!(broken_by(|t| t.rmap[bucket] = Node::NONE), [ReverseMap]);
    assert_eq!(broken_by(|t| page(t, 1).links[0].previous = NOWHERE), [ReverseMap]);
    assert_eq!(broken_by(|t| t.rmap.swap(bucket, hash(0x300, 1024))), [ReverseMap]);
    let circle = |t: &mut Tables<Test>| page(t, 1).links[0].next = t.rmap[bucket];
    assert_eq!(broken_by(circle), [ReverseMap]);
    // An entry that went without its element, and one that came without.
    assert_eq!(broken_by(|t| leaf(t, 0, |_| 0)), [ReverseMap, Counts]);
    assert_eq!(broken_by(|t| leaf(t, 9, |_| 1 << 12 | P)), [ReverseMap, InSync, Counts]);
    // An entry that leads to a table is none.
    let upper = |t: &mut Tables<Test>| t.rmap[hash(0x300, 1024)] = Node::new(id(t, 2, false).slot, 0);
    assert_eq!(broken_by(upper), [ReverseMap, Parents]);
}

#[test]
fn parents() {
    assert_eq!(broken_by(|t| page(t, 1).parents = Node::NONE), [Parents]);
    assert_eq!(broken_by(|t| page(t, 2).links[0].previous = NOWHERE), [Parents]);
    let elsewhere = |t: &mut Tables<Test>| page(t, 2).links[0] = Link::to_page(id(t, 3, false));
    assert_eq!(broken_by(elsewhere), [Parents, InSync]);
    let other = |t: &mut Tables<Test>| {
        let entry = page(t, 2).table.entry(0);
        entry.store(entry.load(SeqCst) ^ 1 << 12, SeqCst);
    };
    assert_eq!(broken_by(other), [Parents]);
    // A page that is kept for a vCPU only, but still leads somewhere.
    assert_eq!(broken_by(|t| t.leave_hash(id(t, 4, false)).unwrap()), [Parents]);
}

#[test]
fn pages_by_frame_and_by_age() {
    assert_eq!(broken_by(|t| page(t, 1).hash_previous = 7), [Hash]);
    assert_eq!(broken_by(|t| page(t, 1).gfn ^= 1), [Hash, InSync]);
    assert_eq!(broken_by(|t| t.open.head(TABLE).store(NO_SLOT, SeqCst)), [Hash]);
    assert_eq!(broken_by(|t| page(t, 1).younger = 7), [Hash]);
    assert_eq!(broken_by(|t| t.oldest = t.youngest), [Hash]);
    assert_eq!(broken_by(|t| t.youngest = NO_SLOT), [Hash]);
    assert_eq!(broken_by(|t| page(t, 1).hashed = false), [Hash, Parents, Counts]);
    let twice = |t: &mut Tables<Test>| t.direct_heads[hash(0x300, 4096)] = id(t, 1, true).slot;
    assert_eq!(broken_by(twice), [Hash]);
}

#[test]
fn numbers() {
    assert_eq!(broken_by(|t| t.leaves += 1), [Counts]);
    assert_eq!(broken_by(|t| t.pages += 1), [Hash, Counts]);
    assert_eq!(broken_by(|t| assert!(!page(t, 1).present.put(100, true))), [Counts]);
    assert_eq!(broken_by(|t| assert!(page(t, 2).present.put(0, false))), [Counts]);
}

#[test]
fn roots() {
    assert_eq!(broken_by(|t| page(t, 4).roots += 1), [Roots]);
    assert_eq!(broken_by(|t| t.roots[0].current = None), [Roots]);
    assert_eq!(broken_by(|t| t.roots[1].own = None), [Roots]);
    assert_eq!(broken_by(|t| t.roots[0].own = Some(PageId { slot: 0x1234, generation: 0 })), [Roots]);
    assert_eq!(broken_by(|t| page(t, 1).own_root = true), [Roots]);
}

#[test]
fn bits_that_an_entry_must_not_have() {
    for bit in [3, 4, 7, 8, 9, 52, 62] {
        assert_eq!(broken_by(|t| leaf(t, 0, |entry| entry | 1 << bit)), [Encoding], "bit {bit}");
    }
    for bit in [3, 9, 62, 63] {
        let change = |t: &mut Tables<Test>| _ = page(t, 3).table.entry(0).fetch_or(1 << bit, SeqCst);
        assert_eq!(broken_by(change), [Encoding], "bit {bit}");
    }
    assert_eq!(broken_by(|t| _ = page(t, 3).table.entry(0).fetch_and(!U, SeqCst)), [Encoding]);
    assert_eq!(broken_by(|t| _ = own(t).table.entry(0).fetch_or(W, SeqCst)), [Encoding]);
    // Processors set these.
    for bit in [5, 6] {
        assert_eq!(broken_by(|t| leaf(t, 0, |entry| entry ^ 1 << bit)), []);
        assert_eq!(broken_by(|t| _ = page(t, 3).table.entry(0).fetch_xor(1 << bit, SeqCst)), []);
    }
}

#[test]
fn rights_that_a_leaf_must_not_have() {
    let write = |entry| entry | W;
    assert_eq!(broken_by(|t| leaf(t, 1, write)), [WriteProtection, InSync]);
    assert_eq!(broken_by(|t| leaf(t, 2, write)), [Slots, InSync]);
    assert_eq!(broken_by(|t| leaf(t, 3, write)), [DirtyLog, InSync]);
    // Fewer are allowed.
    assert_eq!(broken_by(|t| leaf(t, 0, |entry| entry & !W)), []);
    assert_eq!(broken_by(|t| leaf(t, 0, |entry| entry & !U)), [InSync]);
}

#[test]
fn what_is_not_as_host_and_guest_have_it() {
    assert_eq!(broken_by(|t| leaf(t, 0, |entry| entry ^ 1 << 12)), [Slots]);
    // The host has taken the page away, and nobody was told; then the client's device has written the table.
    let mut m = machine();
    testing::move_frames(CLIENT + (FRAMES[0] << 12), 1);
    assert_eq!(findings(&m), [], "where it is now is not known yet");
    m.dma(TABLE << 12, &0u64.to_le_bytes());
    let rules: Vec<_> = findings(&m).iter().map(|finding| (finding.rule, finding.index)).collect();
    assert_eq!(rules, vec![(InSync, Some(0))]);
    assert!(findings(&m).iter().all(|finding| finding.is_of_guest_memory()));
    m.put(TABLE << 12, 0);
    assert_eq!(findings(&m), []);
}

#[test]
fn tables_that_are_walked_before_their_flush() {
    assert_eq!(broken_by(|t| page(t, 1).readable_after = u64::MAX), [Flushes]);
    // Nobody walks the entries of an empty page.
    let empty = |t: &mut Tables<Test>| {
        let id = id(t, 1, false);
        t.clear(id).unwrap();
        page(t, 1).readable_after = u64::MAX;
    };
    assert_eq!(broken_by(empty), []);
}

#[test]
fn tables_that_the_guest_may_write() {
    let open = |t: &mut Tables<Test>| t.enlist(id(t, 1, false)).unwrap();
    assert_eq!(broken_by(open), []);
    let write = |entry| entry | W;
    let old = |t: &mut Tables<Test>| {
        open(t);
        // Its own frame may be writable now, and its entries may be what they were, but for what nothing allows.
        leaf(t, 1, write);
    };
    assert_eq!(broken_by(old), []);
    let forbidden = |t: &mut Tables<Test>| {
        open(t);
        page(t, 1).role.access = super::role::Access::EXECUTE;
    };
    assert_eq!(broken_by(forbidden), [InSync]);
    assert_eq!(broken_by(|t| page(t, 1).sync = Sync::Unsync), [Unsync]);
    assert_eq!(broken_by(|t| t.enlist(id(t, 3, false)).unwrap()), [Unsync]);
    assert_eq!(broken_by(|t| t.unsync.push(id(t, 1, false))), [Unsync]);
    let counted = |t: &mut Tables<Test>| t.open.unsync.store(1, SeqCst);
    assert_eq!(broken_by(counted), [Unsync]);
}

#[test]
fn a_table_that_is_looked_at_before_its_flush_is_not_in_step() {
    let m = machine();
    let mut tables = m.shadow().tables.lock();
    let table = id(&tables, 1, false);
    let slots = m.memory().notifier_view().unwrap();
    tables.enlist(table).unwrap();
    leaf(&mut tables, 1, |entry| entry | W);
    assert!(!tables.is_protected(TABLE).unwrap());
    tables.close(TABLE).unwrap();
    assert!(tables.is_protected(TABLE).unwrap());
    tables.settle_under(table, &slots).unwrap();
    assert_eq!(page(&mut tables, 1).sync, Sync::Closing);
    let due = tables.take_due();
    drop(tables);
    m.shadow().fulfil(due, || {});
    let mut tables = m.shadow().tables.lock();
    tables.settle_under(table, &slots).unwrap();
    assert_eq!((page(&mut tables, 1).sync, tables.unsync.len()), (Sync::InStep, 0));
}

#[test]
fn findings_are_counted_no_further_than_is_of_use() {
    let m = machine();
    for n in 100..200 {
        leaf(&mut m.shadow().tables.lock(), n, |_| 1 << 12 | P);
    }
    let all = findings(&m);
    assert_eq!(all.len(), 16);
    assert!(all.iter().all(|finding| !finding.is_of_guest_memory() || finding.rule == InSync));
    let first = alloc::format!("{}", all[0]);
    assert_eq!(first, "ReverseMap: page of frame 0x13 at level 1, entry 100: 0x1001");
}
