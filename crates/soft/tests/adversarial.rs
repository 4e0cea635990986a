//! The adversarial TLB: a translation that nobody flushed is used, whatever the small arrays have forgotten, and each
//! flush drops what the architecture says. The same guests on the normal TLB show what the arrays forget.
mod common;

use abi::KvmDirtyLog;
use common::{CODE, DATA, Guest, STACK, Test};
use hv::backend::{BackendVcpu, Exit, FlushTlb, Groups};
use iced_x86::code_asm::*;
use platform::MaySleep;
use soft::{Options, SoftVcpu, TlbKind};
use x86::{Cr0, Cr4};

/// Where a test's page is, and the two frames that it shows.
const PAGE: u64 = DATA;
const OLD: u64 = DATA + 0x10_0000;
const NEW: u64 = DATA + 0x11_0000;
const P_W: u64 = 3;
const GLOBAL: u64 = 1 << 8;

fn guest(tlb: TlbKind) -> Guest {
    let g = Guest::with(Options { tlb, ..Options::default() });
    g.write64(OLD, 1);
    g.write64(NEW, 2);
    g
}

/// Something that is done between two uses of the page.
type Action = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn nothing(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}

/// CR0.WP off and on: the arrays derive their write rights from it and forget everything.
fn toggle_wp(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..2 {
        a.mov(rax, cr0)?;
        a.xor(eax, Cr0::WP.bits() as i32)?;
        a.mov(cr0, rax)?;
    }
    Ok(())
}

fn invlpg(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.invlpg(ptr(PAGE + 0x123))
}

fn load_cr3(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)
}

fn toggle_pge(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for _ in 0..2 {
        a.mov(rax, cr4)?;
        a.xor(eax, Cr4::PGE.bits() as i32)?;
        a.mov(cr4, rax)?;
    }
    Ok(())
}

/// INVPCID of `kind` for PCID `pcid`.
fn invpcid(a: &mut CodeAssembler, kind: u32, pcid: u32) -> Result<(), IcedError> {
    a.mov(eax, kind)?;
    a.mov(rbx, PAGE)?;
    a.push(rbx)?;
    a.push(pcid as i32)?;
    a.invpcid(rax, xmmword_ptr(rsp))?;
    a.add(rsp, 16)
}

/// To PCID `pcid`, keeping what is known of it or not.
fn switch(a: &mut CodeAssembler, pcid: u64, keep: bool) -> Result<(), IcedError> {
    a.mov(rax, 0x1000 | pcid | if keep { 1 << 63 } else { 0 })?;
    a.mov(cr3, rax)
}

/// Reads the page, points it to the new frame, acts, and reads it again. Answers what was read.
fn remapped(tlb: TlbKind, extra: u64, pcid: bool, action: Action) -> (u64, u64, SoftVcpu<Test>) {
    let g = guest(tlb);
    g.write64(Guest::pte(PAGE), OLD | P_W | extra);
    g.code(CODE, |a| {
        let mut code = || {
            a.mov(rcx, PAGE)?;
            a.mov(rsi, qword_ptr(rcx))?;
            a.mov(rax, NEW | P_W | extra)?;
            a.mov(rdx, Guest::pte(PAGE))?;
            a.mov(qword_ptr(rdx), rax)?;
            toggle_wp(a)?;
            action(a)?;
            a.mov(rdi, qword_ptr(rcx))?;
            a.hlt()
        };
        code().unwrap();
    });
    let mut v = g.long(0);
    if pcid {
        v.registers_mut(Groups::ALL).cr4 |= Cr4::PCIDE.bits();
    }
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    (s.gpr[6], s.gpr[7], v)
}

#[test]
fn what_nobody_flushed_is_used() {
    let (first, second, v) = remapped(TlbKind::Adversarial, 0, false, nothing);
    assert_eq!((first, second), (1, 1));
    assert!(v.stats().recalled > 0);
    // The arrays alone have forgotten it.
    let (first, second, v) = remapped(TlbKind::Normal, 0, false, nothing);
    assert_eq!((first, second), (1, 2));
    assert_eq!(v.stats().recalled, 0);
}

#[test]
fn each_flush_of_the_guest_drops_what_it_names() {
    // What is done, whether the page is global, with PCIDs, and whether the translation goes.
    let cases: &[(&str, Action, bool, bool, bool)] = &[
        ("INVLPG", invlpg, false, false, true),
        ("INVLPG of a global page", invlpg, true, false, true),
        ("INVLPG of another page", |a| a.invlpg(ptr(PAGE + 0x1000)), false, false, false),
        ("a load of CR3", load_cr3, false, false, true),
        ("a load of CR3 and a global page", load_cr3, true, false, false),
        ("CR4.PGE", toggle_pge, true, false, true),
        ("INVPCID of the page", |a| invpcid(a, 0, 0), false, true, true),
        ("INVPCID of the page that is global", |a| invpcid(a, 0, 0), true, true, false),
        ("INVPCID of the page elsewhere", |a| invpcid(a, 0, 1), false, true, false),
        ("INVPCID of the address space", |a| invpcid(a, 1, 0), false, true, true),
        ("INVPCID of another address space", |a| invpcid(a, 1, 1), false, true, false),
        ("INVPCID of all but global pages", |a| invpcid(a, 3, 0), false, true, true),
        ("INVPCID of all but global pages and a global one", |a| invpcid(a, 3, 0), true, true, false),
        ("INVPCID of everything", |a| invpcid(a, 2, 0), true, true, true),
        ("a load of CR3 with PCIDs", |a| switch(a, 0, false), false, true, true),
        ("a load of CR3 that keeps", |a| switch(a, 0, true), false, true, false),
        (
            "another PCID and back",
            |a| {
                switch(a, 1, false)?;
                switch(a, 0, true)
            },
            false,
            true,
            false,
        ),
        (
            "INVPCID from another PCID",
            |a| {
                switch(a, 1, false)?;
                invpcid(a, 1, 0)?;
                switch(a, 0, true)
            },
            false,
            true,
            true,
        ),
        ("another PCID", |a| switch(a, 1, true), false, true, true),
        ("another PCID and a global page", |a| switch(a, 1, false), true, true, false),
    ];
    for &(name, action, global, pcid, goes) in cases {
        let extra = if global { GLOBAL } else { 0 };
        let (first, second, _) = remapped(TlbKind::Adversarial, extra, pcid, action);
        assert_eq!((first, second), (1, if goes { 2 } else { 1 }), "{name}");
    }
}

#[test]
fn the_core_drops_translations() {
    for (flush, goes) in [
        (None, false),
        (Some(FlushTlb::All), true),
        (Some(FlushTlb::Physical), true),
        (Some(FlushTlb::Current), true),
        (Some(FlushTlb::Page(PAGE)), true),
        (Some(FlushTlb::Page(PAGE + 0x1000)), false),
    ] {
        let g = guest(TlbKind::Adversarial);
        g.write64(Guest::pte(PAGE), OLD | P_W);
        g.code(CODE, |a| {
            a.mov(rcx, PAGE).unwrap();
            a.mov(rsi, qword_ptr(rcx)).unwrap();
            a.cpuid().unwrap();
            a.mov(rcx, PAGE).unwrap();
            a.mov(rdi, qword_ptr(rcx)).unwrap();
            a.hlt().unwrap();
        });
        let mut v = g.long(0);
        assert_eq!(g.enter(&mut v), Exit::Cpuid { len: 2 });
        g.write64(Guest::pte(PAGE), NEW | P_W);
        if let Some(flush) = flush {
            v.flush(flush);
        }
        v.registers_mut(Groups::ALL).rip += 2;
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[7], if goes { 2 } else { 1 }, "{flush:?}");
    }
}

#[test]
fn registers_that_the_core_writes_drop_nothing() {
    // It asks for the flush that goes with them.
    let g = guest(TlbKind::Adversarial);
    g.write64(Guest::pte(PAGE), OLD | P_W);
    g.code(CODE, |a| {
        a.mov(rcx, PAGE).unwrap();
        a.mov(rsi, qword_ptr(rcx)).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    for (root, flush, expected) in [(0x1000, false, 1), (0x1008, false, 1), (0x1000, true, 2)] {
        v.registers_mut(Groups::ALL).cr3 = root;
        v.registers_mut(Groups::ALL).rip = CODE;
        if flush {
            v.flush(FlushTlb::Current);
        }
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[6], expected);
        g.write64(Guest::pte(PAGE), NEW | P_W);
    }
}

#[test]
fn rights_are_those_of_the_translation() {
    // Read-only at first: the write needs a walk, which finds the entry that allows it and the new frame; from then on
    // both kinds of access use that.
    let (_, second, _) = remapped(TlbKind::Adversarial, 0, false, |a| {
        a.mov(dword_ptr(rcx), 7)?;
        toggle_wp(a)
    });
    assert_eq!(second, 7, "the first read set no dirty bit, so that the write walked");
    // Written before: the translation allows everything, and the old frame is written.
    let g = guest(TlbKind::Adversarial);
    g.write64(Guest::pte(PAGE), OLD | P_W);
    g.code(CODE, |a| {
        a.mov(rcx, PAGE).unwrap();
        a.mov(qword_ptr(rcx), 5).unwrap();
        a.mov(rdx, Guest::pte(PAGE)).unwrap();
        a.mov(qword_ptr(rdx), 0).unwrap();
        toggle_wp(a).unwrap();
        a.mov(qword_ptr(rcx), 6).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!((g.read64(OLD), g.read64(NEW)), (6, 2), "written through an entry that is gone");
}

#[test]
fn a_page_fault_drops_its_page() {
    let g = guest(TlbKind::Adversarial);
    g.descriptors(|_| CODE + 0x800);
    g.write64(Guest::pte(PAGE), OLD | 1);
    g.code(CODE, |a| {
        a.mov(rcx, PAGE).unwrap();
        a.mov(rsi, qword_ptr(rcx)).unwrap();
        a.mov(dword_ptr(rcx), 9).unwrap();
        a.mov(rdi, qword_ptr(rcx)).unwrap();
        a.hlt().unwrap();
    });
    g.code(CODE + 0x800, |a| {
        a.mov(rax, NEW | 1).unwrap();
        a.mov(rdx, Guest::pte(PAGE)).unwrap();
        a.mov(qword_ptr(rdx), rax).unwrap();
        // Behind the store that faulted.
        a.add(rsp, 8).unwrap();
        a.add(qword_ptr(rsp), 6).unwrap();
        a.iretq().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.gpr[6], s.gpr[7], s.cr2), (1, 2, PAGE));
}

#[test]
fn code_is_fetched_from_where_it_was() {
    for (tlb, action, expected) in [
        (TlbKind::Normal, nothing as Action, 22),
        (TlbKind::Adversarial, nothing, 11),
        (TlbKind::Adversarial, invlpg, 22),
    ] {
        let g = guest(tlb);
        for (at, value) in [(OLD, 11), (NEW, 22)] {
            g.code(at, |a| {
                a.mov(esi, value).unwrap();
                a.ret().unwrap();
            });
        }
        g.write64(Guest::pte(PAGE), OLD | P_W);
        g.code(CODE, |a| {
            let mut code = || {
                a.mov(rcx, PAGE)?;
                a.call(rcx)?;
                a.mov(rax, NEW | P_W)?;
                a.mov(rdx, Guest::pte(PAGE))?;
                a.mov(qword_ptr(rdx), rax)?;
                toggle_wp(a)?;
                action(a)?;
                a.call(rcx)?;
                a.hlt()
            };
            code().unwrap();
        });
        let mut v = g.long(0);
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[6], expected, "{tlb:?}");
    }
}

#[test]
fn large_pages_go_whole() {
    let g = guest(TlbKind::Adversarial);
    // 2 MiB at DATA.
    let pde = 0x3000 + 8 * (DATA >> 21);
    g.write64(pde, DATA | P_W | 1 << 7);
    g.write64(DATA + 0x8000, 1);
    g.write64(0x60_8000, 2);
    for (target, expected) in [(DATA + 0x1f_f000, 2), (DATA + 0x20_0000, 1)] {
        g.code(CODE, |a| {
            let mut code = || {
                a.mov(rcx, DATA + 0x8000)?;
                a.mov(rsi, qword_ptr(rcx))?;
                a.mov(rax, 0x60_0000 | P_W | 1 << 7)?;
                a.mov(qword_ptr(pde), rax)?;
                toggle_wp(a)?;
                a.invlpg(ptr(target))?;
                a.mov(rdi, qword_ptr(rcx))?;
                a.hlt()
            };
            code().unwrap();
        });
        g.write64(pde, DATA | P_W | 1 << 7);
        let mut v = g.long(0);
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        let s = v.registers(Groups::ALL);
        assert_eq!((s.gpr[6], s.gpr[7]), (1, expected), "{target:#x}");
    }
}

/// Guest-physical memory behind PAGE for tests that change slots.
const DEVICE: u64 = 0x1000_0000;

#[test]
fn slots_that_went_without_a_flush_are_still_used() {
    for (tlb, flush, expected) in [
        (TlbKind::Normal, None, 2),
        (TlbKind::Adversarial, None, 1),
        (TlbKind::Adversarial, Some(FlushTlb::Current), 1),
        (TlbKind::Adversarial, Some(FlushTlb::Page(PAGE)), 1),
        (TlbKind::Adversarial, Some(FlushTlb::Physical), 2),
        (TlbKind::Adversarial, Some(FlushTlb::All), 2),
    ] {
        let g = guest(tlb);
        g.slot_at(1, DEVICE, 0x1000, 0, OLD);
        g.write64(Guest::pte(PAGE), DEVICE | P_W);
        g.code(CODE, |a| {
            a.mov(rcx, PAGE).unwrap();
            a.mov(rsi, qword_ptr(rcx)).unwrap();
            a.cpuid().unwrap();
            // No flush of the guest's reaches guest-physical translations.
            load_cr3(a).unwrap();
            a.mov(rcx, PAGE).unwrap();
            a.mov(rdi, qword_ptr(rcx)).unwrap();
            a.hlt().unwrap();
        });
        let mut v = g.long(0);
        assert_eq!(g.enter(&mut v), Exit::Cpuid { len: 2 });
        g.slot_at(1, DEVICE, 0, 0, OLD);
        g.slot_at(1, DEVICE, 0x1000, 0, NEW);
        if let Some(flush) = flush {
            v.flush(flush);
        }
        v.registers_mut(Groups::ALL).rip += 2;
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[7], expected, "{tlb:?} {flush:?}");
    }
}

#[test]
fn writes_behind_a_dirty_log_without_a_flush_are_not_marked() {
    for (tlb, flush, expected) in [
        (TlbKind::Normal, None, 1),
        (TlbKind::Adversarial, None, 0),
        (TlbKind::Adversarial, Some(FlushTlb::Physical), 1),
    ] {
        let g = guest(tlb);
        g.slot_at(1, DEVICE, 0x1000, abi::KVM_MEM_LOG_DIRTY_PAGES, OLD);
        g.write64(Guest::pte(PAGE), DEVICE | P_W);
        g.code(CODE, |a| {
            a.mov(rcx, PAGE).unwrap();
            a.inc(qword_ptr(rcx)).unwrap();
            a.cpuid().unwrap();
            load_cr3(a).unwrap();
            a.mov(rcx, PAGE).unwrap();
            a.inc(qword_ptr(rcx)).unwrap();
            a.hlt().unwrap();
        });
        let mut v = g.long(0);
        let dirty = || {
            let mut bits = 0u64;
            let arg = KvmDirtyLog { slot: 1, padding1: 0, dirty_bitmap: (&raw mut bits).expose_provenance() as u64 };
            let _ = g.memory.get_dirty_log(&arg, &MaySleep::at_entry(), |_, _| {}).unwrap();
            bits
        };
        assert_eq!(g.enter(&mut v), Exit::Cpuid { len: 2 });
        assert_eq!(dirty(), 1);
        if let Some(flush) = flush {
            v.flush(flush);
        }
        v.registers_mut(Groups::ALL).rip += 2;
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        assert_eq!((g.read64(OLD), dirty()), (3, expected), "{tlb:?} {flush:?}");
    }
}

#[test]
fn slots_that_went_are_still_walked_through() {
    // The page table itself lies in the slot.
    let g = guest(TlbKind::Adversarial);
    let (table, other) = (STACK + 0x1000, STACK + 0x2000);
    g.slot_at(1, DEVICE, 0x1000, 0, table);
    g.write64(table, OLD | P_W);
    g.write64(other, NEW | P_W);
    g.write64(0x3000 + 8 * (DATA >> 21), DEVICE | P_W);
    g.code(CODE, |a| {
        a.mov(rcx, PAGE).unwrap();
        a.mov(rsi, qword_ptr(rcx)).unwrap();
        load_cr3(a).unwrap();
        a.mov(rdi, qword_ptr(rcx)).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    let read = |v: &mut SoftVcpu<Test>| {
        v.registers_mut(Groups::ALL).rip = CODE;
        assert_eq!(g.enter(v), Exit::Hlt { len: 1 });
        let s = v.registers(Groups::ALL);
        (s.gpr[6], s.gpr[7])
    };
    assert_eq!(read(&mut v), (1, 1));
    g.slot_at(1, DEVICE, 0, 0, table);
    g.slot_at(1, DEVICE, 0x1000, 0, other);
    assert_eq!(read(&mut v), (1, 1));
    v.flush(FlushTlb::Physical);
    assert_eq!(read(&mut v), (2, 2));
}
