//! Unusual but legal shapes of page tables, and CR3 (rows B03, B05, B06, B11).
use x86::paging::{A, P, U, W};

use super::{ACCESSED_POINTERS, GVA, NESTED_AMD, code::*, frame, in_every_format, in_formats, mark};
use crate::{
    Device,
    guest::{Level::*, Machine, Mode, Paging, Script, cr0, layout::FRAMES},
    runner::{Case, Target, case},
    vm::Exit,
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("a-directory-that-is-its-own-table", "B02 B03", recursive),
    case("one-page-at-every-level", "B02 B03", every_level),
    case("one-table-under-two-entries", "B02 B03", shared_table),
    case("one-table-under-entries-with-other-rights", "B02 B03", shared_with_rights),
    case("the-same-frame-as-table-and-as-data", "B02", table_and_data),
    case("page-directory-pointers-are-loaded-with-cr3", "B05", pdptes).inapplicable(
        NESTED_AMD,
        "AMD's nested paging reads the page-directory pointers in each walk (APM vol. 2, 15.25.10)",
    ),
    case("page-directory-pointers-are-loaded-with-cr0", "B05", pdptes_by_paging)
        .fails_below(NESTED_AMD, ACCESSED_POINTERS),
    case("reserved-bits-of-page-directory-pointers", "B05", pdpte_reserved).inapplicable(
        NESTED_AMD,
        "AMD's nested paging does not look at the page-directory pointers when CR3 is loaded (APM vol. 2, 15.25.10)",
    ),
    case("a-cr3-without-memory-harms-only-its-guest", "B06", no_memory),
    case("a-table-without-memory-harms-only-its-guest", "B06", table_without_memory),
    case("cr3-keeps-its-flags", "B01 C05", cr3_flags),
    case("hundreds-of-address-spaces", "B02 B11", many_spaces),
    case("hundreds-of-address-spaces-in-few-shadow-pages", "B11", many_spaces_bounded),
    case("the-number-of-shadow-pages-can-be-set", "B11", nr_mmu_pages),
    case("mappings-of-one-frame-by-the-hundred", "B03", many_mappings),
    case("addresses-at-the-ends-of-the-space", "B01", ends),
    case("an-address-that-is-not-canonical", "B01", not_canonical),
    case("a-stack-address-that-is-not-canonical", "B01", not_canonical_stack).fails_below(
        Target::IN_QEMU,
        "QEMU's TCG raises #GP for it, whatever the segment (get_physical_address in excp_helper.c)",
    ),
];

/// The last entry of the directory is the directory: its tables appear as pages.
fn recursive(device: &Device) {
    in_formats(device, &[Paging::Legacy, Paging::Long], |m, s| {
        let paging = m.mode.paging();
        let (levels, size) = (paging.levels(), paging.entry_bytes());
        let slots = 4096 / size;
        let top = paging.span(levels);
        let slot = slots - 2;
        let root = m.root;
        let tables = m.tables.clone();
        tables.store(&mut m.image, root + slot * size, root | P | W);
        // What an address looks like through the window: one level less.
        let mut window = slot * top;
        if paging == Paging::Long {
            window |= 0xffff_0000_0000_0000;
        }
        let shifted =
            |gva: u64| window | (gva & 0xffff_ffff_ffff) >> if paging == Paging::Long { 9 } else { 10 } & !(size - 1);
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | P | W | U);
        let entry = m.entry(GVA, 1);
        for n in [1, 0, 1] {
            s.read(User, GVA, Ok(mark(1 - n))).entry_is(shifted(GVA), A, A);
            s.entry(shifted(GVA), frames[n as usize] | P | W | U).invlpg(GVA).read(User, GVA, Ok(mark(n)));
            s.entry_is(entry, !0xfff, frames[n as usize]);
        }
        // The entry of the window itself, by the window.
        s.entry_is(shifted(shifted(GVA)), P, P);
        s.entry(shifted(GVA), 0).invlpg(GVA).read(User, GVA, Err(USER));
    });
}

/// In long mode one page can be the table of all four levels at once: the entry at index 0 maps the page itself.
fn every_level(device: &Device) {
    in_formats(device, &[Paging::Long], |m, s| {
        let page = m.tables.table();
        let slot = 300u64;
        let root = m.root;
        let tables = m.tables.clone();
        tables.store(&mut m.image, page + 8 * slot, page | P | W);
        let data = frame(m, 0);
        tables.store(&mut m.image, page + 8 * 5, data | P | W);
        tables.store(&mut m.image, root + 8 * slot, page | P | W);
        let high = 0xffff_0000_0000_0000;
        let gva = |a: u64, b: u64, c: u64, d: u64| high | a << 39 | b << 30 | c << 21 | d << 12;
        s.read(Kernel, gva(slot, slot, slot, slot) + 8 * 5, Ok((data | P | W) as u32));
        s.read(Kernel, gva(slot, slot, slot, 5), Ok(mark(0)));
        // As a level-2 table its fifth entry is a table, too: the data page, which maps nothing (its dword is even).
        s.read(Kernel, gva(slot, slot, 5, 0), Err(0));
        s.entry(gva(slot, slot, slot, slot) + 8 * 6, (data + 4096) | P | W);
        s.write(Kernel, gva(slot, slot, slot, 6), 77, Ok(())).read(Kernel, gva(slot, slot, slot, 6), Ok(77));
        s.poke(gva(slot, slot, slot, slot) + 8 * slot, &[0]).cr3(m.root);
        s.read(Kernel, gva(slot, slot, slot, 6), Err(0));
    });
}

fn shared_table(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(large * 40, frames[0] | P | W | U);
        let (directory, entry) = (m.entry(large * 40, 2), m.entry(large * 40, 1));
        let size = m.mode.paging().entry_bytes();
        let tables = m.tables.clone();
        tables.store(&mut m.image, directory + size, (entry & !0xfff) | P | W | U);
        for n in [1, 0, 1] {
            s.read(User, large * 40, Ok(mark(1 - n))).read(User, large * 41, Ok(mark(1 - n)));
            s.entry(entry, frames[n as usize] | P | W | U).cr3(m.root);
            s.read(User, large * 41, Ok(mark(n))).read(User, large * 40, Ok(mark(n)));
        }
    });
}

/// The shadow of a table depends on the rights above it: a child may be used again only under the same.
fn shared_with_rights(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let at = frame(m, 0);
        m.map(large * 40, at | P | W | U);
        let (directory, entry) = (m.entry(large * 40, 2), m.entry(large * 40, 1));
        let size = m.mode.paging().entry_bytes();
        for (n, rights) in [P | U, P | W, P].into_iter().enumerate() {
            let tables = m.tables.clone();
            tables.store(&mut m.image, directory + size * (n as u64 + 1), (entry & !0xfff) | rights);
        }
        for _ in 0..2 {
            s.write(User, large * 40, mark(0), Ok(()));
            s.write(User, large * 41, 0, Err(WRITE | USER | PRESENT)).read(User, large * 41, Ok(mark(0)));
            s.read(User, large * 42, Err(USER | PRESENT)).write(Kernel, large * 42, mark(0), Ok(()));
            s.write(Kernel, large * 43, 0, Err(WRITE | PRESENT)).read(Kernel, large * 43, Ok(mark(0)));
        }
        s.entry(entry, 0).cr3(m.root);
        for n in 0..4 {
            s.read(Kernel, large * (40 + n), Err(0));
        }
    });
}

/// A frame that is mapped as data, for the user, while it is a table.
fn table_and_data(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let frames = [0, 1].map(|n| frame(m, n));
        let page = frames[1];
        m.map(GVA, page | P | W | U);
        m.map(large * 40, frames[0] | P | W);
        let directory = m.entry(large * 40, 2);
        let size = m.mode.paging().entry_bytes();
        // First data, then a table whose tenth entry the user writes, then data again.
        for n in 0..3 {
            s.write(User, GVA + 10 * size, (frames[0] | P | W | U) as u32, Ok(()));
            s.entry(directory, page | P | W | U).cr3(m.root).read(User, large * 40 + 10 * 4096, Ok(mark(0)));
            s.write(User, GVA + 10 * size, 0, Ok(())).invlpg(large * 40 + 10 * 4096);
            s.read(User, large * 40 + 10 * 4096, Err(USER));
            s.entry(directory, 0).invlpg(large * 40 + 10 * 4096);
            s.write(User, GVA, n, Ok(())).read(User, GVA, Ok(n));
        }
    });
}

fn pdptes(device: &Device) {
    in_formats(device, &[Paging::Pae], |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        let gva = 0x8000_0000;
        m.map(gva, frames[0] | P | W | U);
        let other = m.another_root();
        let first = m.root;
        m.root = other;
        m.change(gva, 3, !0, 0);
        m.map(gva, frames[1] | P | W | U);
        let second_pointer = m.image.read64(m.entry(gva, 3));
        m.root = first;
        let pointer = m.entry(gva, 3);
        let value = m.image.read64(pointer);
        s.read(User, gva, Ok(mark(0)));
        // Changes in memory do not matter until CR3 is loaded, whatever is flushed.
        s.poke(pointer, &(second_pointer as u32).to_le_bytes()).invlpg(gva).read(User, gva, Ok(mark(0)));
        s.cr3(first).read(User, gva, Ok(mark(1)));
        s.poke(pointer, &[0; 4]).invlpg(gva).read(User, gva, Ok(mark(1)));
        s.cr3(first).read(User, gva, Err(USER));
        s.poke(pointer, &(value as u32).to_le_bytes()).invlpg(gva).read(User, gva, Err(USER));
        s.cr3(first).read(User, gva, Ok(mark(0)));
    });
}

/// Turning paging on, or changing CR4.PAE, PSE or PGE, loads them as well.
fn pdptes_by_paging(device: &Device) {
    in_formats(device, &[Paging::Pae], |m, s| {
        let at = frame(m, 0);
        let gva = 0x8000_0000;
        m.map(gva, at | P | W | U);
        let pointer = m.entry(gva, 3);
        let value = m.image.read64(pointer) as u32;
        for _ in 0..2 {
            s.read(User, gva, Ok(mark(0)));
            s.control(0, cr0::PG, 0).poke(pointer, &[0; 4]).control(0, 0, cr0::PG).read(User, gva, Err(USER));
            s.control(0, cr0::PG, 0).poke(pointer, &value.to_le_bytes()).control(0, 0, cr0::PG);
        }
        s.read(User, gva, Ok(mark(0)));
    });
}

fn pdpte_reserved(device: &Device) {
    in_formats(device, &[Paging::Pae], |m, s| {
        let bad = m.another_root();
        let value = m.image.read64(bad);
        for bit in [1, 2, 5, 6, 7, 8] {
            s.poke(bad + 24, &((value as u32 & !0xfff) | 1 | 1 << bit).to_le_bytes());
            let mut load = vec![0xb8];
            load.extend((bad as u32).to_le_bytes());
            load.extend([0x0f, 0x22, 0xd8]);
            s.raises(&format!("bit {bit} of a pointer"), &load, 13, 0);
            // CR3 has not changed.
            s.check("CR3", &[0x0f, 0x20, 0xd8], !0, m.root as u32);
        }
    });
}

/// Runs a guest that ruins itself, and then another one, which is well.
fn ruin(device: &Device, m: &Machine) {
    let live = m.start(device);
    let exit = crate::vm::while_running(&live.vcpu, |running| {
        // What the processor makes of it differs (a triple fault, an exit that the client cannot serve, or a guest
        // that is stuck); the call comes back in any case.
        let end = std::time::Instant::now() + std::time::Duration::from_millis(300);
        while !running.done() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        running.stop();
    });
    // Loading page-directory pointers from nowhere may be refused, with CR3 as it was.
    let refused = live.events().first().is_some_and(|event| event.vector == 13);
    assert!(exit.0 != Ok(Exit::Hlt) || refused, "a guest without page tables has reached its end");
    let mut good = Machine::new(m.mode);
    let mut s = Script::new(&mut good);
    let at = frame(&mut good, 0);
    good.map(GVA, at | P);
    s.read(Kernel, GVA, Ok(mark(0)));
    s.run(good, device);
    drop(live);
}

fn no_memory(device: &Device) {
    for paging in Paging::ALL {
        for root in [0xfee_0000_u64, 0xffff_f000, 0xf000_0000, 0x100_0000] {
            let mut m = Machine::new(Mode::Paged(paging));
            m.code(|a| {
                use iced_x86::code_asm::*;
                if paging == Paging::Long {
                    a.mov(rax, root)?;
                    a.mov(cr3, rax)?;
                } else {
                    a.mov(eax, root as u32)?;
                    a.mov(cr3, eax)?;
                }
                a.nop()?;
                a.hlt()
            });
            ruin(device, &m);
        }
    }
}

fn table_without_memory(device: &Device) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let entry = m.entry(0, 2) as u32;
        m.code(|a| {
            use iced_x86::code_asm::*;
            // The code's own table goes.
            a.mov(dword_ptr(entry), 0xf000_0003u32 as i32)?;
            if paging == Paging::Long {
                a.mov(rax, cr3)?;
                a.mov(cr3, rax)?;
            } else {
                a.mov(eax, cr3)?;
                a.mov(cr3, eax)?;
            }
            a.nop()?;
            a.hlt()
        });
        ruin(device, &m);
    }
}

fn cr3_flags(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        m.map(GVA, at | P);
        for flags in [0x18, 0x08, 0x10, 0] {
            s.cr3(m.root | flags).check("CR3", &[0x0f, 0x20, 0xd8], !0, (m.root | flags) as u32);
            s.read(Kernel, GVA, Ok(mark(0)));
        }
    });
}

/// `count` roots, each with a page of its own at one address.
fn spaces(m: &mut Machine, count: u64) -> Vec<u64> {
    let gva = m.mode.paging().span(m.mode.paging().levels()) * 2;
    let first = m.root;
    // Beyond what the standard machine leaves for tables.
    m.tables = crate::guest::tables::Tables::new(m.mode.paging(), 0x40_0000);
    (0..count)
        .map(|n| {
            let at = frame(m, n);
            m.root = first;
            m.root = m.another_root();
            m.map(gva, at | P | W | U);
            std::mem::replace(&mut m.root, first)
        })
        .collect()
}

fn visit_all(device: &Device, bound: Option<u64>) {
    for paging in Paging::ALL {
        let mut m = Machine::new(Mode::Paged(paging));
        let roots = spaces(&mut m, 300);
        let gva = paging.span(paging.levels()) * 2;
        // A table of the roots; the guest visits all, three times, and adds up what it finds.
        let table = FRAMES + 0x1f_0000;
        for (n, root) in roots.iter().enumerate() {
            m.image.write32(table + 4 * n as u64, *root as u32);
        }
        for page in 0..2 {
            m.map(table + 4096 * page, (table + 4096 * page) | P);
        }
        m.code(|a| {
            use iced_x86::code_asm::*;
            let (mut round, mut next) = (a.create_label(), a.create_label());
            a.mov(ebp, 3)?;
            a.xor(ecx, ecx)?;
            a.set_label(&mut round)?;
            a.mov(esi, table as u32)?;
            a.set_label(&mut next)?;
            a.mov(eax, dword_ptr(esi))?;
            if paging == Paging::Long {
                a.mov(cr3, rax)?;
                a.mov(rdi, gva)?;
                a.add(ecx, dword_ptr(rdi))?;
                a.inc(dword_ptr(rdi))?;
            } else {
                a.mov(cr3, eax)?;
                a.add(ecx, dword_ptr(gva as u32))?;
                a.inc(dword_ptr(gva as u32))?;
            }
            a.add(esi, 4)?;
            a.cmp(esi, table as i32 + 4 * 300)?;
            a.jne(next)?;
            a.dec(ebp)?;
            a.jne(round)?;
            a.hlt()
        });
        let live = m.start(device);
        if let Some(bound) = bound {
            live.vm.fd.number(abi::KVM_SET_NR_MMU_PAGES, bound).expect("KVM_SET_NR_MMU_PAGES");
        }
        live.vcpu.run_to_hlt();
        let sum = (0..300).fold(0u32, |sum, n| sum.wrapping_add(mark(n).wrapping_mul(3)).wrapping_add(3));
        assert_eq!(live.vcpu.regs().rcx as u32, sum, "{paging:?}");
        assert_eq!(live.memory.u32((FRAMES + 4096 * 299) as usize), mark(299) + 3);
    }
}

fn many_spaces(device: &Device) {
    visit_all(device, None);
}

fn many_spaces_bounded(device: &Device) {
    visit_all(device, Some(64));
}

fn nr_mmu_pages(device: &Device) {
    let vm = Machine::new(Mode::LONG).start(device).vm;
    let get = || vm.fd.number(abi::KVM_GET_NR_MMU_PAGES, 0).expect("KVM_GET_NR_MMU_PAGES");
    assert!(get() > 0, "the default comes from the memory's size");
    // Fewer than 64 would not let a guest run (KVM_MIN_ALLOC_MMU_PAGES).
    assert_eq!(vm.fd.number(abi::KVM_SET_NR_MMU_PAGES, 63), Err(crate::Errno::EINVAL));
    for pages in [64, 1000, 65] {
        assert_eq!(vm.fd.number(abi::KVM_SET_NR_MMU_PAGES, pages), Ok(0));
        assert_eq!(get() as u64, pages);
    }
}

/// A frame with hundreds of mappings, all of which must lose their right to write.
fn many_mappings(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        for n in 0..400 {
            m.map(GVA + 4096 * n, at | P | W);
        }
        s.code(|a| {
            use iced_x86::code_asm::*;
            let mut next = a.create_label();
            a.mov(edi, GVA as u32)?;
            a.set_label(&mut next)?;
            a.inc(dword_ptr(edi))?;
            a.add(edi, 4096)?;
            a.cmp(edi, GVA as i32 + 4096 * 400)?;
            a.jne(next)
        });
        s.read(Kernel, GVA, Ok(mark(400)));
        // Now the frame becomes a table, which a write through any of the mappings changes.
        let large = m.mode.paging().span(2);
        m.map(large * 40, at | P);
        let directory = m.entry(large * 40, 2);
        let other = frame(m, 1);
        let size = m.mode.paging().entry_bytes();
        s.entry(directory, at | P | W | U);
        for n in [0, 1, 200, 399] {
            s.poke(GVA + 4096 * n + size, &((other | P | U) as u32).to_le_bytes()).invlpg(large * 40 + 4096);
            s.read(User, large * 40 + 4096, Ok(mark(1)));
            s.poke(GVA + 4096 * n + size, &[0]).invlpg(large * 40 + 4096).read(User, large * 40 + 4096, Err(USER));
        }
    });
}

fn ends(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        let all: &[u64] = match m.mode {
            Mode::LONG => &[0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000, 0x1_0000_0000],
            _ => &[0xffff_f000, 0x7fff_f000, 0x8000_0000, 0xc000_0000],
        };
        for gva in all {
            m.map(*gva, at | P | W | U);
            s.read(User, gva + 0xffc, Ok(0)).write(Kernel, *gva, mark(0), Ok(())).read(User, *gva, Ok(mark(0)));
        }
    });
}

fn not_canonical(device: &Device) {
    in_formats(device, &[Paging::Long], |_, s| {
        for gva in [0x8000_0000_0000u64, 0xffff_7fff_ffff_ffff, 1 << 63] {
            let mut code = vec![0x48, 0xbf];
            code.extend(gva.to_le_bytes());
            s.raises("a read", &[&code[..], &[0x8b, 0x07]].concat(), 13, 0);
            s.raises("a write", &[&code[..], &[0x89, 0x07]].concat(), 13, 0);
            s.raises("a jump", &[&code[..], &[0xff, 0xe7]].concat(), 13, 0);
        }
    });
}

/// Through the stack segment it is #SS.
fn not_canonical_stack(device: &Device) {
    in_formats(device, &[Paging::Long], |_, s| {
        // mov rbp, 1 << 63; mov eax, [rbp]
        s.raises("a stack read", &[0x48, 0xbd, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x8b, 0x45, 0x00], 12, 0);
    });
}
