//! The processor on nested tables that are made by hand: what it takes through them, and what it leaves to the core.
mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{CODE, DATA, Guest, MIB, Shadow};
use hv::backend::{Access, Backend, BackendVcpu, Exit, FlushTlb, Groups, Translation};
use iced_x86::code_asm::*;
use soft::{Options, PagingKind, TlbKind};
use x86::Features;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;

fn guest(tlb: TlbKind) -> Guest {
    Guest::with(Options { paging: PagingKind::Nested, tlb })
}

/// Both kinds of TLB, for what must not depend on it.
fn guests() -> [Guest; 2] {
    [guest(TlbKind::Normal), guest(TlbKind::Adversarial)]
}

fn fault(gpa: u64, access: Access) -> Exit {
    Exit::NestedPageFault { gpa, access, table_walk: false }
}

/// Nested tables that hold the guest's tables, its code and no data.
fn tables(g: &Guest) -> Shadow {
    let mut tables = Shadow::new(4);
    for (gpa, bytes) in [(0, 0x8000), (CODE, 0x1000), (0x40_0000, 0x8000)] {
        tables.identity(g, gpa, bytes, P | W | U);
    }
    tables
}

/// MOV RAX, [DATA]; MOV [DATA + 8], RAX; HLT; and once more from the start.
fn copy(g: &Guest) {
    g.code(CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(rcx, DATA).unwrap();
        a.mov(rax, qword_ptr(rcx)).unwrap();
        a.mov(qword_ptr(rcx + 8), rax).unwrap();
        a.hlt().unwrap();
        a.jmp(again).unwrap();
    });
}

#[test]
fn it_offers_everything() {
    let g = guest(TlbKind::Normal);
    assert_eq!(g.backend.translation(), Translation::Nested(mmu::shadow::EntryFormat::X86));
    assert!(g.backend.features().contains(Features::PCID | Features::INVPCID));
    // Without tables it does not enter.
    assert_eq!(g.enter(&mut g.long(0)), Exit::FailEntry { reason: 0 });
}

#[test]
fn every_address_that_it_meets_goes_through_them() {
    for g in guests() {
        copy(&g);
        g.write64(DATA, 5);
        let mut tables = Shadow::new(4);
        let mut v = g.long(0);
        // The guest's tables from the top, as writes; then what they lead to.
        for gpa in [0x1000, 0x2000, 0x3000, Guest::pte(CODE)] {
            let exit = Exit::NestedPageFault { gpa, access: Access::Write, table_walk: true };
            assert_eq!(g.enter_shadow(&mut v, &tables), exit);
            tables.identity(&g, gpa, 1, P | U);
            assert_eq!(g.enter_shadow(&mut v, &tables), exit, "reading is not enough");
            tables.identity(&g, gpa, 1, P | W | U);
        }
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(CODE, Access::Fetch));
        tables.identity(&g, CODE, 1, P | W);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(CODE, Access::Fetch), "they are walked as user mode");
        tables.identity(&g, CODE, 1, P | U);
        let exit = Exit::NestedPageFault { gpa: Guest::pte(DATA), access: Access::Write, table_walk: true };
        if Guest::pte(DATA) >> 12 != Guest::pte(CODE) >> 12 {
            assert_eq!(g.enter_shadow(&mut v, &tables), exit);
            tables.identity(&g, Guest::pte(DATA), 1, P | W | U);
        }
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA, Access::Read));
        tables.identity(&g, DATA, 1, P | U);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA + 8, Access::Write));
        assert_eq!(tables.entry(DATA, 1).load(SeqCst) & 0xfff, P | U | A);
        // No flush goes with a new right.
        tables.identity(&g, DATA, 1, P | W | U);
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        assert_eq!(tables.entry(DATA, 1).load(SeqCst) & 0xfff, P | W | U | A | D);
        assert_eq!(g.read64(DATA + 8), 5);
        // The guest's own dirty bit.
        assert_eq!(g.read64(Guest::pte(DATA)) & (A | D), A | D);
    }
}

#[test]
fn large_pages_lead_to_every_byte() {
    for g in guests() {
        copy(&g);
        let mut tables = tables(&g);
        // A large page of the host, somewhere else in the guest's memory.
        let block = g.hva(6 * MIB).next_multiple_of(2 * MIB);
        tables.entry(DATA, 2).store(block | P | W | U | PS, SeqCst);
        g.write64(block - g.hva(0), 7);
        let mut v = g.long(0);
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        assert_eq!(g.read64(block - g.hva(0) + 8), 7);
        // Nobody needs the dirty bit here, so that a write need not come back for it.
        assert_eq!(tables.entry(DATA, 2).load(SeqCst) & 0xfff & !D, P | W | U | A | PS);
    }
}

/// The mode that forgets nothing goes on with what was taken away, until the core says so; nothing that a guest does is enough.
#[test]
fn what_is_taken_away_is_forgotten_when_the_core_says_so() {
    let g = guest(TlbKind::Adversarial);
    copy(&g);
    g.write64(DATA, 1);
    g.write64(7 * MIB, 2);
    let mut tables = tables(&g);
    tables.identity(&g, DATA, 1, P | W | U);
    let mut v = g.long(0);
    assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
    tables.map(DATA, g.hva(7 * MIB), P | W | U);
    for what in [None, Some(FlushTlb::Current), Some(FlushTlb::Page(DATA)), Some(FlushTlb::Physical)] {
        if let Some(what) = what {
            v.flush(what);
        }
        v.registers_mut(Groups::ALL).rip = CODE;
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        let expected = if what == Some(FlushTlb::Physical) { 2 } else { 1 };
        assert_eq!(v.registers(Groups::ALL).gpr[0], expected, "{what:?}");
    }
    assert_eq!((g.read64(DATA + 8), g.read64(7 * MIB + 8)), (1, 2));
    // Write access too.
    tables.identity(&g, DATA, 1, P | U);
    for (flush, end) in [(false, Exit::Hlt { len: 1 }), (true, fault(DATA + 8, Access::Write))] {
        if flush {
            v.flush(FlushTlb::Physical);
        }
        v.registers_mut(Groups::ALL).rip = CODE;
        assert_eq!(g.enter_shadow(&mut v, &tables), end);
    }
}

/// Four levels translate 48 bits.
#[test]
fn addresses_beyond_the_tables_are_told() {
    for g in guests() {
        copy(&g);
        let mut tables = tables(&g);
        // Where the address would lead if its upper bits were left out.
        tables.identity(&g, 0, 0x40_0000, P | W | U);
        let high = 1 << 48 | 0x20_0000;
        g.write64(Guest::pte(DATA), high | 3);
        let mut v = g.long(0);
        v.set_features(Features::all().difference(Features::AMD), 7, 52);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(high, Access::Read));
    }
}
