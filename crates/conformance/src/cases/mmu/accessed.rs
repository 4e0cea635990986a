//! The accessed and dirty bits (SDM vol. 3, 4.8).
use x86::paging::{A, D, P, PS, U, W};

use super::{GVA, code::*, frame, in_every_format, mark};
use crate::{
    Device,
    guest::{Level::*, Machine, Mode, Paging, Script, layout::FRAMES},
    runner::{Case, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("reads-set-accessed-and-writes-dirty", "B01", reads_and_writes),
    case("every-level-is-accessed", "B01", every_level),
    case("large-pages-have-them-in-the-directory", "B01", large),
    case("an-access-that-faults-leaves-no-dirty-bit", "B01", faults),
    case("cleared-bits-are-set-again-after-a-flush", "B01 B02 B08", set_again),
    case("a-write-after-a-read-sets-dirty", "B01 B02", write_after_read),
    case("fetches-and-system-accesses-set-accessed", "B01", implicit),
    case("their-updates-are-in-the-dirty-log", "A17 B01", in_the_dirty_log),
];

fn reads_and_writes(device: &Device) {
    in_every_format(device, |m, s| {
        for (n, level) in [Kernel, User].into_iter().enumerate() {
            let (read, write) = (GVA + 8192 * n as u64, GVA + 8192 * n as u64 + 4096);
            let at = frame(m, 0);
            m.map(read, at | P | W | U);
            m.map(write, at | P | W | U);
            let (r, w) = (m.entry(read, 1), m.entry(write, 1));
            s.entry_is(r, A | D, 0).entry_is(w, A | D, 0);
            s.read(level, read, Ok(mark(0))).write(level, write, mark(0), Ok(()));
            s.entry_is(r, A | D, A).entry_is(w, A | D, A | D);
        }
    });
}

fn every_level(device: &Device) {
    in_every_format(device, |m, s| {
        let top = if m.mode == Mode::PAE { 2 } else { m.mode.paging().levels() };
        let gva = m.mode.paging().span(top) * 3;
        let at = frame(m, 0);
        m.map(gva, at | P | W);
        let entries: Vec<_> = (1..=top).map(|level| m.entry(gva, level)).collect();
        for entry in &entries {
            s.entry_is(*entry, A, 0);
        }
        s.read(Kernel, gva, Ok(mark(0)));
        for entry in &entries {
            s.entry_is(*entry, A, A);
        }
    });
}

fn large(device: &Device) {
    in_every_format(device, |m, s| {
        m.map_large(0x4000_0000, 0x40_0000 | P | W | U);
        let entry = m.entry(0x4000_0000, 2);
        s.read(User, 0x4000_5000, Ok(0)).entry_is(entry, A | D | PS, A | PS);
        s.write(User, 0x4000_6000, 1, Ok(())).entry_is(entry, A | D | PS, A | D | PS);
    });
}

/// A walk may set A above the entry that refuses, but D tells of a write that happened, and what is not present has
/// neither.
fn faults(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        m.map(GVA, at | P | U);
        m.map(GVA + 4096, at | P | W);
        m.map(GVA + 8192, at | W | U);
        let entries = [GVA, GVA + 4096, GVA + 8192].map(|gva| m.entry(gva, 1));
        s.write(User, GVA, 0, Err(WRITE | USER | PRESENT)).entry_is(entries[0], D, 0);
        s.write(User, GVA + 4096, 0, Err(WRITE | USER | PRESENT)).entry_is(entries[1], D, 0);
        s.write(Kernel, GVA + 8192, 0, Err(WRITE)).entry_is(entries[2], A | D, 0);
        s.write(Kernel, GVA, 0, Err(WRITE | PRESENT)).entry_is(entries[0], D, 0);
    });
}

fn set_again(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        m.map(GVA, at | P | W);
        let entry = m.entry(GVA, 1);
        for round in 0..4 {
            s.write(Kernel, GVA, mark(round), Ok(())).entry_is(entry, A | D, A | D);
            s.entry(entry, at | P | W);
            if round % 2 == 0 {
                s.invlpg(GVA);
            } else {
                s.cr3(m.root);
            }
            s.entry_is(entry, A | D, 0).read(Kernel, GVA, Ok(mark(round))).entry_is(entry, A | D, A);
        }
    });
}

/// The translation that the read left must not let the write pass unseen.
fn write_after_read(device: &Device) {
    in_every_format(device, |m, s| {
        for n in 0..8 {
            let at = frame(m, n);
            m.map(GVA + 4096 * n, at | P | W | U);
            let entry = m.entry(GVA + 4096 * n, 1);
            s.read(User, GVA + 4096 * n, Ok(mark(n))).entry_is(entry, A | D, A);
            s.write(if n % 2 == 0 { User } else { Kernel }, GVA + 4096 * n, 1, Ok(())).entry_is(entry, A | D, A | D);
        }
    });
}

fn implicit(device: &Device) {
    in_every_format(device, |m, s| {
        // Code, then a stack, then a descriptor table at addresses that nothing else touches.
        m.image.write(FRAMES, &[0xcd, 0x80]);
        m.map(GVA, FRAMES | P | U);
        m.map(GVA + 4096, (FRAMES + 4096) | P | W);
        let (code, stack) = (m.entry(GVA, 1), m.entry(GVA + 4096, 1));
        s.execute(User, GVA, Ok(())).entry_is(code, A | D, A);
        s.entry_is(stack, A | D, 0);
        s.code(|a| {
            use iced_x86::code_asm::*;
            if m.mode == Mode::LONG {
                a.mov(rbp, rsp)?;
                a.mov(rsp, GVA + 8192)?;
                a.push(rax)?;
                a.mov(rsp, rbp)
            } else {
                a.mov(ebp, esp)?;
                a.mov(esp, GVA as u32 + 8192)?;
                a.push(eax)?;
                a.mov(esp, ebp)
            }
        });
        s.entry_is(stack, A | D, A | D);
    });
}

/// The processor's own writes to page tables are writes to memory.
fn in_the_dirty_log(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let mut s = Script::new(&mut m);
        // A table of its own, so that nothing else writes its page.
        let gva = paging.span(2) * 300;
        let at = frame(&mut m, 0);
        m.map(gva, at | P | W);
        s.read(Kernel, gva, Ok(mark(0)));
        let table = m.entry(gva, 1) & !0xfff;
        let live = m.start(device);
        let high = live.memory.part(0x10_0000, 0xf0_0000);
        live.vm.set_slot(1, abi::KVM_MEM_LOG_DIRTY_PAGES, 0x10_0000, high).expect("logging");
        live.script(s);
        let dirty = live.vm.dirty(1, 0xf00);
        assert!(dirty.contains(&((table - 0x10_0000) as usize >> 12)), "{paging:?}: {table:#x} is not in {dirty:x?}");
    }
}
