//! What a translation allows, and the error code of what it does not (SDM vol. 3, 4.6 and 4.7).
use x86::paging::{NX, P, PS, U, W};

use super::{ACCESSED_POINTERS, GVA, LINUX_SHADOW, NESTED_AMD, code::*, frame, in_every_format, in_formats, mark};
use crate::{
    Device,
    guest::{
        Level,
        Level::*,
        Machine, Mode, Paging, Script, cr0, cr4, efer,
        layout::{DATA, FRAMES, sel},
        segments::{descriptor, flat},
    },
    runner::{Case, Target, case, not_applicable},
};

const NO_PRESENT: &str =
    "QEMU's TCG leaves P out of the error code when it finds a reserved bit (mmu_translate in excp_helper.c)";

pub(in crate::cases) const CASES: &[Case] = &[
    case("present-writable-user-in-small-pages", "B01", small_pages),
    case("present-writable-user-in-large-pages", "B01", large_pages),
    case("rights-are-those-of-all-levels", "B01", all_levels),
    case("cr0-wp-changes-in-the-guest", "B01 B08", wp_changes),
    case("write-protect-leaves-user-rights-alone", "B01 B02", wp_and_user),
    case("no-execute-at-every-level", "B01", no_execute),
    case("no-execute-without-nxe-is-reserved", "B01 C07", nx_reserved).fails_below(NESTED_AMD, NO_PRESENT),
    case("nxe-changes-in-the-guest", "B01", nxe_changes).fails_below(NESTED_AMD, NO_PRESENT).inapplicable(
        LINUX_SHADOW,
        "its shadow pages serve both values of EFER.NXE, so that a translation made before NXE was cleared goes on",
    ),
    case("fetches-without-nx-do-not-say-so", "B01", fetch_without_nx),
    case("reserved-bits-of-small-pages", "B01", reserved_small).fails_below(NESTED_AMD, NO_PRESENT),
    case("reserved-bits-of-large-pages", "B01", reserved_large).fails_below(NESTED_AMD, NO_PRESENT),
    case("smep-keeps-the-kernel-out-of-user-code", "B01", smep),
    case("smep-with-pae", "B01", smep_pae).fails_below(NESTED_AMD, ACCESSED_POINTERS),
    case("smap-keeps-the-kernel-out-of-user-data", "B01", smap),
    case("smap-does-not-let-ac-excuse-implicit-accesses", "B01", smap_implicit)
        .fails_below(
            Target::IN_QEMU,
            "QEMU's TCG lets EFLAGS.AC excuse implicit accesses, too (cpu_mmu_index_kernel in cpu.h)",
        )
        .fails_below(Target::IN_BOCHS, "Bochs lets EFLAGS.AC excuse implicit accesses, too"),
    case("page-size-bit-without-pse", "B01", without_pse),
    case("gigabyte-pages", "B01", gigabyte),
];

/// Whether an access is allowed, and else its error code, by the rights of all levels joined.
fn verdict(m: &Machine, level: Level, write: bool, rights: u64) -> Result<(), u32> {
    let user = level == User;
    let wp = m.cr0 & cr0::WP != 0;
    let code = if user { USER } else { 0 } | if write { WRITE } else { 0 };
    if rights & P == 0 {
        return Err(code);
    }
    if (user && rights & U == 0) || (write && rights & W == 0 && (user || wp)) {
        return Err(code | PRESENT);
    }
    Ok(())
}

/// Reads and writes by both levels, with what `rights` make of them; frame `n` is mapped there.
fn try_all(m: &Machine, s: &mut Script, gva: u64, n: u64, rights: u64) {
    for level in [Kernel, User] {
        s.read(level, gva, verdict(m, level, false, rights).map(|()| mark(n)));
        s.write(level, gva, mark(n), verdict(m, level, true, rights));
    }
}

fn small_pages(device: &Device) {
    for wp in [0, cr0::WP] {
        in_every_format(device, |m, s| {
            m.cr0 = m.cr0 & !cr0::WP | wp;
            for rights in 0..8 {
                let gva = GVA + 4096 * rights;
                let at = frame(m, rights);
                m.map(gva, at | rights);
                try_all(m, s, gva, rights, rights);
            }
        });
    }
}

fn large_pages(device: &Device) {
    for wp in [0, cr0::WP] {
        in_every_format(device, |m, s| {
            m.cr0 = m.cr0 & !cr0::WP | wp;
            let large = m.mode.paging().span(2);
            for rights in 0..8 {
                let gva = 0x4000_0000 + large * rights;
                // The same large frame for all: the second 4 MiB of memory.
                m.image.write32(0x40_0000, mark(0));
                m.map_large(gva, 0x40_0000 | rights);
                try_all(m, s, gva, 0, rights);
            }
        });
    }
}

fn all_levels(device: &Device) {
    in_every_format(device, |m, s| {
        let paging = m.mode.paging();
        // A PAE page-directory pointer has no rights of its own.
        let top = if paging == Paging::Pae { 2 } else { paging.levels() };
        let mut gva = 0x4000_0000;
        for level in 1..=top {
            for missing in [W, U, W | U, P] {
                let at = frame(m, 0);
                m.map(gva, at | P | W | U);
                m.change(gva, level, missing, 0);
                try_all(m, s, gva, 0, (P | W | U) & !missing);
                gva += paging.span(top); // nothing shared below the root
            }
        }
    });
}

fn wp_changes(device: &Device) {
    in_every_format(device, |m, s| {
        let at = frame(m, 0);
        m.map(GVA, at | P);
        for _ in 0..3 {
            s.write(Kernel, GVA, mark(0), Err(WRITE | PRESENT));
            s.control(0, cr0::WP, 0);
            s.write(Kernel, GVA, mark(0), Ok(()));
            s.control(0, 0, cr0::WP);
        }
        s.write(Kernel, GVA, mark(0), Err(WRITE | PRESENT));
    });
}

/// Shadow paging lets the kernel write a read-only user page (WP clear) by a translation that the user must not have.
fn wp_and_user(device: &Device) {
    in_every_format(device, |m, s| {
        m.cr0 &= !cr0::WP;
        let at = frame(m, 0);
        m.map(GVA, at | P | U);
        for n in 1..4 {
            s.write(Kernel, GVA, mark(n), Ok(()));
            s.read(User, GVA, Ok(mark(n)));
            s.write(User, GVA, 0, Err(WRITE | USER | PRESENT));
            s.read(Kernel, GVA, Ok(mark(n)));
        }
        s.control(0, 0, cr0::WP);
        s.write(Kernel, GVA, 0, Err(WRITE | PRESENT));
        s.read(User, GVA, Ok(mark(3)));
    });
}

/// A page that holds `int 0x80`, so that a jump there comes back.
fn code_frame(m: &mut Machine, n: u64) -> u64 {
    m.image.write(FRAMES + 4096 * n, &[0xcd, 0x80]);
    FRAMES + 4096 * n
}

fn no_execute(device: &Device) {
    in_formats(device, &[Paging::Pae, Paging::Long], |m, s| {
        let top = if m.mode == Mode::PAE { 2 } else { 4 };
        let at = code_frame(m, 0);
        for level in 0..=top {
            let gva = 0x4000_0000 + m.mode.paging().span(top) * u64::from(level);
            m.map(gva, at | P | W | U);
            if level > 0 {
                m.change(gva, level, 0, NX);
            }
            let fetch = |code| if level == 0 { Ok(()) } else { Err(FETCH | PRESENT | code) };
            s.execute(Kernel, gva, fetch(0)).execute(User, gva, fetch(USER));
            s.read(Kernel, gva, Ok(0x80cd)).read(User, gva, Ok(0x80cd)).write(User, gva, 0x80cd, Ok(()));
        }
        // Where nothing is present, the code says that it was a fetch.
        s.execute(Kernel, GVA + 0x10_0000, Err(FETCH)).execute(User, GVA + 0x10_0000, Err(FETCH | USER));
    });
}

fn nx_reserved(device: &Device) {
    in_formats(device, &[Paging::Pae, Paging::Long], |m, s| {
        m.efer &= !efer::NXE;
        let at = frame(m, 0);
        m.map(GVA, at | P | W | U | NX);
        s.read(Kernel, GVA, Err(RESERVED | PRESENT));
        s.write(User, GVA, 0, Err(RESERVED | PRESENT | USER | WRITE));
        s.execute(User, GVA, Err(RESERVED | PRESENT | USER));
    });
}

fn nxe_changes(device: &Device) {
    in_formats(device, &[Paging::Pae, Paging::Long], |m, s| {
        let at = code_frame(m, 0);
        m.map(GVA, at | P | W | U | NX);
        let with = m.efer & !efer::LMA;
        for _ in 0..2 {
            s.read(User, GVA, Ok(0x80cd)).execute(User, GVA, Err(FETCH | PRESENT | USER));
            s.wrmsr(0xc000_0080, with & !efer::NXE);
            s.cr3(m.root);
            s.read(User, GVA, Err(RESERVED | PRESENT | USER));
            s.wrmsr(0xc000_0080, with);
            s.cr3(m.root);
        }
    });
}

fn fetch_without_nx(device: &Device) {
    in_every_format(device, |m, s| {
        m.efer &= !efer::NXE;
        s.execute(Kernel, GVA, Err(0)).execute(User, GVA, Err(USER));
        let at = code_frame(m, 0);
        m.map(GVA + 4096, at | P);
        s.execute(Kernel, GVA + 4096, Ok(())).execute(User, GVA + 4096, Err(PRESENT | USER));
    });
}

/// Bits of a physical address, as CPUID tells the guest.
fn physical_bits(device: &Device) -> u32 {
    let table = crate::vm::cpuid2(&device.fd, abi::KVM_GET_SUPPORTED_CPUID);
    table.iter().find(|e| e.function == 0x8000_0008).map_or(36, |e| e.eax & 0xff)
}

fn reserved_small(device: &Device) {
    let bits = physical_bits(device);
    if bits >= 52 {
        not_applicable("no bit of a physical address is reserved");
    }
    in_formats(device, &[Paging::Pae, Paging::Long], |m, s| {
        let top = if m.mode == Mode::PAE { 2 } else { 4 };
        let at = frame(m, 0);
        for level in 1..=top {
            let gva = 0x4000_0000 + m.mode.paging().span(top) * u64::from(level);
            m.map(gva, at | P | W | U);
            m.change(gva, level, 0, 1 << 51);
            s.read(Kernel, gva, Err(RESERVED | PRESENT));
            s.write(Kernel, gva, 0, Err(RESERVED | PRESENT | WRITE));
            s.read(User, gva, Err(RESERVED | PRESENT | USER));
            s.execute(User, gva, Err(RESERVED | PRESENT | USER | FETCH));
        }
        // What is not present has no reserved bits.
        m.map(GVA, at | 1 << 51);
        s.read(Kernel, GVA, Err(0));
    });
}

fn reserved_large(device: &Device) {
    in_every_format(device, |m, s| {
        // 32-bit paging: bit 21 (bits 20 to 13 may be address bits, PSE-36). Else bits 20 to 13.
        let wrong: &[u32] = if m.mode == Mode::LEGACY { &[21] } else { &[13, 16, 20] };
        for (n, bit) in wrong.iter().enumerate() {
            let gva = 0x4000_0000 + m.mode.paging().span(2) * n as u64;
            m.map_large(gva, 0x40_0000 | P | W | U | 1 << bit);
            s.read(Kernel, gva, Err(RESERVED | PRESENT)).write(User, gva, 0, Err(RESERVED | PRESENT | USER | WRITE));
        }
    });
    // The root of long mode has no large pages.
    in_formats(device, &[Paging::Long], |m, s| {
        let gva = 1 << 39;
        let at = frame(m, 0);
        m.map(gva, at | P | W | U);
        m.change(gva, 4, 0, PS);
        s.read(Kernel, gva, Err(RESERVED | PRESENT));
    });
}

/// Ends the case unless CPUID leaf 7 has the feature.
fn need_leaf7(device: &Device, bit: u32, name: &str) {
    let table = crate::vm::cpuid2(&device.fd, abi::KVM_GET_SUPPORTED_CPUID);
    if !table.iter().any(|e| e.function == 7 && e.index == 0 && e.ebx >> bit & 1 != 0) {
        not_applicable(name);
    }
}

fn smep(device: &Device) {
    smep_in(device, &[Paging::Legacy, Paging::Long]);
}

fn smep_pae(device: &Device) {
    smep_in(device, &[Paging::Pae]);
}

fn smep_in(device: &Device, formats: &[Paging]) {
    need_leaf7(device, 7, "no SMEP");
    in_formats(device, formats, |m, s| {
        m.cr4 |= cr4::SMEP;
        let at = code_frame(m, 0);
        m.map(GVA, at | P | W | U);
        m.map(GVA + 4096, at | P | W);
        // SMEP alone makes the error code tell fetches, without NX too.
        if m.mode == Mode::LEGACY {
            s.execute(Kernel, GVA + 8192, Err(FETCH));
        }
        for _ in 0..2 {
            s.execute(Kernel, GVA, Err(FETCH | PRESENT)).execute(User, GVA, Ok(()));
            s.execute(Kernel, GVA + 4096, Ok(())).read(Kernel, GVA, Ok(0x80cd)).write(Kernel, GVA, 0x80cd, Ok(()));
            s.control(4, cr4::SMEP, 0).execute(Kernel, GVA, Ok(())).control(4, 0, cr4::SMEP);
        }
    });
}

const STAC: &[u8] = &[0x0f, 0x01, 0xcb];
const CLAC: &[u8] = &[0x0f, 0x01, 0xca];

fn smap(device: &Device) {
    need_leaf7(device, 20, "no SMAP");
    in_every_format(device, |m, s| {
        m.cr4 |= cr4::SMAP;
        let at = frame(m, 0);
        m.map(GVA, at | P | W | U);
        m.map(GVA + 4096, at | P | W);
        for _ in 0..2 {
            s.read(Kernel, GVA, Err(PRESENT)).write(Kernel, GVA, 0, Err(PRESENT | WRITE));
            s.read(User, GVA, Ok(mark(0))).write(User, GVA, mark(0), Ok(()));
            s.raw(STAC).read(Kernel, GVA, Ok(mark(0))).write(Kernel, GVA, mark(0), Ok(())).raw(CLAC);
            s.read(Kernel, GVA + 4096, Ok(mark(0)));
            s.control(4, cr4::SMAP, 0).read(Kernel, GVA, Ok(mark(0))).control(4, 0, cr4::SMAP);
        }
    });
}

/// A local descriptor table in a user page: the load of a segment register is an implicit access, which AC does not
/// excuse.
fn smap_implicit(device: &Device) {
    need_leaf7(device, 20, "no SMAP");
    in_every_format(device, |m, s| {
        m.cr4 |= cr4::SMAP;
        m.descriptor(sel::LDT, descriptor(DATA as u32, 0xff, 0x82, 0));
        m.image.write64(DATA, flat::DATA);
        // mov ecx, 4; mov gs, ecx; mov eax, 7
        let load = &[0xb9, 4, 0, 0, 0, 0x8e, 0xe9, 0xb8, 7, 0, 0, 0];
        s.raw(&[0xb9, sel::LDT as u8, 0, 0, 0, 0x0f, 0x00, 0xd1]); // mov ecx, LDT; lldt cx
        s.raw(STAC);
        s.raises("load from a user page", load, 14, PRESENT);
        s.entry(m.entry(DATA, 1), DATA | P | W).invlpg(DATA);
        s.check("load from a supervisor page", load, !0, 7);
    });
}

/// Without CR4.PSE the bit is ignored: the entry points at a table.
fn without_pse(device: &Device) {
    in_formats(device, &[Paging::Legacy], |m, s| {
        m.cr4 &= !cr4::PSE;
        let at = frame(m, 0);
        m.map(GVA * 4, at | P | W | U);
        m.change(GVA * 4, 2, 0, PS);
        s.read(User, GVA * 4, Ok(mark(0)));
        // With PSE it is a large page at the table's address, whose bits 21 to 13 are reserved or address bits.
        s.write(User, GVA * 4, mark(0), Ok(()));
    });
}

fn gigabyte(device: &Device) {
    let table = crate::vm::cpuid2(&device.fd, abi::KVM_GET_SUPPORTED_CPUID);
    if !table.iter().any(|e| e.function == 0x8000_0001 && e.edx >> 26 & 1 != 0) {
        not_applicable("no 1 GiB pages");
    }
    in_formats(device, &[Paging::Long], |m, s| {
        let at = frame(m, 0);
        for rights in 0..8 {
            let gva = (1 << 39) + (rights << 30);
            let (mut tables, root) = (m.tables.clone(), m.root);
            tables.map(&mut m.image, root, gva, 3, PS | rights);
            m.tables = tables;
            try_all(m, s, gva + at, 0, rights);
        }
    });
}
