//! When a translation that has changed must be used (SDM vol. 3, 4.10).
use x86::paging::{D, G, P, PS, U, W};

use super::{ACCESSED_POINTERS, GVA, NESTED_AMD, code::*, frame, in_every_format, in_formats, mark};
use crate::{
    Device,
    guest::{Level::*, Machine, Mode, Paging, cr0, cr4, layout::FRAMES},
    runner::{Case, case, not_applicable},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("invlpg-takes-the-new-frame", "B01 B02 B04", invlpg),
    case("a-page-that-appears-needs-no-flush", "B01 B02", appears),
    case("more-rights-come-at-the-second-try", "B01 B02", upgrade),
    case("fewer-rights-after-invlpg", "B01 B02 B08", downgrade),
    case("cr3-load-flushes", "B01 B02", cr3_load),
    case("cr3-switches-address-spaces", "B01 B02", cr3_switch),
    case("global-pages-go-with-pge", "B01", |device| global_pge(device, &[Paging::Legacy, Paging::Long])),
    case("global-pages-go-with-pge-in-pae", "B01", |device| global_pge(device, &[Paging::Pae]))
        .fails_below(NESTED_AMD, ACCESSED_POINTERS),
    case("global-pages-go-with-invlpg", "B01", global_invlpg),
    case("global-pages-go-with-paging", "B01 C04", |device| paging_off(device, Paging::Legacy)),
    case("global-pages-go-with-paging-in-pae", "B01 C04", |device| paging_off(device, Paging::Pae))
        .fails_below(NESTED_AMD, ACCESSED_POINTERS),
    case("invlpg-drops-a-large-page-by-any-address", "B01 B04", large_invlpg),
    case("a-large-page-becomes-a-table-and-back", "B01 B02 B03", resize),
    case("a-table-is-replaced", "B01 B02 B03", table_replaced),
    case("upper-levels-lose-rights", "B01 B02 B08", upper_rights),
    case("invlpg-of-an-unmapped-address-does-nothing", "B01 B04", invlpg_unmapped),
    case("invlpg-needs-level-0", "B01", invlpg_user),
    case("pcid-keeps-spaces-apart", "B01", pcid),
    case("invpcid-of-every-type", "B01", invpcid),
    case("accesses-over-a-page-boundary", "B01 B09", page_crossing),
];

fn invlpg(device: &Device) {
    in_every_format(device, |m, s| {
        let frames: Vec<_> = (0..6).map(|n| frame(m, n)).collect();
        m.map(GVA, frames[0] | P | W | U);
        let entry = m.entry(GVA, 1);
        for n in 0..6 {
            s.entry(entry, frames[n as usize] | P | W | U).invlpg(GVA + 8 * n);
            s.read(Kernel, GVA, Ok(mark(n))).read(User, GVA, Ok(mark(n))).write(User, GVA, mark(n), Ok(()));
        }
        s.unmap(entry, GVA).read(User, GVA, Err(USER)).write(Kernel, GVA, 0, Err(WRITE));
    });
}

/// Entries that are not present are not cached.
fn appears(device: &Device) {
    in_every_format(device, |m, s| {
        for n in 0..8 {
            let at = frame(m, n);
            m.map(GVA + 4096 * n, at);
            let entry = m.entry(GVA + 4096 * n, 1);
            s.read(Kernel, GVA + 4096 * n, Err(0)).read(User, GVA + 4096 * n, Err(USER));
            s.entry(entry, at | P | U).read(User, GVA + 4096 * n, Ok(mark(n)));
        }
        // The same one level up.
        let large = m.mode.paging().span(2);
        let at = frame(m, 9);
        m.map(large * 40, at | P | U);
        let (entry, table) = (m.entry(large * 40, 2), m.entry(large * 40, 1) & !0xfff);
        m.change(large * 40, 2, P, 0);
        s.read(User, large * 40, Err(USER)).entry(entry, table | P | W | U).read(User, large * 40, Ok(mark(9)));
    });
}

/// A translation with too few rights may be used once more; the fault drops it.
fn upgrade(device: &Device) {
    in_every_format(device, |m, s| {
        for n in 0..4 {
            let at = frame(m, n);
            let gva = GVA + 4096 * n;
            m.map(gva, at | P);
            let entry = m.entry(gva, 1);
            s.read(Kernel, gva, Ok(mark(n))).write(Kernel, gva, 0, Err(WRITE | PRESENT));
            s.entry(entry, at | P | W).attempt(Kernel, gva, mark(n + 9)).write(Kernel, gva, mark(n + 8), Ok(()));
            s.read(User, gva, Err(USER | PRESENT));
            s.entry(entry, at | P | W | U).attempt(User, gva, 0).read(User, gva, Ok(0));
        }
    });
}

fn downgrade(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        m.map(GVA, at | P | W | U);
        let entry = m.entry(GVA, 1);
        for n in 1..4 {
            s.entry(entry, at | P | W | U).invlpg(GVA);
            s.write(User, GVA, mark(n), Ok(())).write(Kernel, GVA, mark(n), Ok(()));
            s.entry(entry, at | P | U).invlpg(GVA);
            s.write(User, GVA, 0, Err(WRITE | USER | PRESENT)).write(Kernel, GVA, 0, Err(WRITE | PRESENT));
            s.entry(entry, at | P | W).invlpg(GVA);
            s.read(User, GVA, Err(USER | PRESENT)).read(Kernel, GVA, Ok(mark(n)));
            s.entry(entry, at).invlpg(GVA).read(Kernel, GVA, Err(0));
        }
    });
}

fn cr3_load(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | P | W);
        let entry = m.entry(GVA, 1);
        for n in [1, 0, 1, 0] {
            s.read(Kernel, GVA, Ok(mark(1 - n)));
            s.entry(entry, frames[n as usize] | P | W).cr3(m.root).read(Kernel, GVA, Ok(mark(n)));
        }
    });
}

/// A second root whose page at `gva` is another frame.
fn second_space(m: &mut Machine, gva: u64, value: u64) -> u64 {
    let (first, second) = (m.root, m.another_root());
    m.root = second;
    // Below the root nothing is shared for this address.
    let levels = m.mode.paging().levels();
    m.change(gva, levels, !0, 0);
    m.map(gva, value);
    m.root = first;
    second
}

/// An address whose root entry no standard page shares.
fn apart(m: &Machine) -> u64 {
    m.mode.paging().span(m.mode.paging().levels()) * 2
}

fn cr3_switch(device: &Device) {
    in_every_format(device, |m, s| {
        let gva = apart(m);
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(gva, frames[0] | P | W | U);
        let second = second_space(m, gva, frames[1] | P);
        for n in 0..4 {
            s.read(User, gva, Ok(mark(n))).write(User, gva, mark(n + 1), Ok(()));
            s.cr3(second).read(User, gva, Err(USER | PRESENT)).read(Kernel, gva, Ok(mark(1)));
            s.write(Kernel, gva, 0, Err(WRITE | PRESENT)).cr3(m.root);
        }
    });
}

fn global_pge(device: &Device, formats: &[Paging]) {
    in_formats(device, formats, |m, s| {
        m.cr4 |= cr4::PGE;
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | P | W | G);
        let entry = m.entry(GVA, 1);
        for n in [1, 0, 1] {
            s.read(Kernel, GVA, Ok(mark(1 - n))).cr3(m.root).read(Kernel, GVA, Ok(mark(1 - n)));
            s.entry(entry, frames[n as usize] | P | W | G);
            s.control(4, cr4::PGE, 0).read(Kernel, GVA, Ok(mark(n))).control(4, 0, cr4::PGE);
        }
    });
}

fn global_invlpg(device: &Device) {
    in_every_format(device, |m, s| {
        m.cr4 |= cr4::PGE;
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | P | W | U | G);
        let entry = m.entry(GVA, 1);
        for n in [1, 0, 1] {
            s.read(User, GVA, Ok(mark(1 - n)));
            s.entry(entry, frames[n as usize] | P | W | G).invlpg(GVA).read(Kernel, GVA, Ok(mark(n)));
            s.read(User, GVA, Err(USER | PRESENT));
            s.entry(entry, frames[n as usize] | P | W | U | G).invlpg(GVA);
        }
    });
}

/// Clearing CR0.PG drops everything, global pages too.
fn paging_off(device: &Device, format: Paging) {
    in_formats(device, &[format], |m, s| {
        m.cr4 |= cr4::PGE;
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | P | W | G);
        let entry = m.entry(GVA, 1);
        for n in [1, 0, 1] {
            s.read(Kernel, GVA, Ok(mark(1 - n)));
            s.control(0, cr0::PG, 0);
            // Without paging the address is the frame's own.
            s.read(Kernel, FRAMES, Ok(mark(0))).entry(entry, frames[n as usize] | P | W | G);
            s.control(0, 0, cr0::PG).read(Kernel, GVA, Ok(mark(n)));
        }
    });
}

fn large_invlpg(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let gva = large * 40;
        // Two large frames with marks at both ends.
        for n in 1..3 {
            m.image.write32(large * n, mark(n));
            m.image.write32(large * (n + 1) - 4, mark(n + 10));
        }
        m.map_large(gva, large | P | W | U);
        let entry = m.entry(gva, 2);
        for (n, at) in [(2, 0), (1, large - 1), (2, large / 2), (1, 4096)] {
            s.read(User, gva + large - 4, Ok(mark(3 - n + 10))).read(Kernel, gva, Ok(mark(3 - n)));
            s.entry(entry, (large * n) | P | W | U | PS).invlpg(gva + at);
            s.read(User, gva + large - 4, Ok(mark(n + 10))).read(Kernel, gva, Ok(mark(n)));
        }
    });
}

fn resize(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let gva = large * 40;
        let at = frame(m, 0);
        m.map(gva, at | P | W | U);
        let (directory, table) = (m.entry(gva, 2), m.entry(gva, 1) & !0xfff);
        m.image.write32(0x40_0000, mark(7));
        for _ in 0..3 {
            s.read(User, gva, Ok(mark(0))).read(User, gva + 4096, Err(USER));
            s.entry(directory, 0x40_0000 | P | W | U | PS).cr3(m.root);
            s.read(User, gva, Ok(mark(7))).read(User, gva + 4096, Ok(0)).write(User, gva + 8192, 1, Ok(()));
            s.entry_is(directory, D, D);
            s.entry(directory, table | P | W | U).invlpg(gva).invlpg(gva + 4096).invlpg(gva + 8192);
        }
    });
}

fn table_replaced(device: &Device) {
    in_every_format(device, |m, s| {
        let gva = m.mode.paging().span(2) * 40;
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(gva, frames[0] | P | W | U);
        let other = m.tables.table();
        let tables = m.tables.clone();
        tables.store(&mut m.image, other, frames[1] | P | U);
        let (directory, first) = (m.entry(gva, 2), m.entry(gva, 1) & !0xfff);
        for _ in 0..3 {
            s.read(User, gva, Ok(mark(0))).write(User, gva, mark(0), Ok(()));
            s.entry(directory, other | P | W | U).invlpg(gva);
            s.read(User, gva, Ok(mark(1))).write(User, gva, 0, Err(WRITE | USER | PRESENT));
            s.entry(directory, first | P | W | U).cr3(m.root);
        }
    });
}

fn upper_rights(device: &Device) {
    in_every_format(device, |m, s| {
        let paging = m.mode.paging();
        let top = if paging == Paging::Pae { 2 } else { paging.levels() };
        let gva = paging.span(top) * 3;
        let at = frame(m, 0);
        m.map(gva, at | P | W | U);
        for level in 2..=top {
            let entry = m.entry(gva, level);
            let next = m.image.read64(entry) & 0xffff_f000;
            s.write(User, gva, mark(0), Ok(()));
            s.entry(entry, next | P | U).invlpg(gva).write(User, gva, 0, Err(WRITE | USER | PRESENT));
            s.read(User, gva, Ok(mark(0)));
            s.entry(entry, next | P | W).cr3(m.root).read(User, gva, Err(USER | PRESENT));
            s.write(Kernel, gva, mark(0), Ok(()));
            s.entry(entry, next | W | U).invlpg(gva).read(Kernel, gva, Err(0));
            s.entry(entry, next | P | W | U).invlpg(gva);
        }
    });
}

fn invlpg_unmapped(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        m.map(GVA, at | P | W);
        s.read(Kernel, GVA, Ok(mark(0))).invlpg(GVA + 0x100_0000).invlpg(0xffff_f000).read(Kernel, GVA, Ok(mark(0)));
        if m.mode == Mode::LONG {
            // Not canonical: no fault, no effect.
            s.invlpg(0x8000_0000_0000_0000).read(Kernel, GVA, Ok(mark(0)));
        }
    });
}

fn invlpg_user(device: &Device) {
    in_every_format(device, |m, s| {
        m.image.write(FRAMES, &[0x0f, 0x01, 0x3f]);
        m.map(GVA, FRAMES | P | U);
        // `execute` expects the page's `int 0x80`; here the instruction before it is refused.
        s.user_raises("invlpg by level 3", GVA, 13, 0);
    });
}

fn leaf(device: &Device, function: u32, pick: impl Fn(&abi::KvmCpuidEntry2) -> bool, name: &str) {
    let table = crate::vm::cpuid2(&device.fd, abi::KVM_GET_SUPPORTED_CPUID);
    if !table.iter().any(|e| e.function == function && e.index == 0 && pick(e)) {
        not_applicable(name);
    }
}

fn pcid(device: &Device) {
    leaf(device, 1, |e| e.ecx >> 17 & 1 != 0, "no PCID");
    in_formats(device, &[Paging::Long], |m, s| {
        const NOFLUSH: u64 = 1 << 63;
        let gva = apart(m);
        let frames = [0, 1, 2].map(|n| frame(m, n));
        m.map(gva, frames[0] | P | W);
        let second = second_space(m, gva, frames[1] | P | W);
        let entry = m.entry(gva, 1);
        s.control(4, 0, cr4::PCIDE);
        for _ in 0..3 {
            s.cr3(m.root | 1).read(Kernel, gva, Ok(mark(0)));
            s.cr3(second | 2).read(Kernel, gva, Ok(mark(1)));
            s.cr3(m.root | 1 | NOFLUSH).read(Kernel, gva, Ok(mark(0)));
            s.cr3(second | 2 | NOFLUSH).read(Kernel, gva, Ok(mark(1)));
            // A load without the bit flushes its own space.
            s.entry(entry, frames[2] | P | W).cr3(m.root | 1).read(Kernel, gva, Ok(mark(2)));
            s.entry(entry, frames[0] | P | W).invlpg(gva);
        }
        s.control(4, cr4::PCIDE, 0);
        // mov eax, cr4; bts eax, 17; mov cr4, eax
        let set = &[0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xe8, 17, 0x0f, 0x22, 0xe0];
        s.raises("PCIDE can be set with PCID 0 only", set, 13, 0);
    });
}

fn invpcid(device: &Device) {
    leaf(device, 7, |e| e.ebx >> 10 & 1 != 0, "no INVPCID");
    in_formats(device, &[Paging::Legacy, Paging::Pae, Paging::Long], |m, s| {
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(GVA, frames[0] | P | W);
        let entry = m.entry(GVA, 1);
        let descriptor = crate::guest::layout::DATA;
        m.image.write64(descriptor + 8, GVA);
        let mut n = 0;
        for kind in [0u8, 1, 2, 3, 0, 2] {
            n = 1 - n;
            s.entry(entry, frames[n as usize] | P | W);
            // mov eax, kind; mov esi, descriptor; invpcid eax, [esi]
            s.raw(&[0xb8, kind, 0, 0, 0, 0xbe]).raw(&(descriptor as u32).to_le_bytes());
            s.raw(&[0x66, 0x0f, 0x38, 0x82, 0x06]).read(Kernel, GVA, Ok(mark(n)));
        }
        s.raises("an unknown type", &[0xb8, 4, 0, 0, 0, 0xbe, 0, 0xa0, 0, 0, 0x66, 0x0f, 0x38, 0x82, 0x06], 13, 0);
    });
}

/// The second page's fault leaves the first page as it was.
fn page_crossing(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = [5, 3].map(|n| frame(m, n));
        m.image.write32(frames[0] + 0xffc, 0x4433_2211);
        m.image.write32(frames[1], 0x8877_6655);
        m.map(GVA, frames[0] | P | W | U);
        m.map(GVA + 4096, frames[1] | U);
        let entry = m.entry(GVA + 4096, 1);
        let last = GVA + 0xffc;
        for level in [Kernel, User] {
            let user = if level == User { USER } else { 0 };
            s.entry(entry, frames[1]).invlpg(GVA + 4096);
            s.crossing(level, last + 2, None, (user, GVA + 4096));
            s.crossing(level, last + 1, Some(0), (user | WRITE, GVA + 4096));
            s.entry(entry, frames[1] | P | U).invlpg(GVA + 4096);
            s.crossing(level, last + 3, Some(0), (user | WRITE | PRESENT, GVA + 4096));
            s.read(level, last, Ok(0x4433_2211)).read(level, last + 1, Ok(0x5544_3322));
            s.entry(entry, frames[1] | P | W | U).invlpg(GVA + 4096);
            s.write(level, last + 2, 0xddcc_bbaa, Ok(())).read(level, last, Ok(0xbbaa_2211));
            s.read(level, last + 4, Ok(0x8877_ddcc)).write(level, last + 2, 0x6655_4433, Ok(()));
        }
    });
}
