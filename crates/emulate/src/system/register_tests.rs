//! Segment registers, descriptor tables, control and debug registers, and what depends on them.
use x86::{Attr, Cr0, Cr4, Efer, Features, Mode, Segment, Shadow, Table, Vector, debug as dr, flags};

use super::{control, testing::*};
use crate::{Flush, Intercept, Stop, testing::TestCpu};

fn ax(cpu: &mut TestCpu, value: u64) -> &mut TestCpu {
    cpu.state.gpr[0] = value;
    cpu
}

const MOV_DS: &[u8] = &[0x8e, 0xd8];
const MOV_SS: &[u8] = &[0x8e, 0xd0];
const MOV_FS: &[u8] = &[0x8e, 0xe0];

#[test]
fn data_segment_loads() {
    // Level, selector, the fault if any.
    let cases = [
        (0, KERNEL_DATA, None),
        (0, USER_DATA, None),
        (3, USER_DATA & !3, None),
        (3, CONFORMING | 3, None),
        (0, KERNEL_CODE, None),
        (0, 0, None),
        (0, 3, None),
        (3, KERNEL_DATA, Some(Stop::gp(KERNEL_DATA as u32))),
        (0, KERNEL_DATA | 1, Some(Stop::gp(KERNEL_DATA as u32))),
        (3, KERNEL_CODE, Some(Stop::gp(KERNEL_CODE as u32))),
        (0, TASK, Some(Stop::gp(TASK as u32))),
        (0, ABSENT, Some(Stop::fault_code(Vector::NP, ABSENT as u32))),
        (0, FREE, Some(Stop::gp(FREE as u32))),
        (0, 0x100, Some(Stop::gp(0x100))),
    ];
    for (cpl, selector, stop) in cases {
        for mut cpu in [legacy(cpl), long(cpl)] {
            set_gdt(&mut cpu, FREE, flat(9, 0, 0));
            let bytes = if selector & 1 == 0 { MOV_DS } else { MOV_FS };
            let n = if selector & 1 == 0 { 3 } else { 4 };
            ax(&mut cpu, selector as u64 | 0xffff_0000);
            match stop {
                Some(stop) => assert_eq!(stops(&mut cpu, bytes), stop, "{selector:#x}"),
                None => {
                    assert_eq!(run(&mut cpu, bytes), Ok(()), "{selector:#x}");
                    let segment = cpu.state.seg[n];
                    assert_eq!((segment.selector, segment.attr.unusable()), (selector, selector < 4));
                }
            }
        }
    }
}

#[test]
fn stack_segment_loads() {
    let cases = [
        (0, KERNEL_DATA, None),
        (3, USER_DATA, None),
        (0, USER_DATA, Some(Stop::gp(USER_DATA as u32 & !3))),
        (3, USER_DATA & !3, Some(Stop::gp(USER_DATA as u32 & !3))),
        (0, KERNEL_CODE, Some(Stop::gp(KERNEL_CODE as u32))),
        (0, ABSENT, Some(Stop::fault_code(Vector::SS, ABSENT as u32))),
        (3, 3, Some(Stop::GP0)),
    ];
    for (cpl, selector, stop) in cases {
        for mut cpu in [legacy(cpl), long(cpl)] {
            ax(&mut cpu, selector as u64);
            match stop {
                Some(stop) => assert_eq!(stops(&mut cpu, MOV_SS), stop, "{selector:#x}"),
                None => {
                    assert_eq!(run(&mut cpu, MOV_SS), Ok(()));
                    assert_eq!((cpu.state.seg[2].selector, cpu.state.shadow), (selector, Shadow::MovSs));
                    assert_eq!(cpu.state.cpl, cpl);
                }
            }
        }
    }
    assert_eq!(stops(ax(&mut legacy(0), 0), MOV_SS), Stop::GP0);
    let mut cpu = long(0);
    assert_eq!(run(ax(&mut cpu, 0), MOV_SS), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.seg[2].attr.unusable()), (0, true));
    // CS is no destination.
    assert_eq!(stops(&mut legacy(0), &[0x8e, 0xc8]), Stop::UD);
}

#[test]
fn segment_loads_set_the_accessed_bit() {
    let mut cpu = legacy(0);
    set_gdt(&mut cpu, FREE, flat(2, 0, 0));
    assert_eq!(run(ax(&mut cpu, FREE as u64), MOV_DS), Ok(()));
    assert_eq!(cpu.peek::<u64>(GDT + FREE as u64), flat(3, 0, 0));
    assert_eq!(cpu.state.seg[3].attr.typ(), 3);
}

#[test]
fn local_descriptors() {
    let mut cpu = legacy(0);
    set_gdt(&mut cpu, FREE, descriptor(LDT, 0xf, Attr::P | 2));
    cpu.write(LDT + 8, &flat(3, 0, 0).to_le_bytes());
    assert_eq!(stops(ax(&mut cpu, 0xc), MOV_DS), Stop::gp(0xc), "there is no LDT yet");
    assert_eq!(run(ax(&mut cpu, FREE as u64), &[0x0f, 0x00, 0xd0]), Ok(()));
    assert_eq!((cpu.state.ldtr.base, cpu.state.ldtr.limit), (LDT, 0xf));
    assert_eq!(run(ax(&mut cpu, 0xc), MOV_DS), Ok(()));
    assert_eq!(stops(ax(&mut cpu, 0x14), MOV_DS), Stop::gp(0x14));
    assert_eq!(stops(ax(&mut cpu, 0xc), &[0x0f, 0x00, 0xd0]), Stop::gp(0xc));
    assert_eq!(run(ax(&mut cpu, 0), &[0x0f, 0x00, 0xd0]), Ok(()));
    assert_eq!(stops(ax(&mut cpu, 0xc), MOV_DS), Stop::gp(0xc));
}

#[test]
fn real_mode_loads_keep_limit_and_attributes() {
    let mut cpu = real();
    let big = Segment { limit: u32::MAX, ..Segment::real(0, 0) };
    cpu.state.seg[3] = big;
    assert_eq!(run(ax(&mut cpu, 0x1234), MOV_DS), Ok(()));
    assert_eq!(cpu.state.seg[3], Segment { selector: 0x1234, base: 0x1_2340, ..big });
    let mut cpu = v86(0);
    cpu.state.seg[3] = big;
    assert_eq!(run(ax(&mut cpu, 0x1234), MOV_DS), Ok(()));
    assert_eq!(cpu.state.seg[3], Segment::real(0x1234, 3));
}

#[test]
fn pushes_pops_and_far_pointers() {
    let mut cpu = legacy(0);
    assert_eq!(run(&mut cpu, &[0x0e]), Ok(()));
    assert_eq!(cpu.peek::<u32>(cpu.state.gpr[4]), KERNEL_CODE as u32);
    assert_eq!(run(&mut cpu, &[0x66, 0x1e]), Ok(()));
    assert_eq!((cpu.state.gpr[4], cpu.peek::<u16>(KERNEL_STACK - 6)), (KERNEL_STACK - 6, KERNEL_DATA));
    assert_eq!(run(&mut cpu, &[0x66, 0x07]), Ok(()));
    assert_eq!((cpu.state.seg[0].selector, cpu.state.gpr[4]), (KERNEL_DATA, KERNEL_STACK - 4));
    // pop ss faults on a code selector, and ESP stays.
    assert_eq!(stops(&mut cpu, &[0x17]), Stop::gp(KERNEL_CODE as u32));

    // lds eax, [0x800]; a bad selector leaves EAX.
    let lds = &[0xc5, 0x05, 0, 8, 0, 0];
    cpu.write(0x800, &[0x78, 0x56, 0x34, 0x12]);
    cpu.write(0x804, &USER_DATA.to_le_bytes());
    assert_eq!(run(&mut cpu, lds), Ok(()));
    assert_eq!((cpu.state.gpr[0], cpu.state.seg[3].selector), (0x1234_5678, USER_DATA));
    cpu.write(0x804, &0x100u16.to_le_bytes());
    assert_eq!(stops(&mut cpu, lds), Stop::gp(0x100));
    // mov eax, ds extends with zeroes; mov [0x800], ds writes 2 bytes.
    cpu.state.gpr[0] = u64::MAX;
    assert_eq!(run(&mut cpu, &[0x8c, 0xd8]), Ok(()));
    assert_eq!(cpu.state.gpr[0], USER_DATA as u64);
    assert_eq!(run(&mut cpu, &[0x8c, 0x1d, 0, 8, 0, 0]), Ok(()));
    assert_eq!(cpu.peek::<u32>(0x800), 0x1234_0000 | USER_DATA as u32);
}

#[test]
fn descriptor_table_registers() {
    let lgdt = &[0x0f, 0x01, 0x14, 0x25, 0, 8, 0, 0];
    let sgdt = &[0x0f, 0x01, 0x04, 0x25, 0, 8, 0, 0];
    let lidt = &[0x0f, 0x01, 0x1c, 0x25, 0, 8, 0, 0];
    let mut cpu = long(0);
    cpu.write(0x800, &[0x7f, 0, 1, 2, 3, 4, 5, 0x80, 0xff, 0xff]);
    assert_eq!(run(&mut cpu, lgdt), Ok(()));
    assert_eq!(cpu.state.gdtr, Table { base: 0xffff_8005_0403_0201, limit: 0x7f });
    assert_eq!(run(&mut cpu, lidt), Ok(()));
    assert_eq!(cpu.state.idtr, cpu.state.gdtr);
    cpu.write(0x800, &[0; 10]);
    assert_eq!(run(&mut cpu, sgdt), Ok(()));
    assert_eq!(cpu.peek::<u64>(0x802), 0xffff_8005_0403_0201);
    cpu.write(0x802, &(1u64 << 47).to_le_bytes());
    assert_eq!(stops(&mut cpu, lgdt), Stop::GP0);
    assert_eq!(stops(&mut long(3), lgdt), Stop::GP0);
    let mut cpu = long(3);
    assert_eq!(run(&mut cpu, sgdt), Ok(()));
    cpu.state.cr4 |= Cr4::UMIP.bits();
    assert_eq!(stops(&mut cpu, sgdt), Stop::GP0);
    for bytes in [&[0x0f, 0x01, 0xe0][..], &[0x0f, 0x00, 0xc0], &[0x0f, 0x00, 0xc8]] {
        assert_eq!(stops(&mut cpu, bytes), Stop::GP0, "UMIP hides {bytes:x?}");
    }
    // A 16-bit operand loads 24 bits of base.
    let mut cpu = real();
    cpu.write(0x800, &[0x7f, 0, 1, 2, 3, 4]);
    assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0x16, 0, 8]), Ok(()));
    assert_eq!(cpu.state.gdtr, Table { base: 0x03_0201, limit: 0x7f });
    assert_eq!(run(&mut cpu, &[0x66, 0x0f, 0x01, 0x16, 0, 8]), Ok(()));
    assert_eq!(cpu.state.gdtr.base, 0x0403_0201);
    assert_eq!(stops(&mut cpu, &[0x0f, 0x00, 0xd8]), Stop::UD);
}

#[test]
fn task_register() {
    let ltr = &[0x0f, 0x00, 0xd8];
    let mut cpu = long(0);
    set_gdt(&mut cpu, FREE, descriptor(0x1234_5678, 0x67, Attr::P | 9));
    set_gdt(&mut cpu, FREE + 8, 0xffff_8000);
    assert_eq!(run(ax(&mut cpu, FREE as u64), ltr), Ok(()));
    assert_eq!((cpu.state.tr.base, cpu.state.tr.limit), (0xffff_8000_1234_5678, 0x67));
    assert_eq!((cpu.state.tr.attr.typ(), cpu.state.tr.selector), (11, FREE));
    assert_eq!(cpu.peek::<u8>(GDT + FREE as u64 + 5) & 15, 11, "busy in memory");
    assert_eq!(run(&mut cpu, &[0x0f, 0x00, 0xc8]), Ok(()));
    assert_eq!(cpu.state.gpr[0], FREE as u64);
    for (selector, stop) in [
        (FREE, Stop::gp(FREE as u32)),
        (0, Stop::GP0),
        (4, Stop::gp(4)),
        (KERNEL_CODE, Stop::gp(KERNEL_CODE as u32)),
        (0xf8, Stop::gp(0xf8)),
    ] {
        assert_eq!(stops(ax(&mut cpu, selector as u64), ltr), stop, "{selector:#x}");
    }
    // Half of the descriptor lies outside of the table.
    set_gdt(&mut cpu, 0xf8, descriptor(0, 0x67, Attr::P | 9));
    assert_eq!(stops(ax(&mut cpu, 0xf8), ltr), Stop::gp(0xf8));
    set_gdt(&mut cpu, FREE, descriptor(0, 0x67, 9));
    assert_eq!(stops(ax(&mut cpu, FREE as u64), ltr), Stop::fault_code(Vector::NP, FREE as u32));
}

const TO_CR0: &[u8] = &[0x0f, 0x22, 0xc0];
const TO_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
const TO_CR4: &[u8] = &[0x0f, 0x22, 0xe0];

#[test]
fn cr0_rules() {
    let pg = Cr0::PG.bits();
    let pe = Cr0::PE.bits();
    for (mut cpu, value) in
        [(legacy(0), pg), (legacy(0), pe | Cr0::NW.bits()), (long(0), pg | pe | 1 << 32), (long(0), pe)]
    {
        assert_eq!(stops(ax(&mut cpu, value), TO_CR0), Stop::GP0, "{value:#x}");
    }
    assert_eq!(stops(&mut legacy(3), TO_CR0), Stop::GP0);
    let mut cpu = legacy(0);
    assert_eq!(run(ax(&mut cpu, pe | 1 << 6), TO_CR0), Ok(()));
    assert_eq!(cpu.state.cr0, pe | Cr0::ET.bits());

    // Long mode needs PAE, and cannot be entered from 64-bit code or with a 16-bit TSS.
    let with = |prepare: fn(&mut TestCpu)| {
        let mut cpu = legacy(0);
        cpu.state.efer |= Efer::LME.bits();
        cpu.state.cr4 |= Cr4::PAE.bits();
        prepare(&mut cpu);
        run(ax(&mut cpu, pe | pg), TO_CR0)
    };
    assert_eq!(with(|_| ()), Ok(()));
    assert_eq!(with(|c| c.state.cr4 = 0), Err(Stop::GP0));
    assert_eq!(with(|c| c.state.seg[1].attr.0 |= Attr::L), Err(Stop::GP0));
    assert_eq!(with(|c| c.state.tr.attr = Attr(Attr::P | 3)), Err(Stop::GP0));

    // LMSW sets PE and does not clear it.
    let mut cpu = legacy(0);
    assert_eq!(run(ax(&mut cpu, 0xfff8), &[0x0f, 0x01, 0xf0]), Ok(()));
    assert_eq!(cpu.state.cr0 & 0xffff, Cr0::ET.bits() | Cr0::TS.bits() | pe);
    assert_eq!(run(&mut cpu, &[0x0f, 0x06]), Ok(()));
    assert_eq!(cpu.state.cr0 & Cr0::TS.bits(), 0);
    // Compatibility mode may leave long mode.
    let mut cpu = long(0);
    cpu.state.seg[1].attr = Attr(Attr::P | Attr::S | Attr::DB | 11);
    cpu.state.refresh();
    cpu.flushes.clear();
    assert_eq!(run(ax(&mut cpu, pe), TO_CR0), Ok(()));
    assert!(!cpu.state.long_mode() && cpu.flushes.contains(&Flush::All));
}

#[test]
fn cr3_rules() {
    let mut cpu = long(0);
    assert_eq!(run(ax(&mut cpu, 0x1234_5018), TO_CR3), Ok(()));
    assert_eq!((cpu.state.cr3, cpu.flushes.last()), (0x1234_5018, Some(&Flush::Cr3 { keep: false })));
    assert_eq!(stops(ax(&mut cpu, 1 << 63), TO_CR3), Stop::GP0);
    assert_eq!(stops(ax(&mut cpu, 1 << 52), TO_CR3), Stop::GP0);
    cpu.state.cr3 = 0;
    assert_eq!(run(ax(&mut cpu, cpu_cr4(Cr4::PAE | Cr4::PCIDE)), TO_CR4), Ok(()));
    assert_eq!(run(ax(&mut cpu, 1 << 63 | 0x5007), TO_CR3), Ok(()));
    assert_eq!((cpu.state.cr3, cpu.flushes.last()), (0x5007, Some(&Flush::Cr3 { keep: true })));

    // PAE: the four entries are read and checked.
    let mut cpu = legacy(0);
    cpu.state.cr4 |= Cr4::PAE.bits();
    cpu.state.cr0 |= Cr0::PG.bits();
    cpu.write(0x820, &0x5001u64.to_le_bytes());
    cpu.write(0x838, &0xfee0u64.to_le_bytes());
    assert_eq!(run(ax(&mut cpu, 0x820), TO_CR3), Ok(()));
    assert_eq!(cpu.state.pdptr, [0x5001, 0, 0, 0xfee0]);
    for entry in [0x5003u64, 1 | 1 << 63, 1 | 1 << 8] {
        cpu.write(0x820, &entry.to_le_bytes());
        assert_eq!(stops(ax(&mut cpu, 0x820), TO_CR3), Stop::GP0, "{entry:#x}");
    }
}

fn cpu_cr4(bits: Cr4) -> u64 {
    bits.bits()
}

#[test]
fn cr4_rules() {
    for (mut cpu, value) in [
        (long(0), 0),
        (legacy(0), Cr4::PCIDE.bits()),
        (legacy(0), 1 << 15),
        (legacy(0), Cr4::VMXE.bits()),
        (legacy(0), Cr4::LA57.bits()),
    ] {
        assert_eq!(stops(ax(&mut cpu, value), TO_CR4), Stop::GP0, "{value:#x}");
    }
    let mut cpu = long(0);
    cpu.state.cr3 = 1;
    assert_eq!(stops(ax(&mut cpu, cpu_cr4(Cr4::PAE | Cr4::PCIDE)), TO_CR4), Stop::GP0);
    let mut cpu = legacy(0);
    cpu.features -= Features::SMEP;
    assert_eq!(stops(ax(&mut cpu, Cr4::SMEP.bits()), TO_CR4), Stop::GP0);
    assert_eq!(run(ax(&mut cpu, Cr4::PGE.bits()), TO_CR4), Ok(()));
    assert!(cpu.flushes.contains(&Flush::All));
}

#[test]
fn efer_and_xcr0_rules() {
    let mut state = long(0).state;
    let features = Features::all();
    let old = state.efer;
    assert!(control::write_efer(&mut state, features, old & !Efer::LME.bits()).is_err());
    assert!(control::write_efer(&mut state, features, old | 2).is_err());
    assert!(control::write_efer(&mut state, Features::LM | Features::SYSCALL, old).is_err(), "no NX");
    assert_eq!(control::write_efer(&mut state, features, old & !Efer::LMA.bits()), Ok(None));
    assert_eq!(state.efer, old, "LMA cannot be written");
    assert_eq!(control::write_efer(&mut state, features, old & !Efer::NXE.bits()), Ok(Some(Flush::All)));

    for (value, ok) in [(0, false), (1, true), (3, true), (7, true), (5, false), (2, false), (9, false)] {
        assert_eq!(control::check_xcr0(7, value).is_ok(), ok, "{value}");
    }
    let mut cpu = long(0);
    assert_eq!(stops(ax(&mut cpu, 7), &[0x0f, 0x01, 0xd1]), Stop::UD);
    cpu.state.cr4 |= Cr4::OSXSAVE.bits();
    assert_eq!(run(ax(&mut cpu, 7), &[0x0f, 0x01, 0xd1]), Ok(()));
    assert_eq!(run(ax(&mut cpu, 0), &[0x0f, 0x01, 0xd0]), Ok(()));
    assert_eq!((cpu.state.gpr[0], cpu.state.gpr[2], cpu.state.xcr0), (7, 0, 7));
    cpu.state.gpr[1] = 1;
    cpu.state.fpu.legacy.xmm[3][0] = 1;
    assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0xd0]), Ok(()));
    assert_eq!(cpu.state.gpr[0] & 6, 2, "XMM registers are in use, YMM registers are not");
    cpu.state.gpr[1] = 2;
    assert_eq!(stops(&mut cpu, &[0x0f, 0x01, 0xd0]), Stop::GP0);
}

#[test]
fn combinations_for_the_hypervisor() {
    let all = Features::all();
    let (pe, pg) = (Cr0::PE.bits(), Cr0::PE.bits() | Cr0::PG.bits());
    let (lme, lma) = (Efer::LME.bits(), Efer::LME.bits() | Efer::LMA.bits());
    let pae = Cr4::PAE.bits();
    for (cr0, cr4, efer, ok) in [
        (0x10, 0, 0, true),
        (pg, 0, 0, true),
        (pg, pae, lma, true),
        (pe, pae, lme, true),
        (pg, 0, lma, false),
        (pg, pae, lme, false),
        (pe, pae, lma, false),
        (Cr0::PG.bits(), 0, 0, false),
        (pg, Cr4::PCIDE.bits(), 0, false),
        (pg, Cr4::VMXE.bits(), 0, false),
    ] {
        assert_eq!(control::check_control(all, cr0, cr4, efer).is_ok(), ok, "{cr0:#x} {cr4:#x} {efer:#x}");
    }
}

#[test]
fn debug_registers() {
    let to = |n: u8| [0x0f, 0x23, 0xc0 | n << 3];
    let from = |n: u8| [0x0f, 0x21, 0xc0 | n << 3];
    let mut cpu = long(0);
    assert_eq!(run(ax(&mut cpu, u64::MAX >> 17), &to(0)), Ok(()));
    assert_eq!(cpu.state.dr[0], u64::MAX >> 17);
    assert_eq!(run(ax(&mut cpu, 0xffff_ffff), &to(7)), Ok(()));
    assert_eq!(cpu.state.dr7, dr::DR7_VOLATILE | dr::DR7_FIXED);
    // GD is set: every access traps, and reports BD.
    assert_eq!(stops(&mut cpu, &from(0)), Stop::fault(Vector::DB));
    assert_eq!(cpu.payload, dr::DR6_BD);
    cpu.state.dr7 = dr::DR7_FIXED;
    assert_eq!(run(ax(&mut cpu, 0), &to(4)), Ok(()), "DR4 is DR6");
    assert_eq!(cpu.state.dr6, dr::DR6_FIXED);
    assert_eq!(run(&mut cpu, &from(6)), Ok(()));
    assert_eq!(cpu.state.gpr[0], dr::DR6_FIXED);
    assert_eq!(stops(ax(&mut cpu, 1 << 32), &to(7)), Stop::GP0);
    cpu.state.cr4 |= Cr4::DE.bits();
    assert_eq!(stops(&mut cpu, &to(5)), Stop::UD);
    assert_eq!(stops(&mut long(3), &from(0)), Stop::GP0);
}

#[test]
fn privileged_instructions_at_level_3() {
    for bytes in [
        &[0xf4][..],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0x06],
        &[0x0f, 0x01, 0x38],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x01, 0xf0],
        &[0xfa],
        &[0xfb],
        &[0x66, 0x0f, 0x38, 0x82, 0x01],
    ] {
        let mut cpu = long(3);
        assert_eq!(stops(&mut cpu, bytes), Stop::GP0, "{bytes:x?}");
        assert!(cpu.intercepts.is_empty());
    }
    let mut cpu = long(3);
    cpu.state.cr4 |= Cr4::TSD.bits();
    assert_eq!(stops(&mut cpu, &[0x0f, 0x31]), Stop::GP0);
    assert_eq!(stops(&mut cpu, &[0x0f, 0x33]), Stop::GP0);
    assert_eq!(stops(&mut cpu, &[0x0f, 0x01, 0xca]), Stop::UD);
    assert_eq!(stops(&mut cpu, &[0x0f, 0x01, 0xc8]), Stop::UD);
}

/// What a row of the table below expects.
#[derive(Clone, Copy)]
enum Level {
    /// Done, or left to whoever runs the processor.
    Done,
    Gp,
    Ud,
}

#[test]
fn levels_and_modes_decide() {
    use Level::{Done as O, Gp as G, Ud as U};
    // Real mode, virtual-8086 mode with IOPL 3, protected mode at levels 0 and 3, 64-bit mode at levels 0 and 3.
    let table: &[(&str, &[u8], [Level; 6])] = &[
        ("hlt", &[0xf4], [O, G, O, G, O, G]),
        ("clts", &[0x0f, 0x06], [O, G, O, G, O, G]),
        ("invd", &[0x0f, 0x08], [O, G, O, G, O, G]),
        ("wbinvd", &[0x0f, 0x09], [O, G, O, G, O, G]),
        ("wrmsr", &[0x0f, 0x30], [O, G, O, G, O, G]),
        ("rdmsr", &[0x0f, 0x32], [O, G, O, G, O, G]),
        ("rdpmc", &[0x0f, 0x33], [O, G, O, G, O, G]),
        ("rdtsc", &[0x0f, 0x31], [O, O, O, O, O, O]),
        ("cpuid", &[0x0f, 0xa2], [O, O, O, O, O, O]),
        ("lmsw", &[0x0f, 0x01, 0xf0], [O, G, O, G, O, G]),
        ("smsw", &[0x0f, 0x01, 0xe0], [O, O, O, O, O, O]),
        ("invlpg", &[0x0f, 0x01, 0x38], [O, G, O, G, O, G]),
        ("mov from cr0", &[0x0f, 0x20, 0xc0], [O, G, O, G, O, G]),
        ("mov to cr2", &[0x0f, 0x22, 0xd0], [O, G, O, G, O, G]),
        ("mov from dr0", &[0x0f, 0x21, 0xc0], [O, G, O, G, O, G]),
        ("mov to dr0", &[0x0f, 0x23, 0xc0], [O, G, O, G, O, G]),
        ("sldt", &[0x0f, 0x00, 0xc0], [U, U, O, O, O, O]),
        ("str", &[0x0f, 0x00, 0xc8], [U, U, O, O, O, O]),
        ("lldt", &[0x0f, 0x00, 0xd0], [U, U, O, G, O, G]),
        ("ltr of a null selector", &[0x0f, 0x00, 0xd8], [U, U, G, G, G, G]),
        ("lar", &[0x0f, 0x02, 0xc0], [U, U, O, O, O, O]),
        ("lsl", &[0x0f, 0x03, 0xc0], [U, U, O, O, O, O]),
        ("verr", &[0x0f, 0x00, 0xe0], [U, U, O, O, O, O]),
        ("verw", &[0x0f, 0x00, 0xe8], [U, U, O, O, O, O]),
        ("cli", &[0xfa], [O, O, O, G, O, G]),
        ("sti", &[0xfb], [O, O, O, G, O, G]),
        ("swapgs", &[0x0f, 0x01, 0xf8], [U, U, U, U, O, G]),
        ("xsetbv without CR4.OSXSAVE", &[0x0f, 0x01, 0xd1], [U, U, U, U, U, U]),
    ];
    for (name, bytes, wanted) in table {
        for (i, mut cpu) in [real(), v86(3), legacy(0), legacy(3), long(0), long(3)].into_iter().enumerate() {
            let mode = cpu.state.mode;
            match wanted[i] {
                O => assert_eq!(run(&mut cpu, bytes), Ok(()), "{name}, {mode:?}, level {}", cpu.state.cpl),
                G => assert_eq!(stops(&mut cpu, bytes), Stop::GP0, "{name}, {mode:?}"),
                U => assert_eq!(stops(&mut cpu, bytes), Stop::UD, "{name}, {mode:?}"),
            }
        }
    }
    // Counters by CR4: TSD takes them from programs, PCE gives them.
    for (bytes, bit, denied) in
        [(&[0x0f, 0x31][..], Cr4::TSD, true), (&[0x0f, 0x01, 0xf9], Cr4::TSD, true), (&[0x0f, 0x33], Cr4::PCE, false)]
    {
        for mut cpu in [v86(3), legacy(3), long(3)] {
            cpu.state.cr4 |= bit.bits();
            assert_eq!(run(&mut cpu, bytes), if denied { Err(Stop::GP0) } else { Ok(()) }, "{bytes:02x?}");
        }
        let mut cpu = long(0);
        cpu.state.cr4 |= bit.bits();
        assert_eq!(run(&mut cpu, bytes), Ok(()));
    }
}

#[test]
fn intercepted_instructions() {
    for (bytes, what) in [
        (&[0xf4][..], Intercept::Hlt),
        (&[0x0f, 0xa2], Intercept::Cpuid),
        (&[0x0f, 0x32], Intercept::Rdmsr),
        (&[0x0f, 0x30], Intercept::Wrmsr),
        (&[0x0f, 0x33], Intercept::Rdpmc),
        (&[0x0f, 0x01, 0xc1], Intercept::Hypercall),
        (&[0x0f, 0x01, 0xd9], Intercept::Hypercall),
        (&[0x0f, 0x09], Intercept::Wbinvd),
        (&[0x0f, 0xaa], Intercept::Rsm),
        (&[0x0f, 0x01, 0xc8], Intercept::Monitor),
        (&[0x0f, 0x01, 0xc9], Intercept::Mwait),
        (&[0x44, 0x0f, 0x22, 0xc0], Intercept::WriteCr8(5)),
        (&[0x44, 0x0f, 0x20, 0xc0], Intercept::ReadCr8),
    ] {
        let mut cpu = long(0);
        assert_eq!(run(ax(&mut cpu, 5), bytes), Ok(()), "{bytes:x?}");
        assert_eq!(cpu.intercepts, [what]);
    }
    assert_eq!(stops(ax(&mut long(0), 16), &[0x44, 0x0f, 0x22, 0xc0]), Stop::GP0);
    assert_eq!(stops(&mut long(0), &[0x0f, 0x22, 0xc8]), Stop::UD, "there is no CR1");
}

#[test]
fn flags_of_interrupts_and_access() {
    let (cli, sti) = (&[0xfa][..], &[0xfb][..]);
    let mut cpu = long(0);
    assert_eq!(run(&mut cpu, sti), Ok(()));
    assert_eq!((cpu.state.flags.control(flags::IF), cpu.state.shadow), (true, Shadow::Sti));
    cpu.state.shadow = Shadow::None;
    assert_eq!(run(&mut cpu, sti), Ok(()));
    assert_eq!(cpu.state.shadow, Shadow::None, "IF was set before");
    assert_eq!(run(&mut cpu, cli), Ok(()));
    assert!(!cpu.state.flags.control(flags::IF));

    // Level 3 with CR4.PVI, and virtual-8086 with CR4.VME: VIF in IF's place.
    for mut cpu in [legacy(3), v86(0)] {
        assert_eq!(stops(&mut cpu, sti), Stop::GP0);
        cpu.state.cr4 |= (Cr4::PVI | Cr4::VME).bits();
        assert_eq!(run(&mut cpu, sti), Ok(()));
        assert!(cpu.state.flags.control(flags::VIF) && !cpu.state.flags.control(flags::IF));
        assert_eq!(run(&mut cpu, cli), Ok(()));
        assert!(!cpu.state.flags.control(flags::VIF));
        cpu.state.flags.set_control(flags::VIP, flags::VIP);
        assert_eq!(stops(&mut cpu, sti), Stop::GP0);
    }
    let mut cpu = v86(3);
    assert_eq!(run(&mut cpu, sti), Ok(()));
    assert!(cpu.state.flags.control(flags::IF));

    let mut cpu = long(0);
    assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0xcb]), Ok(()));
    assert!(cpu.state.flags.control(flags::AC) && cpu.flushes.contains(&Flush::Rights));
    assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0xca]), Ok(()));
    assert!(!cpu.state.flags.control(flags::AC));
}

#[test]
fn translations() {
    let mut cpu = long(0);
    cpu.state.gpr[1] = 0x1234_5678;
    assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0x39]), Ok(()));
    cpu.state.gpr[1] = 1 << 47;
    assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0x39]), Ok(()));
    assert_eq!(cpu.flushes, [Flush::Page(0x1234_5678)]);

    let invpcid = &[0x66, 0x0f, 0x38, 0x82, 0x01];
    for (kind, low, linear, expected) in [
        (0u64, 5u64, 0x1000u64, Ok(Flush::PcidPage { pcid: 5, linear: 0x1000 })),
        (1, 5, 0, Ok(Flush::Pcid(5))),
        (2, 0, 0, Ok(Flush::All)),
        (3, 0, 0, Ok(Flush::NonGlobal)),
        (4, 0, 0, Err(Stop::GP0)),
        (0, 0, 1 << 47, Err(Stop::GP0)),
        (1, 0x1000, 0, Err(Stop::GP0)),
    ] {
        let mut cpu = long(0);
        cpu.state.cr4 |= Cr4::PCIDE.bits();
        cpu.state.gpr[1] = 0x800;
        cpu.write(0x800, &low.to_le_bytes());
        cpu.write(0x808, &linear.to_le_bytes());
        let result = run(ax(&mut cpu, kind), invpcid);
        assert_eq!(result.map(|()| *cpu.flushes.last().unwrap()), expected, "{kind}");
    }
    let mut cpu = long(0);
    cpu.state.gpr[1] = 0x800;
    cpu.write(0x800, &[1]);
    assert_eq!(stops(ax(&mut cpu, 1), invpcid), Stop::GP0, "a PCID without CR4.PCIDE");
}

#[test]
fn counters_and_bases() {
    let mut cpu = long(3);
    cpu.tsc = 0x1_2345_6789;
    cpu.state.tsc_aux = 7;
    assert_eq!(run(&mut cpu, &[0x0f, 0x01, 0xf9]), Ok(()));
    assert_eq!((cpu.state.gpr[0], cpu.state.gpr[2], cpu.state.gpr[1]), (0x2345_6789, 1, 7));
    assert_eq!(run(&mut cpu, &[0xf3, 0x0f, 0xc7, 0xf8]), Ok(()));
    assert_eq!(cpu.state.gpr[0], 7);
    cpu.state.flags.set(flags::STATUS);
    assert_eq!(run(&mut cpu, &[0x48, 0x0f, 0xc7, 0xf0]), Ok(()));
    assert_eq!(cpu.state.flags.get(), flags::CF | flags::FIXED);
    cpu.features -= Features::RDSEED;
    assert_eq!(stops(&mut cpu, &[0x0f, 0xc7, 0xf8]), Stop::UD);

    let wrfsbase = &[0xf3, 0x48, 0x0f, 0xae, 0xd0];
    assert_eq!(stops(ax(&mut cpu, 5), wrfsbase), Stop::UD);
    cpu.state.cr4 |= Cr4::FSGSBASE.bits();
    assert_eq!(run(&mut cpu, wrfsbase), Ok(()));
    assert_eq!(cpu.state.seg[4].base, 5);
    assert_eq!(stops(ax(&mut cpu, 1 << 47), wrfsbase), Stop::GP0);
    assert_eq!(run(&mut cpu, &[0xf3, 0x0f, 0xae, 0xc0]), Ok(()));
    assert_eq!(cpu.state.gpr[0], 5);
    assert_eq!(cpu.state.mode, Mode::Long64);
}
