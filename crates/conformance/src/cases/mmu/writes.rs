//! Page tables that the guest writes while they are in use: by every width, every kind of instruction, through every
//! mapping (rows B02 to B04).
use iced_x86::{IcedError, code_asm::*};
use x86::paging::{D, P, U, W};

use super::{GVA, code::*, frame, in_every_format, in_formats, mark};
use crate::{
    Device,
    guest::{Level::*, Mode, Paging, Script, layout::FRAMES},
    runner::{Case, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("entries-written-byte-by-byte", "B02", bytes),
    case("entries-written-by-words", "B02", words),
    case("entries-written-whole", "B02", whole),
    case("entries-written-over-two", "B02", across),
    case("tables-copied-by-string-instructions", "B02 C09", strings),
    case("entries-changed-by-locked-instructions", "B02 C09", locked),
    case("entries-changed-by-exchange-of-two-words", "B02 C09", exchange_wide),
    case("entries-changed-by-arithmetic", "B02 C09", arithmetic),
    case("a-table-written-through-another-mapping", "B02 B03", alias),
    case("a-table-mapped-read-only-by-itself", "B02", read_only_table),
    case("a-large-page-that-holds-page-tables", "B02 B03", in_a_large_page),
    case("user-mode-writes-page-tables", "B02", by_the_user),
    case("a-frame-that-stops-being-a-table", "B04", stops),
    case("a-table-used-as-data-thousands-of-times", "B04", flood),
    case("a-table-that-becomes-code", "B04", becomes_code),
    case("a-write-that-changes-nothing", "B02", unchanged),
    case("the-page-that-maps-itself", "B02 B03", maps_itself),
    case("x87-and-sse-writes-to-page-tables", "B02 B04 C09", vectors),
];

const RIGHTS: u64 = P | W | U;

fn bytes(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0x00, 0x01, 0x55].map(|n| frame(m, n));
        m.map(GVA, frames[0] | RIGHTS);
        let entry = m.entry(GVA, 1);
        s.read(User, GVA, Ok(mark(0)));
        // The rights are in byte 0, the low bits of the frame's number in bytes 1 and 2.
        s.poke(entry, &[P as u8]).invlpg(GVA).read(User, GVA, Err(USER | PRESENT)).read(Kernel, GVA, Ok(mark(0)));
        s.poke(entry, &[RIGHTS as u8]).invlpg(GVA).read(User, GVA, Ok(mark(0)));
        s.poke(entry + 1, &[(frames[1] >> 8) as u8]).invlpg(GVA).read(User, GVA, Ok(mark(1)));
        s.poke(entry + 2, &[(frames[2] >> 16) as u8]).poke(entry + 1, &[(frames[2] >> 8) as u8]);
        s.invlpg(GVA).read(User, GVA, Ok(mark(0x55)));
        if m.mode != Mode::LEGACY {
            s.poke(entry + 7, &[0x80]).invlpg(GVA).execute(User, GVA, Err(FETCH | PRESENT | USER));
            s.poke(entry + 7, &[0]).invlpg(GVA).read(User, GVA, Ok(mark(0x55)));
        }
        s.poke(entry, &[0]).invlpg(GVA).read(Kernel, GVA, Err(0));
    });
}

fn words(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0x01, 0x0f].map(|n| frame(m, n));
        m.map(GVA, frames[0] | RIGHTS);
        let entry = m.entry(GVA, 1);
        for n in [0x0f_u64, 0x01, 0x0f] {
            let low = ((FRAMES + 4096 * n) | RIGHTS).to_le_bytes();
            s.poke(entry, &low[..2]).invlpg(GVA).read(User, GVA, Ok(mark(n)));
        }
        s.poke(entry + 2, &[0x40, 0]).invlpg(GVA).write(User, GVA, 7, Ok(()));
        s.poke(entry + 2, &[0x20, 0]).invlpg(GVA).read(User, GVA, Ok(mark(0x0f)));
        s.poke(entry, &[0, 0]).invlpg(GVA).read(Kernel, GVA, Err(0));
    });
}

fn whole(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | RIGHTS);
        let entry = m.entry(GVA, 1);
        for n in [1, 0, 1] {
            s.entry(entry, frames[n as usize] | RIGHTS).invlpg(GVA).read(User, GVA, Ok(mark(n)));
            s.entry(entry, 0).invlpg(GVA).read(User, GVA, Err(USER));
        }
    });
}

/// A write over two entries changes both.
fn across(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0x10, 0x20, 0x30, 0x40].map(|n| frame(m, n));
        m.map(GVA, frames[0] | RIGHTS);
        m.map(GVA + 4096, frames[1] | RIGHTS);
        let entry = m.entry(GVA, 1);
        let size = m.mode.paging().entry_bytes();
        let both = |a: u64, b: u64| {
            let mut all = a.to_le_bytes()[..size as usize].to_vec();
            all.extend(&b.to_le_bytes()[..size as usize]);
            all
        };
        let (new, old) = (both(frames[2] | RIGHTS, frames[3] | P), both(frames[0] | RIGHTS, frames[1] | RIGHTS));
        s.read(User, GVA, Ok(mark(0x10))).read(User, GVA + 4096, Ok(mark(0x20)));
        for (image, here, there) in [(&new, 0x30, 0x40), (&old, 0x10, 0x20), (&new, 0x30, 0x40)] {
            // The middle in one unaligned write, then what is left of both.
            let (from, to) = (size as usize - 2, size as usize + 2);
            s.poke(entry, &image[..2]);
            if size == 8 {
                s.poke(entry + 2, &image[2..6]);
            }
            s.poke(entry + from as u64, &image[from..to]);
            s.poke(entry + to as u64, &image[to..to + 2]);
            if size == 8 {
                s.poke(entry + to as u64 + 2, &image[to + 2..to + 6]);
            }
            s.invlpg(GVA).invlpg(GVA + 4096);
            s.read(Kernel, GVA, Ok(mark(here))).read(Kernel, GVA + 4096, Ok(mark(there)));
        }
        s.read(User, GVA + 4096, Err(USER | PRESENT));
    });
}

/// Sets ESI, EDI and ECX, and repeats an instruction; the registers' names are the same in 32-bit and 64-bit code.
fn repeat(s: &mut Script, from: u64, to: u64, count: u64, instruction: &[u8]) {
    for (opcode, value) in [(0xbe, from), (0xbf, to), (0xb9, count)] {
        s.raw(&[opcode]).raw(&(value as u32).to_le_bytes());
    }
    s.raw(&[0xfc, 0xf3]).raw(instruction); // cld; rep
}

fn strings(device: &Device) {
    in_every_format(device, |m, s| {
        let gva = m.mode.paging().span(2) * 40;
        let size = m.mode.paging().entry_bytes();
        for n in 0..8 {
            let at = frame(m, n);
            m.map(gva + 4096 * n, at | RIGHTS);
        }
        // The same table in reverse order, as a plain page.
        let (table, plain) = (m.entry(gva, 1) & !0xfff, FRAMES + 4096 * 20);
        for n in 0..8 {
            let tables = m.tables.clone();
            tables.store(&mut m.image, plain + size * n, (FRAMES + 4096 * (7 - n)) | P | U);
        }
        m.map(FRAMES + 4096 * 20, plain | P | W);
        m.map(FRAMES + 4096 * 21, (plain + 4096) | P | W);
        let all = |s: &mut Script, write: Result<(), u32>, expected: &dyn Fn(u64) -> u32| {
            for n in 0..8 {
                s.invlpg(gva + 4096 * n);
                s.read(User, gva + 4096 * n, Ok(expected(n))).write(User, gva + 4096 * n, expected(n), write);
            }
        };
        all(s, Ok(()), &mark);
        repeat(s, table, plain + 4096, 8 * size, &[0xa4]); // movsb: save
        repeat(s, plain, table, 2 * size, &[0xa5]); // movsd
        all(s, Err(WRITE | USER | PRESENT), &|n| mark(7 - n));
        repeat(s, plain + 4096, table, 8 * size, &[0xa4]);
        all(s, Ok(()), &mark);
        s.raw(&[0x31, 0xc0]); // xor eax, eax
        repeat(s, 0, table, 2 * size, &[0xab]); // stosd
        for n in 0..8 {
            s.invlpg(gva + 4096 * n).read(User, gva + 4096 * n, Err(USER));
        }
    });
}

/// One locked instruction on the entry's low dword: ESI points there.
fn locked(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | RIGHTS);
        let entry = m.entry(GVA, 1) as u32;
        let value = |n: usize, rights: u64| (frames[n] | rights) as i32;
        s.read(Kernel, GVA, Ok(mark(0)));
        let at = |a: &mut CodeAssembler, what: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
            a.mov(esi, entry)?;
            what(a)
        };
        s.code(|a| at(a, &|a| a.lock().and(dword_ptr(esi), !U as i32))).invlpg(GVA);
        s.read(User, GVA, Err(USER | PRESENT));
        s.code(|a| at(a, &|a| a.lock().or(dword_ptr(esi), U as i32))).invlpg(GVA).read(User, GVA, Ok(mark(0)));
        s.code(|a| at(a, &|a| a.lock().btr(dword_ptr(esi), 1))).invlpg(GVA);
        s.write(User, GVA, 0, Err(WRITE | USER | PRESENT));
        s.code(|a| at(a, &|a| a.lock().bts(dword_ptr(esi), 1))).invlpg(GVA).write(User, GVA, mark(0), Ok(()));
        s.code(|a| at(a, &|a| a.lock().add(dword_ptr(esi), 4096))).invlpg(GVA).read(User, GVA, Ok(mark(1)));
        s.code(|a| at(a, &|a| a.mov(eax, -4096).and_then(|()| a.lock().xadd(dword_ptr(esi), eax))));
        s.invlpg(GVA).read(User, GVA, Ok(mark(0)));
        s.code(|a| at(a, &|a| a.mov(eax, value(1, RIGHTS)).and_then(|()| a.xchg(dword_ptr(esi), eax))));
        s.invlpg(GVA).read(User, GVA, Ok(mark(1)));
        // With what the processor has set in between the comparison succeeds at the second try.
        s.code(|a| {
            at(a, &|a| {
                a.mov(eax, dword_ptr(esi))?;
                a.mov(ecx, value(0, RIGHTS))?;
                a.lock().cmpxchg(dword_ptr(esi), ecx)
            })
        });
        s.invlpg(GVA).read(User, GVA, Ok(mark(0)));
        // One that fails changes nothing.
        s.code(|a| {
            at(a, &|a| {
                a.xor(eax, eax)?;
                a.mov(ecx, value(1, RIGHTS))?;
                a.lock().cmpxchg(dword_ptr(esi), ecx)
            })
        });
        s.invlpg(GVA).read(User, GVA, Ok(mark(0)));
        s.code(|a| at(a, &|a| a.lock().btc(dword_ptr(esi), 0))).invlpg(GVA).read(User, GVA, Err(USER));
    });
}

fn exchange_wide(device: &Device) {
    in_formats(device, &[Paging::Pae, Paging::Long], |m, s| {
        let frames = [0, 1, 2].map(|n| frame(m, n));
        // Two entries that CMPXCHG16B can change at once.
        m.map(GVA, frames[0] | RIGHTS);
        m.map(GVA + 4096, frames[1] | RIGHTS);
        let entry = m.entry(GVA, 1);
        s.read(User, GVA, Ok(mark(0))).read(User, GVA + 4096, Ok(mark(1)));
        for n in [2u64, 0, 2] {
            let new = frames[n as usize] | RIGHTS;
            s.code(|a| {
                a.mov(esi, entry as u32)?;
                a.mov(eax, dword_ptr(esi))?;
                a.mov(edx, dword_ptr(esi + 4))?;
                a.mov(ebx, new as u32)?;
                a.xor(ecx, ecx)?;
                a.lock().cmpxchg8b(qword_ptr(esi))
            });
            s.invlpg(GVA).read(User, GVA, Ok(mark(n))).read(User, GVA + 4096, Ok(mark(1)));
        }
        if m.mode == Mode::LONG {
            s.code(|a| {
                a.mov(rsi, entry)?;
                a.mov(rax, qword_ptr(rsi))?;
                a.mov(rdx, qword_ptr(rsi + 8))?;
                a.mov(rbx, frames[1] | RIGHTS)?;
                a.mov(rcx, frames[0] | P)?;
                a.lock().cmpxchg16b(xmmword_ptr(rsi))
            });
            s.invlpg(GVA).invlpg(GVA + 4096).read(User, GVA, Ok(mark(1))).read(Kernel, GVA + 4096, Ok(mark(0)));
            s.read(User, GVA + 4096, Err(USER | PRESENT));
        }
    });
}

fn arithmetic(device: &Device) {
    in_every_format(device, |m, s| {
        let frames: Vec<_> = (0..4).map(|n| frame(m, n)).collect();
        m.map(GVA, frames[0] | RIGHTS);
        let entry = m.entry(GVA, 1) as u32;
        s.read(User, GVA, Ok(mark(0)));
        s.code(|a| a.add(dword_ptr(entry), 0x3000)).invlpg(GVA).read(User, GVA, Ok(mark(3)));
        s.code(|a| a.sub(dword_ptr(entry), 0x2000)).invlpg(GVA).read(User, GVA, Ok(mark(1)));
        s.code(|a| a.xor(dword_ptr(entry), 0x2000 | U as i32)).invlpg(GVA).read(Kernel, GVA, Ok(mark(3)));
        s.read(User, GVA, Err(USER | PRESENT));
        s.code(|a| a.or(byte_ptr(entry), U as i32)).invlpg(GVA).read(User, GVA, Ok(mark(3)));
        s.code(|a| a.dec(dword_ptr(entry))).invlpg(GVA).read(User, GVA, Err(USER));
        s.code(|a| a.inc(dword_ptr(entry))).invlpg(GVA).read(User, GVA, Ok(mark(3)));
        s.code(|a| a.and(word_ptr(entry), 0xcfff)).invlpg(GVA).read(User, GVA, Ok(mark(0)));
        s.code(|a| a.not(byte_ptr(entry)).and_then(|()| a.not(byte_ptr(entry)))).invlpg(GVA);
        s.read(User, GVA, Ok(mark(0)));
        s.code(|a| a.shl(dword_ptr(entry), 1)).invlpg(GVA).read(User, GVA, Err(USER));
        s.code(|a| a.shr(dword_ptr(entry), 1)).invlpg(GVA).read(User, GVA, Ok(mark(0)));
    });
}

/// A second gva for the frame that holds the table.
fn alias(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        let gva = m.mode.paging().span(2) * 40;
        m.map(gva, frames[0] | RIGHTS);
        let entry = m.entry(gva, 1);
        m.map(GVA, (entry & !0xfff) | P | W);
        let through = GVA + (entry & 0xfff);
        for n in [1, 0, 1] {
            s.read(User, gva, Ok(mark(1 - n)));
            s.entry(through, frames[n as usize] | RIGHTS).invlpg(gva).read(User, gva, Ok(mark(n)));
        }
        // Both mappings show the same memory, with what the processor has set.
        s.write(User, gva, mark(1), Ok(())).entry_is(through, D, D).entry_is(entry, D, D);
    });
}

fn read_only_table(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        let gva = m.mode.paging().span(2) * 40;
        m.map(gva, at | RIGHTS);
        let entry = m.entry(gva, 1);
        let mapping = m.entry(entry & !0xfff, 1);
        s.read(User, gva, Ok(mark(0)));
        // The guest's own protection is the guest's page fault.
        s.entry(mapping, (entry & !0xfff) | P).invlpg(entry).write(Kernel, entry, 0, Err(WRITE | PRESENT));
        s.entry(mapping, (entry & !0xfff) | P | W).invlpg(entry).write(Kernel, entry, 0, Ok(()));
        s.invlpg(gva).read(User, gva, Err(USER));
    });
}

fn in_a_large_page(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let (window, gva) = (large * 30, large * 40);
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(gva, frames[0] | RIGHTS);
        let (directory, entry) = (m.entry(gva, 2), m.entry(gva, 1));
        // The window shows the memory that holds the tables.
        let base = entry & !(large - 1);
        m.map_large(window, base | P | W);
        for n in [1, 0, 1] {
            s.read(User, gva, Ok(mark(1 - n))).read(Kernel, window + 8, Ok(0));
            s.entry(window + entry - base, frames[n as usize] | RIGHTS).invlpg(gva).read(User, gva, Ok(mark(n)));
        }
        // The directory, too, and what is no table beside them.
        s.entry(window + directory - base, 0).invlpg(gva).read(User, gva, Err(USER));
        s.entry(window + directory - base, (entry & !0xfff) | RIGHTS).read(User, gva, Ok(mark(1)));
    });
}

fn by_the_user(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        let gva = m.mode.paging().span(2) * 40;
        m.map(gva, frames[0] | RIGHTS);
        let entry = m.entry(gva, 1);
        m.map(GVA, (entry & !0xfff) | RIGHTS);
        let through = GVA + (entry & 0xfff);
        for n in [1, 0, 1] {
            s.read(User, gva, Ok(mark(1 - n)));
            s.write(User, through, (frames[n as usize] | RIGHTS) as u32, Ok(()));
            s.invlpg(gva).read(User, gva, Ok(mark(n)));
        }
    });
}

/// The table goes, and its frame is a page like any other.
fn stops(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        let gva = m.mode.paging().span(2) * 40;
        m.map(gva, at | RIGHTS);
        let (directory, table) = (m.entry(gva, 2), m.entry(gva, 1) & !0xfff);
        m.map(GVA, table | RIGHTS);
        s.read(User, gva, Ok(mark(0)));
        s.entry(directory, 0).cr3(m.root).read(User, gva, Err(USER));
        for n in 0..16 {
            s.write(User, GVA + 4 * n, mark(n), Ok(())).read(Kernel, table + 4 * n, Ok(mark(n)));
        }
        s.code(|a| {
            // An instruction that no emulator of page-table writes needs to know.
            a.mov(edi, table as u32)?;
            a.db(&[0x0f, 0xc7, 0x0f]) // cmpxchg8b [edi], without LOCK
        });
        // A table again, somewhere else.
        s.poke(GVA, &((at | P | U) as u32).to_le_bytes()).poke(GVA + 4, &[0; 4]);
        s.entry(directory, table | RIGHTS).read(User, gva, Ok(mark(0))).write(
            User,
            gva,
            0,
            Err(WRITE | USER | PRESENT),
        );
    });
}

/// More writes than any table gets: they must still all arrive.
fn flood(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        let gva = m.mode.paging().span(2) * 40;
        m.map(gva, at | RIGHTS);
        let entry = m.entry(gva, 1);
        s.read(User, gva, Ok(mark(0)));
        // The second half of the table counts up, one dword after the other, many times; the first entry stays.
        let first = (entry & !0xfff) as u32 + 2048;
        s.code(|a| {
            let (mut again, mut next) = (a.create_label(), a.create_label());
            a.mov(ecx, 10)?;
            a.set_label(&mut again)?;
            a.mov(edi, first)?;
            a.set_label(&mut next)?;
            a.add(dword_ptr(edi), 4)?;
            a.add(edi, 4)?;
            a.test(edi, 2047)?;
            a.jne(next)?;
            a.dec(ecx)?;
            a.jne(again)
        });
        s.read(Kernel, u64::from(first), Ok(40)).read(Kernel, u64::from(first) + 2044, Ok(40));
        s.invlpg(gva).read(User, gva, Ok(mark(0)));
        let other = frame(m, 1);
        s.entry(entry, other | RIGHTS).invlpg(gva).read(User, gva, Ok(mark(1)));
    });
}

fn becomes_code(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        let gva = m.mode.paging().span(2) * 40;
        m.map(gva, at | RIGHTS);
        let (directory, table) = (m.entry(gva, 2), m.entry(gva, 1) & !0xfff);
        m.map(GVA, table | RIGHTS);
        s.read(User, gva, Ok(mark(0))).entry(directory, 0).invlpg(gva);
        for round in 1..4u32 {
            // mov eax, round; int 0x80
            s.poke(GVA, &[0xb8, round as u8, 0, 0]).poke(GVA + 4, &[0, 0xcd, 0x80, 0]);
            s.executes(User, GVA, round).executes(Kernel, GVA, round);
        }
    });
}

fn unchanged(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        m.map(GVA, at | RIGHTS | x86::paging::A | D);
        let entry = m.entry(GVA, 1);
        s.read(User, GVA, Ok(mark(0)));
        for _ in 0..8 {
            s.entry(entry, at | RIGHTS | x86::paging::A | D).read(User, GVA, Ok(mark(0)));
            s.entry_is(entry, 0xffff_ffff, at | RIGHTS | x86::paging::A | D).write(User, GVA, mark(0), Ok(()));
        }
    });
}

/// The table that maps its own frame, writable: it can be changed only through itself.
fn maps_itself(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        let gva = m.mode.paging().span(2) * 40;
        m.map(gva, frames[0] | RIGHTS);
        let table = m.entry(gva, 1) & !0xfff;
        let own = gva + 4096 * 7;
        m.map(own, table | P | W);
        // Take the other mapping away first.
        let identity = m.entry(table, 1);
        s.entry(identity, 0).invlpg(table).read(Kernel, table, Err(0));
        for n in [1, 0, 1] {
            s.read(User, gva, Ok(mark(1 - n)));
            s.entry(own, frames[n as usize] | RIGHTS).invlpg(gva).read(User, gva, Ok(mark(n)));
        }
        // And at last it takes its own mapping away.
        let size = m.mode.paging().entry_bytes();
        s.poke(own + 7 * size, &[0; 4]).invlpg(own).read(Kernel, own, Err(0)).read(User, gva, Ok(mark(1)));
    });
}

/// What no hypervisor emulates needs the frame unprotected for a moment.
fn vectors(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        m.cr4 |= crate::guest::cr4::OSFXSR;
        m.map(GVA, frames[0] | RIGHTS);
        let entry = m.entry(GVA, 1);
        // 16 bytes of the table, which begin at an entry whose index is even: GVA's and those behind it.
        let size = m.mode.paging().entry_bytes() as usize;
        let image = FRAMES + 4096 * 5;
        m.map(FRAMES + 4096 * 5, image | P | W);
        for n in 0..2u64 {
            m.image.write(image + 16 * n, &(frames[n as usize] | RIGHTS).to_le_bytes()[..size]);
        }
        s.read(User, GVA, Ok(mark(0))).code(|a| a.fninit());
        for n in [1u64, 0, 1] {
            s.code(|a| {
                a.movups(xmm0, xmmword_ptr(image + 16 * n))?;
                a.movaps(xmmword_ptr(entry), xmm0)
            });
            s.invlpg(GVA).read(User, GVA, Ok(mark(n))).read(Kernel, GVA + 4096, Err(0));
        }
        for n in [0u64, 1] {
            s.code(|a| {
                a.fild(qword_ptr(image + 16 * n))?;
                a.fistp(qword_ptr(entry))
            });
            s.invlpg(GVA).read(User, GVA, Ok(mark(n)));
        }
    });
}
