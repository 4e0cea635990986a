//! Checks before execution, and images in memory.
use std::vec::Vec;

use x86::{Attr, Cr0, Cr4, Efer, Features, Mode, Seg, Vector, flags};

use crate::{
    Res, Stop, step,
    testing::{Page, TestCpu},
};

const CODE: u64 = 0x100;
const DATA: u64 = 0x1000;

/// 64-bit mode, or another, with everything switched on; EBX and RBX point at DATA.
fn cpu(mode: Mode) -> TestCpu {
    let mut cpu = TestCpu::in_mode(mode, 0, 0x4000);
    cpu.state.cr0 &= !(Cr0::EM | Cr0::TS).bits();
    cpu.state.cr0 |= (Cr0::MP | Cr0::NE).bits();
    cpu.state.cr4 |= (Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
    cpu.state.xcr0 = 7;
    cpu.state.gpr[3] = DATA;
    cpu.state.fpu = x86::Fpu::default();
    cpu
}

fn run(cpu: &mut TestCpu, bytes: &[u8]) -> Res {
    cpu.state.rip = CODE;
    cpu.write(CODE, bytes);
    step(cpu)
}

const MF: Stop = Stop::fault(Vector::MF);

const ADDPS: &[u8] = &[0x0f, 0x58, 0xc1];
const ADDPS_MEM: &[u8] = &[0x0f, 0x58, 0x03];
const MOVUPS_MEM: &[u8] = &[0x0f, 0x10, 0x03];
const VADDPS: &[u8] = &[0xc5, 0xf0, 0x58, 0xc2];
const VADDPS_MEM: &[u8] = &[0xc5, 0xf0, 0x58, 0x03];
const VMOVAPS_MEM: &[u8] = &[0xc5, 0xf8, 0x28, 0x03];
const PADDB: &[u8] = &[0x0f, 0xfc, 0xc1];
const FADD: &[u8] = &[0xd8, 0xc1];
const FNINIT: &[u8] = &[0xdb, 0xe3];
const FWAIT: &[u8] = &[0x9b];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x03];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0b];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2b];
const XSAVEOPT: &[u8] = &[0x0f, 0xae, 0x33];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x23];
const FNSTENV: &[u8] = &[0xd9, 0x33];
const FLDENV: &[u8] = &[0xd9, 0x23];
const FNSAVE: &[u8] = &[0xdd, 0x33];
const FRSTOR: &[u8] = &[0xdd, 0x23];

/// An instruction, a change to the processor, and what the instruction then raises.
type Case = (&'static [u8], fn(&mut TestCpu), Option<Stop>);

#[test]
fn control_registers_decide_what_runs() {
    let set_em: fn(&mut TestCpu) = |c| c.state.cr0 |= Cr0::EM.bits();
    let set_ts: fn(&mut TestCpu) = |c| c.state.cr0 |= Cr0::TS.bits();
    let no_osfxsr: fn(&mut TestCpu) = |c| c.state.cr4 &= !Cr4::OSFXSR.bits();
    let no_osxsave: fn(&mut TestCpu) = |c| c.state.cr4 &= !Cr4::OSXSAVE.bits();
    let no_avx_state: fn(&mut TestCpu) = |c| c.state.xcr0 = 3;
    let pending: fn(&mut TestCpu) = |c| {
        c.state.fpu.legacy.fcw = 0x37b;
        c.state.fpu.legacy.fsw = 0x8084;
    };
    let ts_without_mp: fn(&mut TestCpu) = |c| {
        c.state.cr0 |= Cr0::TS.bits();
        c.state.cr0 &= !Cr0::MP.bits();
    };
    let nothing: fn(&mut TestCpu) = |_| {};
    let ud = Some(Stop::UD);
    let nm = Some(Stop::NM);
    let mf = Some(MF);
    let cases: &[Case] = &[
        (ADDPS, nothing, None),
        (ADDPS, set_em, ud),
        (ADDPS, set_ts, nm),
        (ADDPS, no_osfxsr, ud),
        (ADDPS, no_osxsave, None),
        (ADDPS, pending, None),
        (VADDPS, nothing, None),
        (VADDPS, set_em, None),
        (VADDPS, set_ts, nm),
        (VADDPS, no_osfxsr, None),
        (VADDPS, no_osxsave, ud),
        (VADDPS, no_avx_state, ud),
        (PADDB, nothing, None),
        (PADDB, set_em, ud),
        (PADDB, set_ts, nm),
        (PADDB, no_osfxsr, None),
        (PADDB, pending, mf),
        (FADD, nothing, None),
        (FADD, set_em, nm),
        (FADD, set_ts, nm),
        (FADD, pending, mf),
        (FNINIT, pending, None),
        (FNINIT, set_ts, nm),
        (FWAIT, nothing, None),
        (FWAIT, set_em, None),
        (FWAIT, set_ts, nm),
        (FWAIT, ts_without_mp, None),
        (FWAIT, pending, mf),
        (FXSAVE, set_em, ud),
        (FXSAVE, set_ts, nm),
        (FXSAVE, pending, None),
        (FXSAVE, no_osfxsr, None),
        (XSAVE, nothing, None),
        (XSAVE, set_em, None),
        (XSAVE, set_ts, nm),
        (XSAVE, no_osxsave, ud),
        (FNSTENV, pending, None),
        (FLDENV, pending, mf),
    ];
    for (i, (bytes, change, expected)) in cases.iter().enumerate() {
        let mut c = cpu(Mode::Long64);
        change(&mut c);
        assert_eq!(run(&mut c, bytes).err(), *expected, "case {i}: {bytes:02x?}");
    }
}

#[test]
fn features_decide_what_exists() {
    let cases: &[(&[u8], Features)] = &[
        (ADDPS, Features::SSE),
        (MOVUPS_MEM, Features::SSE),
        (VADDPS, Features::AVX),
        (PADDB, Features::MMX),
        (FXSAVE, Features::FXSR),
        (XSAVE, Features::XSAVE),
        (XSAVEOPT, Features::XSAVEOPT),
        (XSAVEC, Features::XSAVEC),
        (&[0xda, 0xc1], Features::CMOV),
        (&[0x66, 0x0f, 0x38, 0xdc, 0xc1], Features::AES),
        (&[0xc4, 0xe2, 0x71, 0xdc, 0xc2], Features::AES),
        (&[0xc4, 0xe2, 0x75, 0xdc, 0xc2], Features::VAES),
        (&[0xc5, 0xf5, 0xfc, 0xc2], Features::AVX2),
        (&[0xc4, 0xe2, 0xf1, 0xb8, 0xc2], Features::FMA),
    ];
    for (bytes, feature) in cases {
        let mut c = cpu(Mode::Long64);
        assert_eq!(run(&mut c, bytes), Ok(()), "{bytes:02x?}");
        c.features.remove(*feature);
        assert_eq!(run(&mut c, bytes), Err(Stop::UD), "{bytes:02x?} without {feature:?}");
    }
    // Never offered: EVEX, XOP, FMA4, 3DNow!, XSAVES.
    let never: &[&[u8]] = &[
        &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2],
        &[0x8f, 0xe8, 0x78, 0xa2, 0xc1, 0x20],
        &[0xc4, 0xe3, 0xf1, 0x68, 0xc2, 0x30],
        &[0x0f, 0x0f, 0xc1, 0x9e],
        &[0x0f, 0xc7, 0x2b],
    ];
    for bytes in never {
        assert_eq!(run(&mut cpu(Mode::Long64), bytes), Err(Stop::UD), "{bytes:02x?}");
    }
}

#[test]
fn vex_does_not_exist_in_real_and_virtual_8086_mode() {
    for mode in [Mode::Real, Mode::Virtual8086] {
        assert_eq!(run(&mut cpu(mode), VADDPS), Err(Stop::UD), "{mode:?}");
        assert_eq!(run(&mut cpu(mode), ADDPS), Ok(()), "{mode:?}");
    }
    assert_eq!(run(&mut cpu(Mode::Protected16), VADDPS), Ok(()));
}

#[test]
fn alignment_is_checked_where_the_manuals_say() {
    let cases: &[(&[u8], bool)] = &[
        (ADDPS_MEM, true),
        (MOVUPS_MEM, false),
        (&[0x0f, 0x28, 0x03], true),
        (&[0x0f, 0x57, 0x03], true),
        (VADDPS_MEM, false),
        (VMOVAPS_MEM, true),
        (&[0x66, 0x0f, 0x3a, 0x63, 0x03, 0x0c], false),
        (&[0xf2, 0x0f, 0x58, 0x03], false),
        (FXSAVE, true),
        (FXRSTOR, true),
    ];
    for (bytes, aligned) in cases {
        let mut c = cpu(Mode::Long64);
        c.state.gpr[3] = DATA + 8;
        let expected = if *aligned { Err(Stop::GP0) } else { Ok(()) };
        assert_eq!(run(&mut c, bytes), expected, "{bytes:02x?}");
    }
    // XSAVE wants 64 bytes.
    let mut c = cpu(Mode::Long64);
    c.state.gpr[3] = DATA + 32;
    assert_eq!(run(&mut c, XSAVE), Err(Stop::GP0));
}

/// A state in which every part is told from every other and nothing is initial.
fn fill(c: &mut TestCpu) {
    let fpu = &mut c.state.fpu;
    for i in 0..16u8 {
        fpu.legacy.xmm[i as usize] = [0x40 + i; 16];
        fpu.ymm_hi[i as usize] = [0x80 + i; 16];
    }
    for i in 0..8u8 {
        fpu.legacy.st[i as usize] = [0; 16];
        fpu.legacy.st[i as usize][..10].fill(0x10 + i);
    }
    fpu.legacy.fcw = 0x27f;
    fpu.legacy.fsw = 0x3820;
    fpu.legacy.ftw = 0x81;
    fpu.legacy.fop = 0x123;
    fpu.legacy.fip = 0x1_2345_6789;
    fpu.legacy.fdp = 0x2_9abc_def0;
    fpu.legacy.mxcsr = 0x1fa0;
}

#[test]
fn fxsave_and_fxrstor_are_inverse_and_leave_the_rest_alone() {
    for (prefix, wide) in [(&[][..], false), (&[0x48][..], true)] {
        let with = |op: &[u8]| [prefix, op].concat();
        let mut c = cpu(Mode::Long64);
        c.memory[DATA as usize..DATA as usize + 512].fill(0xcc);
        fill(&mut c);
        let before = c.state.fpu;
        run(&mut c, &with(FXSAVE)).unwrap();
        assert_eq!(c.peek::<u32>(DATA + 28), 0xffff, "MXCSR_MASK");
        assert_eq!(c.peek::<u64>(DATA + 8), 0x1_2345_6789);
        assert_eq!(c.peek::<u8>(DATA + 4), 0x81);
        assert!(c.memory[DATA as usize + 416..DATA as usize + 512].iter().all(|&b| b == 0xcc));
        c.state.fpu = x86::Fpu { ymm_hi: before.ymm_hi, ..Default::default() };
        run(&mut c, &with(FXRSTOR)).unwrap();
        assert_eq!(c.state.fpu, before, "wide: {wide}");
    }
}

#[test]
fn fxsave_transfers_what_the_mode_has() {
    let xmm8 = DATA + 160 + 8 * 16;
    for (mode, efer, cpl, xmm0_saved, xmm8_saved) in [
        (Mode::Long64, 0, 0, true, true),
        (Mode::Protected32, 0, 0, true, false),
        (Mode::Long64, Efer::FFXSR.bits(), 0, false, false),
        (Mode::Long64, Efer::FFXSR.bits(), 3, true, true),
    ] {
        let mut c = cpu(mode);
        c.state.efer |= efer;
        c.state.cpl = cpl;
        fill(&mut c);
        run(&mut c, FXSAVE).unwrap();
        assert_eq!(c.peek::<u8>(DATA + 160) == 0x40, xmm0_saved, "{mode:?} {efer:#x} {cpl}");
        assert_eq!(c.peek::<u8>(xmm8) == 0x48, xmm8_saved, "{mode:?} {efer:#x} {cpl}");
    }
}

#[test]
fn reserved_mxcsr_bits_fault_before_anything_changes() {
    let mut c = cpu(Mode::Long64);
    fill(&mut c);
    let before = c.state.fpu;
    c.write(DATA + 24, &0x0002_1f80u32.to_le_bytes());
    assert_eq!(run(&mut c, FXRSTOR), Err(Stop::GP0));
    c.write(DATA + 512, &2u64.to_le_bytes());
    (c.state.gpr[0], c.state.gpr[2]) = (7, 0);
    assert_eq!(run(&mut c, XRSTOR), Err(Stop::GP0));
    c.state.gpr[3] = DATA + 24;
    assert_eq!(run(&mut c, &[0x0f, 0xae, 0x13]), Err(Stop::GP0), "LDMXCSR");
    assert_eq!(c.state.fpu, before);
}

#[test]
fn xsave_writes_what_is_asked_for() {
    let mut c = cpu(Mode::Long64);
    let area = DATA as usize;
    c.memory[area..area + 1024].fill(0xcc);
    c.memory[area + 512..area + 576].fill(0);
    // A component that is not asked for keeps its bit.
    c.write(DATA + 512, &1u64.to_le_bytes());
    fill(&mut c);
    (c.state.gpr[0], c.state.gpr[2]) = (0xffff_fff6, u64::MAX);
    run(&mut c, XSAVE).unwrap();
    assert_eq!(c.peek::<u64>(DATA + 512), 7);
    assert_eq!(c.peek::<u64>(DATA), 0xcccc_cccc_cccc_cccc, "x87 was not asked for");
    assert_eq!(c.peek::<u32>(DATA + 24), 0x1fa0);
    assert_eq!(c.peek::<u8>(DATA + 160), 0x40);
    assert_eq!(c.peek::<u8>(DATA + 576 + 15 * 16), 0x8f);
    assert!(c.memory[area + 832..area + 1024].iter().all(|&b| b == 0xcc));
}

/// What is stored needs a segment that can be written; what is loaded does not.
#[test]
fn stores_respect_the_type_of_their_segment() {
    const READ_ONLY: u16 = Attr::P | Attr::S | Attr::G | Attr::DB | 1;
    // FLD, FSTP, FISTP; MOVUPS as a load and as a store, MOVHPS as a store.
    let cases: [(&[u8], bool); 6] = [
        (&[0xd9, 0x03], true),
        (&[0xd9, 0x1b], false),
        (&[0xdf, 0x3b], false),
        (&[0x0f, 0x10, 0x03], true),
        (&[0x0f, 0x11, 0x03], false),
        (&[0x0f, 0x17, 0x03], false),
    ];
    for (bytes, ok) in cases {
        let mut c = cpu(Mode::Protected32);
        c.state.seg[Seg::Ds as usize].attr = Attr(READ_ONLY);
        assert_eq!(run(&mut c, bytes), if ok { Ok(()) } else { Err(Stop::GP0) }, "{bytes:x?}");
    }
}

/// Where what is to be written ends on a page that cannot be, nothing is; what is not asked for needs no room.
#[test]
fn xsave_writes_all_or_nothing() {
    let area = 0x3000 - 576;
    for (wanted, ok) in [(3, true), (7, false)] {
        let mut c = cpu(Mode::Long64);
        c.pages.insert(3, Page::ReadOnly);
        c.memory[area as usize..][..576].fill(0);
        fill(&mut c);
        (c.state.gpr[0], c.state.gpr[2], c.state.gpr[3]) = (wanted, 0, area);
        assert_eq!(run(&mut c, XSAVE).is_ok(), ok, "{wanted}");
        assert_eq!(c.memory[area as usize..][..576].iter().any(|&byte| byte != 0), ok, "{wanted}");
    }
}

#[test]
fn initial_components_are_left_out_or_loaded() {
    let mut c = cpu(Mode::Long64);
    let area = DATA as usize;
    c.memory[area..area + 1024].fill(0xcc);
    c.memory[area + 512..area + 576].fill(0);
    fill(&mut c);
    c.state.fpu.ymm_hi = [[0; 16]; 16];
    (c.state.gpr[0], c.state.gpr[2]) = (7, 0);
    run(&mut c, XSAVEOPT).unwrap();
    assert_eq!(c.peek::<u64>(DATA + 512), 3);
    assert_eq!(c.peek::<u8>(DATA + 576), 0xcc, "not written");
    let saved = c.state.fpu;
    fill(&mut c);
    run(&mut c, XRSTOR).unwrap();
    assert_eq!(c.state.fpu, saved, "AVX initial again");
    // XSTATE_BV without x87: it gets initialized.
    c.write(DATA + 512, &2u64.to_le_bytes());
    run(&mut c, XRSTOR).unwrap();
    let l = &c.state.fpu.legacy;
    assert_eq!((l.fcw, l.fsw, l.ftw, l.fip, l.st), (0x37f, 0, 0, 0, [[0; 16]; 8]));
    assert_eq!(l.xmm, saved.legacy.xmm);
}

#[test]
fn xsavec_writes_the_compacted_header_and_xrstor_reads_it() {
    let mut c = cpu(Mode::Long64);
    fill(&mut c);
    c.state.fpu.legacy.xmm = [[0; 16]; 16];
    let before = c.state.fpu;
    (c.state.gpr[0], c.state.gpr[2]) = (7, 0);
    run(&mut c, XSAVEC).unwrap();
    // SSE is in use because of MXCSR.
    assert_eq!((c.peek::<u64>(DATA + 512), c.peek::<u64>(DATA + 520)), (7, 1 << 63 | 7));
    fill(&mut c);
    run(&mut c, XRSTOR).unwrap();
    // The 32-bit form keeps 48 bits of the pointers.
    assert_eq!(c.state.fpu, before);
    // Without XSAVEC there is no compacted format.
    c.features.remove(Features::XSAVEC);
    assert_eq!(run(&mut c, XRSTOR), Err(Stop::GP0));
}

#[test]
fn malformed_xsave_headers_are_refused() {
    // (XSTATE_BV, XCOMP_BV, the word after)
    let cases = [
        (8, 0, 0),
        (7, 1, 0),
        (7, 0, 1),
        (1 << 63, 0, 0),
        (7, 1 << 63 | 3, 0),
        (1 << 63, 1 << 63 | 7, 0),
        (1, 1 << 63 | 0xf, 0),
        (1, 1 << 63 | 7, 1),
    ];
    for case in cases {
        let mut c = cpu(Mode::Long64);
        c.write(DATA + 24, &0x1f80u32.to_le_bytes());
        for (i, word) in [case.0, case.1, case.2].into_iter().enumerate() {
            c.write(DATA + 512 + 8 * i as u64, &u64::to_le_bytes(word));
        }
        (c.state.gpr[0], c.state.gpr[2]) = (7, 0);
        assert_eq!(run(&mut c, XRSTOR), Err(Stop::GP0), "{case:x?}");
    }
}

/// FNSTENV's or FNSAVE's image as 16-bit words.
fn words(c: &TestCpu, count: u64) -> Vec<u16> {
    (0..count).map(|i| c.peek::<u16>(DATA + 2 * i)).collect()
}

#[test]
fn environments_have_four_layouts() {
    let mut c = cpu(Mode::Protected32);
    fill(&mut c);
    c.state.fpu.legacy.fip = 0x0010_8765_4321;
    c.state.fpu.legacy.fdp = 0x0018_fedc_ba98;
    let fpu = c.state.fpu;
    run(&mut c, FNSTENV).unwrap();
    // Physical register 7 is ST(0) here, a normal number without integer bit: special; 0 is ST(1).
    let tags = 0b10_11_11_11_11_11_11_10;
    let expected =
        [0x27f, 0xffff, 0x3820, 0xffff, tags, 0xffff, 0x4321, 0x8765, 0x10, 0x123, 0xba98, 0xfedc, 0x18, 0xffff];
    assert_eq!(words(&c, 14), expected);
    assert_eq!(c.state.fpu.legacy.fcw, 0x27f, "everything was masked already");
    c.state.fpu = fpu;
    run(&mut c, &[0x66, 0xd9, 0x33]).unwrap();
    assert_eq!(words(&c, 7), [0x27f, 0x3820, tags, 0x4321, 0x10, 0xba98, 0x18]);

    let mut c = cpu(Mode::Real);
    c.state.fpu = fpu;
    c.state.fpu.legacy.fip = 0xf000_0000_1234;
    c.state.fpu.legacy.fdp = 0x8000_0000_4321;
    let fpu = c.state.fpu;
    // DS:[BX] in 16-bit addressing.
    run(&mut c, &[0xd9, 0x37]).unwrap();
    assert_eq!(words(&c, 7), [0x27f, 0x3820, tags, 0x1234, 0xf123, 0x4321, 0x8000]);
    c.state.fpu = fpu;
    run(&mut c, &[0x66, 0xd9, 0x37]).unwrap();
    let expected = [0x27f, 0xffff, 0x3820, 0xffff, tags, 0xffff, 0x1234, 0xffff, 0xf123, 0, 0x4321, 0xffff, 0x8000, 0];
    assert_eq!(words(&c, 14), expected);
}

#[test]
fn environments_survive_a_round_trip() {
    let mut c = cpu(Mode::Protected32);
    fill(&mut c);
    c.state.fpu.legacy.fip = 0x0010_8765_4321;
    c.state.fpu.legacy.fdp = 0x0018_fedc_ba98;
    let before = c.state.fpu;
    run(&mut c, FNSAVE).unwrap();
    assert_eq!((c.state.fpu.legacy.fcw, c.state.fpu.legacy.fsw, c.state.fpu.legacy.ftw), (0x37f, 0, 0));
    run(&mut c, FRSTOR).unwrap();
    assert_eq!(c.state.fpu, before);
    run(&mut c, FNSTENV).unwrap();
    run(&mut c, FNINIT).unwrap();
    run(&mut c, FLDENV).unwrap();
    assert_eq!(c.state.fpu, before);
}

#[test]
fn pointers_are_the_guests_own() {
    let mut c = cpu(Mode::Protected32);
    // fadd dword [ebx]
    run(&mut c, &[0xd8, 0x03]).unwrap();
    let l = &c.state.fpu.legacy;
    assert_eq!((l.fip, l.fdp, l.fop), (0x10 << 32 | CODE, 0x18 << 32 | DATA, 0x003));
    // fincstp changes them, fnclex does not.
    run(&mut c, &[0x3e, 0xd9, 0xf7]).unwrap();
    assert_eq!(c.state.fpu.legacy.fop, 0x1f7);
    run(&mut c, &[0xdb, 0xe2]).unwrap();
    assert_eq!(c.state.fpu.legacy.fop, 0x1f7);
    let mut c = cpu(Mode::Long64);
    run(&mut c, &[0xd8, 0x03]).unwrap();
    assert_eq!((c.state.fpu.legacy.fip, c.state.fpu.legacy.fdp), (CODE, DATA));
}

#[test]
fn unmasking_a_flagged_exception_makes_it_pending() {
    let mut c = cpu(Mode::Long64);
    c.state.fpu.legacy.fsw = 4;
    c.write(DATA, &0x37bu16.to_le_bytes());
    run(&mut c, &[0xd9, 0x2b]).unwrap();
    assert_eq!(c.state.fpu.legacy.fsw, 0x8084);
    assert_eq!(run(&mut c, FWAIT), Err(MF));
    // FNSTENV masks everything, which takes it back; FNCLEX forgets it.
    run(&mut c, FNSTENV).unwrap();
    assert_eq!((c.state.fpu.legacy.fcw, c.state.fpu.legacy.fsw), (0x37f, 4));
    run(&mut c, &[0xdb, 0xe2]).unwrap();
    assert_eq!(c.state.fpu.legacy.fsw, 0);
}

#[test]
fn a_store_that_faults_changes_nothing() {
    let mut c = cpu(Mode::Long64);
    fill(&mut c);
    c.state.gpr[3] = 0x3ff8;
    let (state, memory) = (c.state.clone(), c.memory.clone());
    // The code is written before: same bytes.
    for bytes in [&[0x0f, 0x11, 0x03][..], &[0xc5, 0xfc, 0x11, 0x03], FNSAVE] {
        let result = run(&mut c, bytes);
        assert!(result.is_err(), "{bytes:02x?}");
        assert_eq!(c.state.fpu, state.fpu, "{bytes:02x?}");
        assert_eq!(c.memory[DATA as usize..], memory[DATA as usize..], "{bytes:02x?}");
    }
}

#[test]
fn masked_moves_touch_only_what_the_mask_selects() {
    let mut c = cpu(Mode::Long64);
    // The last four bytes of memory are element 0; the rest would fault.
    c.state.gpr[3] = 0x3ffc;
    c.write(0x3ffc, &[1, 2, 3, 4]);
    c.state.fpu.legacy.xmm[1] = (0x8000_0000u128).to_le_bytes();
    c.state.fpu.ymm_hi[0] = [9; 16];
    // vmaskmovps xmm0, xmm1, [rbx]
    run(&mut c, &[0xc4, 0xe2, 0x71, 0x2c, 0x03]).unwrap();
    assert_eq!(u128::from_le_bytes(c.state.fpu.legacy.xmm[0]), 0x0403_0201);
    assert_eq!(c.state.fpu.ymm_hi[0], [0; 16]);
    // vmaskmovps [rbx], xmm1, xmm2
    c.state.fpu.legacy.xmm[2] = [7; 16];
    run(&mut c, &[0xc4, 0xe2, 0x71, 0x2e, 0x13]).unwrap();
    assert_eq!(c.peek::<u32>(0x3ffc), 0x0707_0707);
    c.state.fpu.legacy.xmm[1] = [0x80; 16];
    assert!(run(&mut c, &[0xc4, 0xe2, 0x71, 0x2e, 0x13]).is_err());
}

#[test]
fn gathers_want_three_registers_and_keep_them_on_a_fault() {
    let mut c = cpu(Mode::Long64);
    // vpgatherdd xmm0, [rbx + xmm1 * 4], xmm2
    let gather = |vsib: u8, mask: u8| [0xc4, 0xe2, (!mask & 15) << 3 | 1, 0x90, 0x04, 0x83 | vsib << 3];
    for i in 0..4u64 {
        c.write(DATA + 4 * i, &(0x100 + i as u32).to_le_bytes());
    }
    c.state.fpu.legacy.xmm[1] = (3u128 << 96 | 2 << 64 | 1 << 32).to_le_bytes();
    c.state.fpu.legacy.xmm[2] = [0xff; 16];
    run(&mut c, &gather(1, 2)).unwrap();
    assert_eq!(u128::from_le_bytes(c.state.fpu.legacy.xmm[0]), 0x103 << 96 | 0x102 << 64 | 0x101 << 32 | 0x100);
    assert_eq!(c.state.fpu.legacy.xmm[2], [0; 16]);
    c.state.fpu.legacy.xmm[2] = [0xff; 16];
    c.state.fpu.legacy.xmm[1] = (0x7fff_ffffu128 << 96).to_le_bytes();
    let before = c.state.fpu;
    assert!(run(&mut c, &gather(1, 2)).is_err());
    // Elements 0 to 2 are done, and the rest is left for the next try.
    let mut after = before;
    after.legacy.xmm[0] = (0x103u128 << 96 | 0x100 << 64 | 0x100 << 32 | 0x100).to_le_bytes();
    after.legacy.xmm[2] = (u128::MAX << 96).to_le_bytes();
    assert_eq!(c.state.fpu, after);
    c.state.fpu.legacy.xmm[1] = (0x7fff_ffffu128).to_le_bytes();
    c.state.fpu.legacy.xmm[2] = [0xff; 16];
    let before = c.state.fpu;
    assert!(run(&mut c, &gather(1, 2)).is_err());
    assert_eq!(c.state.fpu, before, "the first element is at fault");
    assert_eq!(run(&mut c, &gather(2, 2)), Err(Stop::UD));
}

/// A user program with the alignment check on, RBX at DATA plus `offset`.
fn checked(offset: u64) -> TestCpu {
    let mut c = TestCpu::in_mode(Mode::Long64, 3, 0x4000);
    c.state.cr0 |= (Cr0::AM | Cr0::MP | Cr0::NE).bits();
    c.state.cr4 |= (Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
    c.state.xcr0 = 7;
    c.state.gpr[3] = DATA + offset;
    c.state.flags.set(flags::AC);
    c
}

#[test]
fn the_alignment_check_knows_vectors_and_images() {
    let ac = Err(Stop::fault_code(Vector::AC, 0));
    const VMOVUPS256: &[u8] = &[0xc5, 0xfc, 0x10, 0x03];
    // vmaskmovps xmm0, xmm0, [rbx]: checks nothing.
    const VMASKMOVPS: &[u8] = &[0xc4, 0xe2, 0x79, 0x2c, 0x03];
    for (bytes, offset, result) in [
        (MOVUPS_MEM, 16, Ok(())),
        (MOVUPS_MEM, 8, ac),
        (VMOVUPS256, 16, Ok(())),
        (VMOVUPS256, 8, ac),
        (VMASKMOVPS, 1, Ok(())),
        (FNSTENV, 4, Ok(())),
        (FNSTENV, 2, ac),
        (FNSAVE, 4, Ok(())),
        // fld tbyte [rbx]
        (&[0xdb, 0x2b], 8, Ok(())),
        (&[0xdb, 0x2b], 4, ac),
        // movaps xmm0, [rbx]
        (&[0x0f, 0x28, 0x03], 8, Err(Stop::GP0)),
    ] {
        let mut c = checked(offset);
        c.state.fpu.legacy.xmm[0] = [0xff; 16];
        assert_eq!(run(&mut c, bytes), result, "{bytes:02x?} at {offset}");
    }
}

#[test]
fn misalignment_comes_before_a_non_canonical_stack() {
    // movaps xmm0, [rsp]; fxsave [rsp]; xsave [rsp]
    for bytes in [&[0x0f, 0x28, 0x04, 0x24][..], &[0x0f, 0xae, 0x04, 0x24], &[0x0f, 0xae, 0x24, 0x24]] {
        for (rsp, stop) in [(1 << 62 | 8, Stop::GP0), (1 << 62, Stop::SS0)] {
            let mut c = cpu(Mode::Long64);
            c.state.gpr[4] = rsp;
            assert_eq!(run(&mut c, bytes), Err(stop), "{bytes:02x?} {rsp:#x}");
        }
    }
}

#[test]
fn vzeroupper_spares_registers_that_the_mode_lacks() {
    let mut c = cpu(Mode::Protected32);
    fill(&mut c);
    run(&mut c, &[0xc5, 0xf8, 0x77]).unwrap();
    assert_eq!(c.state.fpu.ymm_hi[7], [0; 16]);
    assert_eq!(c.state.fpu.ymm_hi[8], [0x88; 16]);
    assert_eq!(c.state.fpu.legacy.xmm[7], [0x47; 16]);
    c.state.flags.set(flags::CF);
    run(&mut c, &[0xc5, 0xfc, 0x77]).unwrap();
    assert_eq!(c.state.fpu.legacy.xmm[7], [0; 16]);
}

#[test]
fn images_at_the_end_of_the_address_space_wrap_or_fault() {
    for bytes in [FXSAVE, FXRSTOR, XSAVE, XRSTOR, XSAVEOPT, XSAVEC, FNSTENV, FLDENV, FNSAVE, FRSTOR] {
        for mode in [Mode::Long64, Mode::Protected32] {
            let mut c = cpu(mode);
            (c.state.gpr[0], c.state.gpr[2]) = (7, 0);
            c.state.gpr[3] = if mode == Mode::Long64 { u64::MAX - 63 } else { 0xffff_ffc0 };
            assert!(run(&mut c, bytes).is_err(), "{bytes:02x?}");
        }
    }
}
