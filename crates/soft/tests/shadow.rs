//! The processor on shadow tables that are made by hand: what it walks, what it sets in them, and what it leaves to the core.
mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::{CODE, DATA, GDT, Guest, IDT, STACK, Shadow, TSS};
use hv::backend::{Backend, BackendVcpu, CrOp, Event, EventKind, Exit, FlushTlb, Groups, Translation};
use iced_x86::code_asm::*;
use platform::{MaySleep, TablePage, table::CheckedTablePage};
use soft::{Options, PagingKind, TlbKind};
use x86::{Cr0, Cr4, Exception, Features, Vector, exception::pf};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const NX: u64 = 1 << 63;

fn guest(tlb: TlbKind) -> Guest {
    Guest::with(Options { paging: PagingKind::Shadow, tlb })
}

/// Both kinds of TLB, for what must not depend on it.
fn guests() -> [Guest; 2] {
    [guest(TlbKind::Normal), guest(TlbKind::Adversarial)]
}

fn fault(gva: u64, code: u32) -> Exit {
    Exit::PageFault { gva, code, implicit: false }
}

#[test]
fn it_offers_what_the_core_can_do() {
    let g = guest(TlbKind::Normal);
    assert_eq!(g.backend.translation(), Translation::Shadow);
    assert!(!g.backend.features().intersects(Features::PCID | Features::INVPCID));
    assert!(Guest::new().backend.features().contains(Features::PCID | Features::INVPCID));
}

#[test]
fn without_tables_it_does_not_enter() {
    let g = guest(TlbKind::Normal);
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::FailEntry { reason: 0 });
}

#[test]
fn what_is_not_mapped_leaves_and_is_found_when_it_is() {
    for g in guests() {
        let len = g.code(CODE, |a| {
            a.mov(rcx, DATA).unwrap();
            a.mov(rax, qword_ptr(rcx)).unwrap();
            a.add(qword_ptr(rcx + 8), rax).unwrap();
            a.hlt().unwrap();
        });
        g.write64(DATA, 5);
        let mut tables = Shadow::new(4);
        let mut v = g.long(0);
        // The guest's own tables do not matter.
        v.registers_mut(Groups::ALL).cr3 = 0xdead_d000;
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(CODE, pf::FETCH));
        tables.identity(&g, CODE, 0x1000, P | W);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA, 0));
        assert_eq!(tables.entry(CODE, 1).load(SeqCst) & 0xfff, P | W | A, "a fetch sets the accessed bit");
        for level in 2..=4 {
            assert_ne!(tables.entry(CODE, level).load(SeqCst) & A, 0);
        }
        tables.map(DATA, g.hva(DATA), P);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA + 8, pf::PRESENT | pf::WRITE));
        assert_eq!(tables.entry(DATA, 1).load(SeqCst) & 0xfff, P | A, "a write that failed sets no dirty bit");
        // No flush goes with a new right.
        tables.map(DATA, g.hva(DATA), P | W | A);
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        assert_eq!(tables.entry(DATA, 1).load(SeqCst) & 0xfff, P | W | A | D);
        assert_eq!(g.read64(DATA + 8), 5);
        assert_eq!(v.registers(Groups::ALL).rip, CODE + len - 1);
    }
}

#[test]
fn rights_are_those_of_a_host_with_write_protection_and_nx() {
    for g in guests() {
        g.code(CODE, |a| {
            a.mov(dword_ptr(rcx), 1).unwrap();
            a.jmp(rdx).unwrap();
        });
        let mut tables = Shadow::new(4);
        tables.identity(&g, CODE, 0x1000, P);
        tables.map(DATA, g.hva(DATA), P | U | NX);
        let mut v = g.long(0);
        let s = v.registers_mut(Groups::ALL);
        s.cr0 &= !Cr0::WP.bits();
        s.efer &= !x86::Efer::NXE.bits();
        (s.gpr[1], s.gpr[2]) = (DATA, DATA);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA, pf::PRESENT | pf::WRITE));
        v.registers_mut(Groups::ALL).rip += 6;
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA, pf::PRESENT | pf::FETCH));
        // SMEP and SMAP are the guest's.
        tables.map(DATA, g.hva(DATA), P | W | U);
        v.registers_mut(Groups::ALL).rip = CODE;
        v.registers_mut(Groups::ALL).cr4 |= (Cr4::SMEP | Cr4::SMAP).bits();
        v.flush(FlushTlb::All);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA, pf::PRESENT | pf::WRITE));
        v.registers_mut(Groups::ALL).flags.set_control(x86::flags::AC, x86::flags::AC);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA, pf::PRESENT | pf::FETCH));
        assert_eq!(g.read64(DATA), 1);
        // A user's access to a supervisor's page.
        let s = v.registers_mut(Groups::ALL);
        s.seg[2].selector |= 3;
        s.seg[2].attr = x86::Attr(s.seg[2].attr.0 | 3 << 5);
        s.seg[1].attr = x86::Attr(s.seg[1].attr.0 | 3 << 5);
        s.rip = CODE;
        s.refresh();
        assert_eq!(s.cpl, 3);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(CODE, pf::PRESENT | pf::USER | pf::FETCH));
    }
}

#[test]
fn other_guests_walk_three_levels_whose_top_may_come_later() {
    for g in guests() {
        // Real mode at 0:0x1000, paging off.
        let at = 0x1000;
        g.code_bits(16, at, at, |a| {
            a.mov(eax, dword_ptr(0x3000)).unwrap();
            a.hlt().unwrap();
        });
        g.write64(0x3000, 0x1234_5678);
        let mut tables = Shadow::new(3);
        let mut v = g.vcpu(0);
        let s = v.registers_mut(Groups::ALL);
        (s.rip, s.seg[1].base, s.seg[1].selector) = (at, 0, 0);
        s.refresh();
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(at, pf::FETCH));
        tables.identity(&g, at, 0x1000, P | W | U);
        assert_eq!(tables.entry(at, 3).load(SeqCst) & 0xfff, P);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(0x3000, 0));
        tables.identity(&g, 0x3000, 0x1000, P | W | U);
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[0], 0x1234_5678);
        assert_eq!(tables.entry(at, 3).load(SeqCst) & 0xfff, P, "PDPTEs have no accessed bit");
    }
}

#[test]
fn large_pages_and_reserved_bits() {
    for g in guests() {
        g.code(CODE, |a| {
            a.mov(rax, qword_ptr(DATA + 0x1000)).unwrap();
            a.mov(rbx, qword_ptr(DATA + 0x20_0000)).unwrap();
        });
        let mut tables = Shadow::new(4);
        tables.identity(&g, CODE, 0x1000, P);
        let large = (g.hva(DATA) + 0x1f_ffff) & !0x1f_ffff;
        g.write64(large - g.hva(0) + 0x1000, 77);
        tables.entry(DATA, 2).store(large | P | W | 1 << 7, SeqCst);
        tables.entry(DATA + 0x20_0000, 2).store(large | 1 << 13 | P | W | 1 << 7, SeqCst);
        let mut v = g.long(0);
        assert_eq!(g.enter_shadow(&mut v, &tables), fault(DATA + 0x20_0000, pf::PRESENT | pf::RSVD));
        assert_eq!(v.registers(Groups::ALL).gpr[0], 77);
    }
}

#[test]
fn the_processors_own_accesses_are_told_apart() {
    for g in guests() {
        g.descriptors(|_| CODE);
        g.code(CODE, |a| {
            a.mov(eax, 0x18).unwrap();
            a.mov(ds, eax).unwrap();
            a.hlt().unwrap();
        });
        let mut tables = Shadow::new(4);
        tables.identity(&g, CODE, 0x1000, P);
        let mut v = g.long(0);
        let exit = Exit::PageFault { gva: GDT + 0x18, code: 0, implicit: true };
        assert_eq!(g.enter_shadow(&mut v, &tables), exit);
        tables.identity(&g, GDT, 0x1000, P | W);
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
    }
}

#[test]
fn an_event_whose_delivery_faults_is_given_back() {
    for g in guests() {
        g.descriptors(|_| CODE);
        let len = g.code(CODE, |a| a.hlt().unwrap());
        let mut tables = Shadow::new(4);
        tables.identity(&g, CODE, 0x1000, P);
        let mut v = g.long(0);
        let event = Event { kind: EventKind::Exception(Exception::plain(Vector::UD)) };
        v.inject(event);
        let before = v.registers(Groups::ALL).clone();
        let gva = IDT + 16 * 6;
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::PageFault { gva, code: 0, implicit: true });
        assert_eq!(v.take_unfinished_event(), Some(event));
        assert_eq!((before.rip, before.gpr), (v.registers(Groups::ALL).rip, v.registers(Groups::ALL).gpr));
        for page in [IDT, GDT, TSS, STACK - 0x1000] {
            tables.identity(&g, page, 0x1000, P | W);
        }
        v.inject(event);
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        assert_eq!((v.take_unfinished_event(), len), (None, 1));
        assert_eq!(v.registers(Groups::ALL).gpr[4], STACK - 40);
    }
}

#[test]
fn what_changes_translation_is_the_cores() {
    type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let left: [Code; 5] = [
        |a| a.mov(cr0, rax),
        |a| a.mov(cr3, rax),
        |a| a.mov(cr4, rax),
        |a| a.lmsw(eax),
        // Whatever its value is: the core refuses it.
        |a| {
            a.not(rax)?;
            a.mov(cr3, rax)
        },
    ];
    let done: [Code; 3] = [|a| a.clts(), |a| a.mov(cr2, rax), |a| a.mov(rax, cr3)];
    for g in guests() {
        let mut tables = Shadow::new(4);
        tables.identity(&g, CODE, 0x1000, P);
        for (code, expected) in left
            .iter()
            .map(|code| (code, Exit::Cr { op: CrOp::Other, len: 3 }))
            .chain(done.iter().map(|code| (code, Exit::Hlt { len: 1 })))
        {
            let len = g.code(CODE, |a| {
                code(a).unwrap();
                a.hlt().unwrap();
            });
            let mut v = g.long(0);
            let before = v.registers(Groups::ALL).clone();
            v.registers_mut(Groups::ALL).gpr[0] = before.cr0;
            let exit = g.enter_shadow(&mut v, &tables);
            let s = v.registers(Groups::ALL);
            if expected == (Exit::Hlt { len: 1 }) {
                assert_eq!(exit, expected);
                assert_eq!(s.rip, CODE + len - 1);
            } else {
                assert!(matches!(exit, Exit::Cr { op: CrOp::Other, .. }), "{exit:?}");
                assert!(s.rip < CODE + len - 1);
            }
            assert_eq!((s.cr0 | 8, s.cr3, s.cr4), (before.cr0 | 8, before.cr3, before.cr4));
        }
    }
}

#[test]
fn a_task_switch_is_the_cores() {
    for g in guests() {
        // A far jump to a TSS, in protected mode without paging.
        g.write64(GDT + 0x50, 0x0000_8900_b000_0067);
        g.code_bits(32, CODE, CODE, |a| {
            a.db(&[0xea, 0, 0, 0, 0, 0x50, 0]).unwrap();
        });
        let mut tables = Shadow::new(3);
        for page in [CODE, GDT, TSS] {
            tables.identity(&g, page, 0x1000, P | W);
        }
        let mut v = g.long(0);
        let s = v.registers_mut(Groups::ALL);
        s.cr0 &= !Cr0::PG.bits();
        s.efer = 0;
        s.seg[1] = x86::Segment { attr: x86::Attr(s.seg[1].attr.0 & !x86::Attr::L | x86::Attr::DB), ..s.seg[1] };
        s.refresh();
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::TaskSwitch);
        let s = v.registers(Groups::ALL);
        assert_eq!((s.rip, s.tr.selector), (CODE, 0x40));
    }
}

#[test]
fn invlpg_is_the_cores() {
    for g in guests() {
        let at = g.code(CODE, |a| {
            a.invlpg(ptr(DATA)).unwrap();
            a.hlt().unwrap();
        });
        let mut tables = Shadow::new(4);
        tables.identity(&g, CODE, 0x1000, P);
        let mut v = g.long(0);
        assert!(matches!(g.enter_shadow(&mut v, &tables), Exit::Invlpg { gva: Some(DATA), .. }));
        assert_eq!(v.registers(Groups::ALL).rip, CODE, "of {at} bytes, none is done");
        // Of an address that cannot be, nothing is forgotten.
        g.code(CODE, |a| {
            a.mov(rax, 1u64 << 63).unwrap();
            a.invlpg(ptr(rax)).unwrap();
            a.hlt().unwrap();
        });
        let mut v = g.long(0);
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
    }
}

#[test]
fn translations_stay_until_the_core_flushes() {
    for (flush, expected) in [
        (None, 1),
        (Some(FlushTlb::Page(DATA + 0x1000)), 1),
        (Some(FlushTlb::Page(DATA)), 2),
        (Some(FlushTlb::Current), 2),
        (Some(FlushTlb::Physical), 2),
        (Some(FlushTlb::All), 2),
    ] {
        let g = guest(TlbKind::Adversarial);
        g.write64(DATA, 1);
        g.write64(DATA + 0x1000, 2);
        g.code(CODE, |a| {
            a.mov(rcx, DATA).unwrap();
            a.mov(rsi, qword_ptr(rcx)).unwrap();
            a.in_(al, 1).unwrap();
            a.mov(rdi, qword_ptr(rcx)).unwrap();
            a.hlt().unwrap();
        });
        // Another root without a flush is no flush either.
        let (mut tables, mut other) = (Shadow::new(4), Shadow::new(4));
        for tables in [&mut tables, &mut other] {
            tables.identity(&g, CODE, 0x1000, P);
        }
        tables.map(DATA, g.hva(DATA), P | W);
        other.map(DATA, g.hva(DATA + 0x1000), P | W);
        let mut v = g.long(0);
        assert!(matches!(g.enter_shadow(&mut v, &tables), Exit::Pio(_)));
        if let Some(flush) = flush {
            v.flush(flush);
        }
        let s = v.registers_mut(Groups::ALL);
        s.rip += 2;
        s.cr4 ^= Cr4::PGE.bits();
        assert_eq!(g.enter_shadow(&mut v, &other), Exit::Hlt { len: 1 });
        let s = v.registers(Groups::ALL);
        assert_eq!((s.gpr[6], s.gpr[7]), (1, expected), "{flush:?}");
    }
}

#[test]
fn tables_are_walked_until_the_core_flushes() {
    for (flush, expected) in [
        (None, 1),
        (Some(FlushTlb::Page(CODE)), 2),
        (Some(FlushTlb::Current), 2),
        (Some(FlushTlb::Physical), 2),
        (Some(FlushTlb::All), 2),
    ] {
        let g = guest(TlbKind::Adversarial);
        g.write64(DATA, 1);
        g.write64(DATA + 0x1000, 2);
        g.code(CODE, |a| {
            a.mov(rcx, DATA).unwrap();
            a.mov(rsi, qword_ptr(rcx + 0x3000)).unwrap();
            a.in_(al, 1).unwrap();
            a.mov(rdi, qword_ptr(rcx)).unwrap();
            a.hlt().unwrap();
        });
        let (mut tables, mut other) = (Shadow::new(4), Shadow::new(4));
        tables.identity(&g, CODE, 0x1000, P);
        tables.map(DATA, g.hva(DATA), P | W);
        tables.map(DATA + 0x3000, g.hva(DATA), P | W);
        other.map(DATA, g.hva(DATA + 0x1000), P | W);
        let mut v = g.long(0);
        assert!(matches!(g.enter_shadow(&mut v, &tables), Exit::Pio(_)));
        // Another table for the page next to the one that was used.
        tables.entry(DATA, 2).store(other.entry(DATA, 2).load(SeqCst), SeqCst);
        if let Some(flush) = flush {
            v.flush(flush);
        }
        v.registers_mut(Groups::ALL).rip += 2;
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[7], expected, "{flush:?}");
    }
}

#[test]
fn code_is_known_by_its_frame() {
    for g in guests() {
        // The same page of code at two addresses, changed through a third.
        let alias = CODE + 0x10_0000;
        g.code(CODE, |a| {
            a.mov(eax, 1).unwrap();
            a.ret().unwrap();
        });
        let main = CODE + 0x2000;
        g.code(main, |a| {
            for at in [CODE, alias] {
                a.mov(rcx, at).unwrap();
                a.call(rcx).unwrap();
                a.mov(rdx, DATA + 1).unwrap();
                a.add(byte_ptr(rdx), 1).unwrap();
            }
            a.mov(rcx, CODE).unwrap();
            a.call(rcx).unwrap();
            a.hlt().unwrap();
        });
        let mut tables = Shadow::new(4);
        tables.identity(&g, main, 0x1000, P);
        tables.identity(&g, STACK - 0x1000, 0x1000, P | W);
        tables.map(CODE, g.hva(CODE), P);
        tables.map(alias, g.hva(CODE), P);
        tables.map(DATA, g.hva(CODE), P | W);
        let mut v = g.long(0);
        v.registers_mut(Groups::ALL).rip = main;
        assert_eq!(g.enter_shadow(&mut v, &tables), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[0], 3);
    }
}

#[test]
#[should_panic(expected = "freed table page")]
fn a_root_that_was_freed_is_noticed() {
    let g = guest(TlbKind::Normal);
    let root = CheckedTablePage::new(false, &MaySleep::at_entry()).unwrap();
    let mut tables = Shadow::new(4);
    tables.entry(CODE, 4).store(root.hpa() | P, SeqCst);
    drop(root);
    let mut v = g.long(0);
    g.enter_shadow(&mut v, &tables);
}
