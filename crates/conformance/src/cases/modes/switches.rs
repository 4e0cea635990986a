//! Ways between real mode, protected mode, paging in its formats, long mode and compatibility mode, made by the guest, with
//! what the registers hold afterwards (rows B01, C01, C04, C05).
use abi::KvmSregs;
use iced_x86::{IcedError, code_asm::*};
use x86::paging::{P, PS, U, W};

use crate::{
    Device,
    cases::mmu::{ACCESSED_POINTERS, NESTED_AMD},
    guest::{
        Live, Machine, Mode, cr0, cr4, efer,
        image::Image,
        layout::{DATA, FRAMES, GDT, HIGH, IDT, sel},
        tables::{Paging, Tables},
    },
    runner::{Case, case},
    vm::Exit,
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("real-to-protected-and-back", "C01 C04", protected),
    case("sixteen-bit-protected-mode", "C01 C04", protected16),
    case("unreal-mode-keeps-its-limits", "C01 C04", unreal),
    case("big-real-mode-with-a-high-base", "C01 C04", high_base),
    case("through-every-mode-and-back-to-real", "B01 C01 C04 C05", tour),
    case("the-tour-again-and-again", "B01 C01 C04", tour_again).fails_below(NESTED_AMD, ACCESSED_POINTERS),
    case("a-reboot-by-the-client-from-every-mode", "C01 C04 C11", reboot).fails_below(NESTED_AMD, ACCESSED_POINTERS),
    case("sregs-set-from-every-mode-to-every-other", "A10 C01 C04", set_sregs),
    case("control-registers-are-never-stale", "C05", never_stale),
    case("cr8-is-never-stale", "A13 C05", cr8_never_stale),
    case("lmsw-and-smsw", "C05 C09", lmsw),
    case("clts-and-ts", "C05 C06", clts),
    case("efer-lma-follows-paging", "C05", lma),
    case("upper-halves-are-cleared-on-leaving-64-bit-code", "C04 C05", upper_halves),
];

/// The ports by which a guest says where it is.
const HERE: u8 = 0x70;

/// Roots for the tour: 32-bit, PAE and long tables that map memory to itself.
struct Roots([u64; 3]);

fn roots(image: &mut Image) -> Roots {
    let mut next = HIGH;
    Roots(Paging::ALL.map(|paging| {
        let mut tables = Tables::new(paging, next);
        let root = tables.table();
        for gva in (0..0x80_0000).step_by(paging.span(2) as usize) {
            tables.map(image, root, gva, 2, gva | P | W | U | PS);
        }
        next = tables.table();
        root
    }))
}

/// Far jump within what [`assemble`] makes: `ea`, the offset of `width` bits, the selector.
fn far_jump(a: &mut CodeAssembler, wide: bool, selector: u16, to: u64) -> Result<(), IcedError> {
    a.db(&[0xea])?;
    if wide {
        a.dd(&[to as u32])?
    } else {
        a.dw(&[to as u16])?
    }
    a.dw(&[selector])
}

/// A guest in real mode that loads the GDT and IDT of `m` and goes to protected mode; returns nothing: RIP is set.
/// `then` is the address of 32-bit code.
fn enter_protected(m: &mut Machine, at: u64, then: u64) -> u64 {
    m.image.write(DATA, &0xfffu16.to_le_bytes());
    m.image.write32(DATA + 2, GDT as u32);
    m.image.write(DATA + 8, &0x7ffu16.to_le_bytes());
    m.image.write32(DATA + 10, IDT as u32);
    let (_, len) = m.assemble(16, at, |a| {
        a.lgdt(fword_ptr(DATA))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // Still 16-bit code until the jump.
        a.db(&[0x66])?;
        far_jump(a, true, sel::CODE32, then)?;
        Ok([])
    });
    at + len
}

/// 32-bit code that goes back to real mode, at `real`, with paging off.
fn leave_protected(a: &mut CodeAssembler, sixteen: u64) -> Result<(), IcedError> {
    far_jump(a, true, sel::CODE16, sixteen)
}

/// The 16-bit part of that: it must lie below 64 KiB.
fn back_to_real(m: &mut Machine, at: u64, real: u64) {
    m.assemble(16, at, |a| {
        a.mov(ax, u32::from(sel::DATA16))?;
        for s in [ds, es, ss, fs, gs] {
            a.mov(s, ax)?;
        }
        a.mov(eax, cr0)?;
        a.and(eax, !1)?;
        a.mov(cr0, eax)?;
        far_jump(a, false, 0, real)?;
        Ok([])
    });
    // In real mode: segments of 0, and say so.
    m.assemble(16, real, |a| {
        a.xor(ax, ax)?;
        for s in [ds, es, ss, fs, gs] {
            a.mov(s, ax)?;
        }
        a.mov(al, 0xaa)?;
        a.out(HERE as i32, al)?;
        a.hlt()?;
        Ok([])
    });
}

const P32: u64 = 0xb100;
const P16: u64 = 0xb200;
const REAL: u64 = 0xb300;

fn load_flat(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, u32::from(sel::DATA))?;
    for s in [ds, es, ss] {
        a.mov(s, eax)?;
    }
    Ok(())
}

/// Says `byte` and waits for the client to have looked.
fn say(a: &mut CodeAssembler, byte: u32) -> Result<(), IcedError> {
    a.mov(al, byte as i32)?;
    a.out(HERE as i32, al)
}

#[track_caller]
fn hears(live: &Live, byte: u8) -> KvmSregs {
    assert_eq!(live.vcpu.run(), Exit::out8(HERE.into(), byte), "rip {:#x} {:x?}", live.vcpu.regs().rip, live.events());
    live.vcpu.sregs()
}

fn real_machine() -> Machine {
    let mut m = Machine::new(Mode::Real);
    // The vectors of protected mode need its handlers, which this guest has no use for.
    m.regs.rip = 0xb000;
    m
}

fn protected(device: &Device) {
    let mut m = real_machine();
    enter_protected(&mut m, 0xb000, P32);
    m.assemble(32, P32, |a| {
        load_flat(a)?;
        a.mov(byte_ptr(FRAMES), 0x77)?;
        say(a, 1)?;
        leave_protected(a, P16)?;
        Ok([])
    });
    back_to_real(&mut m, P16, REAL);
    let live = m.start(device);
    let s = hears(&live, 1);
    assert_eq!((s.cr0 & 1, s.cs.selector, s.cs.base, s.cs.limit, s.cs.db), (1, sel::CODE32, 0, 0xffff_ffff, 1));
    assert_eq!((s.ds.selector, s.ds.limit, s.ss.db, s.gdt.base, s.gdt.limit), (sel::DATA, 0xffff_ffff, 1, GDT, 0xfff));
    assert_eq!(live.memory.u8(FRAMES as usize), 0x77);
    real_again(&live);
}

/// The guest says that it is back, in real mode as it should be.
#[track_caller]
fn real_again(live: &Live) {
    let s = hears(live, 0xaa);
    assert_eq!((s.cr0 & (cr0::PE | cr0::PG), s.cs.selector, s.cs.base), (0, 0, 0));
    for segment in [s.ds, s.es, s.ss, s.fs, s.gs] {
        assert_eq!((segment.selector, segment.base, segment.limit), (0, 0, 0xffff));
    }
    live.vcpu.run_to_hlt();
}

fn protected16(device: &Device) {
    let mut m = Machine::new(Mode::Protected16);
    m.code(|a| {
        a.mov(bx, 0x1234)?;
        a.push(bx)?;
        a.mov(eax, 0x1234_5678)?;
        a.push(eax)?;
        a.mov(word_ptr(DATA), sp)?;
        a.mov(ecx, dword_ptr(esp))?;
        a.int(0x21)
    });
    let live = m.run(device);
    let event = live.event();
    assert_eq!((event.vector, event.cs), (0x21, sel::CODE16));
    assert_eq!((live.memory.u16(DATA as usize), live.vcpu.regs().rcx), (0x7ffa, 0x1234_5678));
}

fn unreal(device: &Device) {
    let mut m = real_machine();
    enter_protected(&mut m, 0xb000, P32);
    m.assemble(32, P32, |a| {
        load_flat(a)?;
        leave_protected(a, P16)?;
        Ok([])
    });
    // Real mode with the limits of the last protected-mode load.
    m.assemble(16, P16, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, !1)?;
        a.mov(cr0, eax)?;
        far_jump(a, false, 0, REAL)?;
        Ok([])
    });
    m.assemble(16, REAL, |a| {
        a.mov(edi, FRAMES as u32)?;
        a.mov(dword_ptr(edi + 4), 0x1234_5678)?;
        a.mov(ebx, dword_ptr(edi + 4))?;
        say(a, 2)?;
        // A load in real mode changes the base only.
        a.mov(ax, 0x1000)?;
        a.mov(ds, ax)?;
        a.mov(ecx, dword_ptr(edi - 0x1_0000 + 4))?;
        a.hlt()?;
        Ok([])
    });
    let live = m.start(device);
    let s = hears(&live, 2);
    assert_eq!((s.cr0 & 1, s.ds.limit), (0, 0xffff_ffff));
    live.vcpu.run_to_hlt();
    let (regs, s) = (live.vcpu.regs(), live.vcpu.sregs());
    assert_eq!((regs.rbx, regs.rcx), (0x1234_5678, 0x1234_5678));
    assert_eq!((s.ds.base, s.ds.limit, s.ds.selector), (0x1_0000, 0xffff_ffff, 0x1000));
}

/// As a BIOS leaves it: code high up, reached by the base and not by the selector.
fn high_base(device: &Device) {
    let mut m = Machine::new(Mode::Real);
    // mov ax, cs; jmp far 0:CODE is where the real program is.
    let at = m.code(|a| {
        a.mov(bx, cs)?;
        a.hlt()
    });
    m.assemble(16, FRAMES + 0x100, |a| {
        a.mov(ax, cs)?;
        far_jump(a, false, 0, at)?;
        Ok([])
    });
    let live = m.start(device);
    live.edit_sregs(|s| (s.cs.base, s.cs.selector) = (FRAMES, 0xf000));
    live.vcpu.edit_regs(|regs| regs.rip = 0x100);
    live.vcpu.run_to_hlt();
    let (regs, s) = (live.vcpu.regs(), live.vcpu.sregs());
    assert_eq!((regs.rax, regs.rbx, s.cs.base, s.cs.selector), (0xf000, 0, 0, 0));
}

/// mov cr4, eax with PAE set or cleared, and EFER.LME.
fn set_pae(a: &mut CodeAssembler, on: bool) -> Result<(), IcedError> {
    a.mov(eax, cr4)?;
    if on {
        a.or(eax, cr4::PAE as i32)?
    } else {
        a.and(eax, !(cr4::PAE as i32))?
    }
    a.mov(cr4, eax)
}

fn set_lme(a: &mut CodeAssembler, on: bool) -> Result<(), IcedError> {
    a.mov(ecx, 0xc000_0080u32)?;
    a.rdmsr()?;
    if on {
        a.or(eax, efer::LME as i32)?
    } else {
        a.and(eax, !(efer::LME as i32))?
    }
    a.wrmsr()
}

fn set_paging(a: &mut CodeAssembler, on: bool) -> Result<(), IcedError> {
    a.mov(eax, cr0)?;
    if on {
        a.or(eax, cr0::PG as u32 as i32)?
    } else {
        a.and(eax, !(cr0::PG as u32) as i32)?
    }
    a.mov(cr0, eax)
}

fn set_root(a: &mut CodeAssembler, root: u64) -> Result<(), IcedError> {
    a.mov(eax, root as u32)?;
    a.mov(cr3, eax)
}

const LONG: u64 = 0xb800;

/// Real mode, protected mode, 32-bit paging, protected mode, PAE, protected mode, compatibility mode, 64-bit code, and all
/// the way back.
fn tour_machine() -> Machine {
    let mut m = real_machine();
    // 64-bit code needs its descriptor, which this machine's own width has not.
    m.descriptor(sel::FREE, crate::guest::segments::flat::CODE64);
    let roots = roots(&mut m.image).0;
    enter_protected(&mut m, 0xb000, P32);
    let long_end = LONG + 0x100;
    m.assemble(32, P32, |a| {
        load_flat(a)?;
        say(a, 1)?;
        a.mov(eax, cr4)?;
        a.or(eax, cr4::PSE as i32)?;
        a.mov(cr4, eax)?;
        set_root(a, roots[0])?;
        set_paging(a, true)?;
        say(a, 2)?;
        set_paging(a, false)?;
        set_pae(a, true)?;
        set_root(a, roots[1])?;
        set_paging(a, true)?;
        say(a, 3)?;
        set_paging(a, false)?;
        set_lme(a, true)?;
        set_root(a, roots[2])?;
        set_paging(a, true)?;
        say(a, 4)?; // compatibility mode
        far_jump(a, true, sel::FREE, LONG)?;
        Ok([])
    });
    m.assemble(64, LONG, |a| {
        a.mov(r15, 0x1122_3344_5566_7788u64)?;
        say(a, 5)?;
        // A far return to 32-bit code.
        a.push(i32::from(sel::CODE32))?;
        a.push(long_end as i32)?;
        a.db(&[0x48, 0xcb])?; // retfq
        Ok([])
    });
    m.assemble(32, long_end, |a| {
        say(a, 6)?; // compatibility mode again
        set_paging(a, false)?;
        set_lme(a, false)?;
        set_pae(a, false)?;
        set_root(a, roots[0])?;
        set_paging(a, true)?;
        say(a, 7)?; // 32-bit paging after long mode
        set_paging(a, false)?;
        say(a, 8)?;
        leave_protected(a, P16 + 0x200)?;
        Ok([])
    });
    back_to_real(&mut m, P16 + 0x200, REAL + 0x300);
    m
}

#[track_caller]
fn take_tour(live: &Live) {
    let paging = |s: &KvmSregs| (s.cr0 & (cr0::PE | cr0::PG), s.cr4 & cr4::PAE, s.efer & (efer::LME | efer::LMA));
    let both = cr0::PE | cr0::PG;
    for (byte, expected, long, width) in [
        (1, (cr0::PE, 0, 0), 0, 1),
        (2, (both, 0, 0), 0, 1),
        (3, (both, cr4::PAE, 0), 0, 1),
        (4, (both, cr4::PAE, efer::LME | efer::LMA), 0, 1),
        (5, (both, cr4::PAE, efer::LME | efer::LMA), 1, 0),
        (6, (both, cr4::PAE, efer::LME | efer::LMA), 0, 1),
        (7, (both, 0, 0), 0, 1),
        (8, (cr0::PE, 0, 0), 0, 1),
    ] {
        let s = hears(live, byte);
        assert_eq!((paging(&s), s.cs.l, s.cs.db), (expected, long, width), "at {byte}");
        assert_eq!((s.ds.selector, s.ds.limit, s.ss.limit), (sel::DATA, 0xffff_ffff, 0xffff_ffff), "at {byte}");
    }
    real_again(live);
}

fn tour(device: &Device) {
    let live = tour_machine().start(device);
    take_tour(&live);
    assert_eq!(live.vcpu.regs().r15, 0x1122_3344_5566_7788);
}

fn tour_again(device: &Device) {
    let live = tour_machine().start(device);
    for _ in 0..10 {
        take_tour(&live);
        live.vcpu.edit_regs(|regs| (regs.rip, regs.rsp) = (0xb000, 0x8000));
    }
}

/// A client resets a processor by setting the registers that a new one has.
fn reboot(device: &Device) {
    let fresh = device.vm().vcpu(0);
    let (regs, sregs) = (fresh.regs(), fresh.sregs());
    let live = tour_machine().start(device);
    let started = live.vcpu.sregs();
    for last in 1..=8 {
        for byte in 1..=last {
            hears(&live, byte);
        }
        // The port access is complete only when the guest is entered again.
        live.vcpu.page.set_immediate_exit(true);
        let _ = live.vcpu.try_run();
        live.vcpu.page.set_immediate_exit(false);
        live.vcpu.set_sregs(&sregs);
        live.vcpu.set_regs(&regs);
        let s = live.vcpu.sregs();
        assert_eq!((s.cr0, s.cr4, s.efer, s.cs.base), (sregs.cr0, 0, 0, 0xffff_0000), "after {last}");
        // And a boot: real mode from the machine's start.
        live.edit_sregs(|s| *s = started);
        live.vcpu.edit_regs(|r| (r.rip, r.rsp, r.rflags) = (0xb000, 0x8000, 2));
    }
    take_tour(&live);
}

/// The client puts one machine's registers into another's vCPU.
fn set_sregs(device: &Device) {
    let modes = [Mode::Real, Mode::Protected16, Mode::Protected, Mode::LEGACY, Mode::PAE, Mode::LONG];
    for first in modes {
        for second in modes {
            let mut a = Machine::new(first);
            a.bytes(&[0x40, 0xf4]); // inc eax, or a prefix; hlt
            let live = a.run(device);
            let mut b = Machine::new(second);
            b.bytes(&[0xb0, 0x5a, 0xcd, 0x21]); // mov al, 0x5a; int 0x21
            (0..0x11_0000usize).step_by(4096).for_each(|page| live.memory.write(page, &[0; 4096]));
            b.image.pages().for_each(|(gpa, page)| live.memory.write(gpa as usize, page));
            let tss = live.vcpu.sregs().tr.type_;
            live.edit_sregs(|s| {
                b.fill(s);
                if second != Mode::Real && first != Mode::Real {
                    s.tr.type_ = tss;
                } else if second != Mode::Real {
                    s.tr.type_ = live.tss_type();
                }
            });
            live.vcpu.set_regs(&b.regs);
            live.vcpu.run_to_hlt();
            assert_eq!(live.vectors(), [0x21], "{first:?} to {second:?}");
            let s = live.vcpu.sregs();
            assert_eq!((s.cr0, s.cr4, s.efer), (b.cr0, b.cr4, b.efer), "{first:?} to {second:?}");
        }
    }
}

fn never_stale(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    m.code(|a| {
        for bit in [3, 1, 5, 16] {
            // TS, MP, NE, WP: one after the other, the other way round each.
            a.mov(rax, cr0)?;
            a.btc(rax, bit)?;
            a.mov(cr0, rax)?;
            a.out(HERE as i32, al)?;
        }
        for bit in [2, 7, 9, 3] {
            a.mov(rax, cr4)?;
            a.btc(rax, bit)?;
            a.mov(cr4, rax)?;
            a.out(HERE as i32, al)?;
        }
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.xor(eax, (efer::SCE | efer::NXE) as i32)?;
        a.wrmsr()?;
        a.out(HERE as i32, al)?;
        a.mov(eax, DATA as u32)?;
        a.mov(cr2, rax)?;
        a.hlt()
    });
    let live = m.start(device);
    let (mut zero, mut four) = (m.cr0, m.cr4);
    let next = || assert!(matches!(live.vcpu.run(), Exit::Out { port, .. } if port == HERE.into()));
    for bit in [3, 1, 5, 16] {
        next();
        zero ^= 1 << bit;
        assert_eq!(live.vcpu.sregs().cr0, zero, "CR0 bit {bit}");
    }
    for bit in [2, 7, 9, 3] {
        next();
        four ^= 1 << bit;
        assert_eq!(live.vcpu.sregs().cr4, four, "CR4 bit {bit}");
    }
    next();
    assert_eq!(live.vcpu.sregs().efer, m.efer ^ (efer::SCE | efer::NXE));
    live.vcpu.run_to_hlt();
    assert_eq!(live.vcpu.sregs().cr2, DATA);
}

fn cr8_never_stale(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    m.code(|a| {
        for value in [5u32, 15, 0, 9] {
            a.mov(eax, value)?;
            a.mov(cr8, rax)?;
            a.out(HERE as i32, al)?;
        }
        a.mov(rbx, cr8)?;
        a.hlt()
    });
    let live = m.start(device);
    for value in [5, 15, 0, 9] {
        // Lowering it may be told on the way.
        while live.vcpu.run() == Exit::SetTpr {}
        assert_eq!((live.vcpu.sregs().cr8, live.vcpu.page.cr8()), (value, value));
    }
    live.edit_sregs(|s| s.cr8 = 3);
    live.vcpu.page.set_cr8(3);
    live.vcpu.run_to_hlt();
    assert_eq!(live.vcpu.regs().rbx, 3);
}

fn lmsw(device: &Device) {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| {
        a.mov(ax, 0x0e)?; // TS, EM, MP; LMSW cannot clear PE
        a.lmsw(ax)?;
        a.smsw(ebx)?;
        a.mov(ax, 0xfff0)?; // clears them; the upper bits are ignored
        a.lmsw(ax)?;
        a.mov(ecx, cr0)?;
        a.hlt()
    });
    let live = m.run(device);
    let regs = live.vcpu.regs();
    assert_eq!((regs.rbx, regs.rcx), (m.cr0 | 0x0e, m.cr0));
    // In real mode it can set PE, which the next instructions see.
    let mut m = Machine::new(Mode::Real);
    m.code(|a| {
        a.mov(ax, 1)?;
        a.lmsw(ax)?;
        a.hlt()
    });
    assert_eq!(m.run(device).vcpu.sregs().cr0, m.cr0 | 1);
}

fn clts(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    m.cr0 |= cr0::TS;
    m.code(|a| {
        a.clts()?;
        a.fld1()?;
        a.out(HERE as i32, al)?;
        a.mov(rax, cr0)?;
        a.or(rax, 8)?;
        a.mov(cr0, rax)?;
        a.fld1()
    });
    let live = m.start(device);
    assert!(matches!(live.vcpu.run(), Exit::Out { .. }));
    assert_eq!(live.vcpu.sregs().cr0 & cr0::TS, 0);
    live.vcpu.run_to_hlt();
    assert_eq!((live.vectors(), live.vcpu.sregs().cr0 & cr0::TS), (vec![7], cr0::TS));
}

fn lma(device: &Device) {
    let mut m = real_machine();
    let roots = roots(&mut m.image).0;
    enter_protected(&mut m, 0xb000, P32);
    m.assemble(32, P32, |a| {
        load_flat(a)?;
        // PAE first: see `cpu::exceptions::LOST_PAGING`.
        set_pae(a, true)?;
        set_lme(a, true)?;
        say(a, 1)?;
        set_root(a, roots[2])?;
        set_paging(a, true)?;
        say(a, 2)?;
        set_paging(a, false)?;
        say(a, 3)?;
        set_lme(a, false)?;
        say(a, 4)?;
        Ok([])
    });
    let live = m.start(device);
    for (byte, expected) in [(1, efer::LME), (2, efer::LME | efer::LMA), (3, efer::LME), (4, 0)] {
        assert_eq!(hears(&live, byte).efer & (efer::LME | efer::LMA), expected, "at {byte}");
    }
}

/// 32-bit code writes the lower halves; what it does not touch stays as 64-bit code left it, or is 0.
fn upper_halves(device: &Device) {
    let mut m = Machine::new(Mode::LONG);
    let at = 0xc000;
    m.assemble(32, at, |a| {
        a.mov(eax, 1)?;
        a.hlt()?;
        Ok([])
    });
    m.code(|a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(r8, rax)?;
        a.push(i32::from(sel::CODE32))?;
        a.push(at as i32)?;
        a.db(&[0x48, 0xcb])
    });
    let regs = m.run(device).vcpu.regs();
    assert_eq!((regs.rax, regs.r8, regs.rip), (1, 0x1122_3344_5566_7788, at + 6));
}
