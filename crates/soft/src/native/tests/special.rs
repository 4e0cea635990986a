//! Single cases that the comparison with the hardware does not reach.
use emulate::testing::Random;
use std::arch::asm;

use emulate::{Res, Stop};
use x86::{Cr4, Features, Mode, Segment, Vector};

use super::machine::Machine;

const XM: Stop = Stop::fault(Vector::XM);
const MF: Stop = Stop::fault(Vector::MF);
/// 1.0 as an x87 register.
const ONE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f, 0, 0, 0, 0, 0, 0];

/// MXCSR, x87 control word, status word and tag word of the host.
fn host_state() -> (u32, u16, u16, u16) {
    let (mut mxcsr, mut environment) = (0u32, [0u16; 14]);
    // SAFETY: both only store; FNSTENV masks exceptions, which they are already, and FLDENV restores all the same.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &mut mxcsr);
        asm!("fnstenv [{0}]", "fldenv [{0}]", in(reg) &mut environment);
    }
    // Condition codes and flagged SSE exceptions are volatile in the calling convention.
    (mxcsr & 0xffc0, environment[0], environment[2] & 0x38ff, environment[4])
}

fn divide_by_zero(m: &mut Machine) -> Res {
    m.state.fpu.legacy.xmm[0] = (1.0f64.to_bits() as u128).to_le_bytes();
    m.state.fpu.legacy.xmm[1] = [0; 16];
    // divsd xmm0, xmm1
    m.step(&[0xf2, 0x0f, 0x5e, 0xc1])
}

#[test]
fn the_host_keeps_its_own_modes() {
    let mut m = Machine::new();
    let before = host_state();
    m.state.fpu.legacy.mxcsr = 0xffc0 & !(1 << 9);
    assert_eq!(divide_by_zero(&mut m), Err(XM));
    m.state.fpu.legacy.fcw = 0x040;
    m.state.fpu.legacy.ftw = 0xff;
    // fdiv st0, st1 of zeros: invalid, unmasked.
    m.step(&[0xd8, 0xf1]).unwrap();
    assert_eq!(m.state.fpu.legacy.fsw & 0x8081, 0x8081);
    assert_eq!(m.step(&[0xd8, 0xf1]), Err(MF));
    // paddb mm0, mm1, which uses the host's x87 registers
    m.state.fpu.legacy.fsw = 0;
    m.step(&[0x0f, 0xfc, 0xc1]).unwrap();
    // fcomi and fcmov with all flags set
    m.state.flags.set(0xcd5);
    m.state.fpu.legacy.fcw = 0x37f;
    m.step(&[0xdb, 0xf1]).unwrap();
    m.step(&[0xda, 0xc1]).unwrap();
    assert_eq!(host_state(), before);
}

#[test]
fn unmasked_exceptions_are_the_guests() {
    let mut m = Machine::new();
    m.state.fpu.legacy.mxcsr = 0x1f80 & !(1 << 9);
    let registers = m.state.gpr;
    assert_eq!(divide_by_zero(&mut m), Err(XM));
    assert_eq!(m.state.fpu.legacy.mxcsr, 0x1f80 & !(1 << 9) | 4);
    assert_eq!(m.state.fpu.legacy.xmm[0], (1.0f64.to_bits() as u128).to_le_bytes());
    assert_eq!((m.state.gpr, m.state.rip), (registers, m.code));
    m.state.cr4 &= !Cr4::OSXMMEXCPT.bits();
    assert_eq!(divide_by_zero(&mut m), Err(Stop::UD));
}

#[test]
fn what_the_host_lacks_is_undefined_whatever_the_guest_was_offered() {
    let (features, xcr0) = crate::native::offered();
    assert_eq!(xcr0 & 4 != 0, features.contains(Features::AVX));
    assert!(features.contains(Features::SSE2 | Features::FXSR | Features::XSAVE | Features::XSAVEC));
    assert!(!features.intersects(Features::AMD | Features::BMI1));
    let mut m = Machine::new();
    m.features = Features::all();
    // vaesenc ymm0, ymm1, ymm2
    let result = m.step(&[0xc4, 0xe2, 0x75, 0xdc, 0xc2]);
    assert_eq!(result.is_ok(), features.contains(Features::VAES));
}

#[test]
fn environments_show_the_guests_pointers_only() {
    let mut m = Machine::new();
    m.state.gpr[10] = m.at();
    m.state.fpu.legacy.ftw = 0xff;
    m.state.fpu.legacy.st = [ONE; 8];
    // fadd dword [r10 + 8]; fnstenv [r10 + 64]; fxsave64 [r10 + 128]
    m.step(&[0x41, 0xd8, 0x42, 0x08]).unwrap();
    m.step(&[0x41, 0xd9, 0x72, 0x40]).unwrap();
    m.step(&[0x49, 0x0f, 0xae, 0x82, 0x80, 0, 0, 0]).unwrap();
    let at = |m: &Machine, i: usize| u64::from_le_bytes(m.buffer.0[i..i + 8].try_into().unwrap());
    assert_eq!(at(&m, 64 + 12) as u32, m.code as u32);
    assert_eq!(at(&m, 64 + 20) as u32, (m.at() + 8) as u32);
    assert_eq!((at(&m, 128 + 8), at(&m, 128 + 16)), (m.code, m.at() + 8));
    assert_eq!(at(&m, 128 + 24) >> 32, 0xffff, "the host's MXCSR_MASK may have more bits");
}

#[test]
fn a_store_that_faults_leaves_the_stack_alone() {
    let mut m = Machine::new();
    m.state.gpr[10] = m.at() - 4;
    m.state.fpu.legacy.ftw = 0xff;
    m.state.fpu.legacy.st = [ONE; 8];
    let before = m.state.fpu;
    for bytes in [&[0x41, 0xdd, 0x1a][..], &[0x41, 0xdb, 0x3a], &[0x41, 0xdf, 0x3a], &[0x41, 0xd8, 0x02]] {
        assert!(m.step(bytes).is_err());
        assert_eq!(m.state.fpu, before, "{bytes:02x?}");
    }
    assert_eq!(m.stores, 0);
}

#[test]
fn a_masked_out_store_does_not_happen() {
    let mut m = Machine::new();
    m.state.gpr[10] = m.at();
    m.buffer.0[..8].fill(0xcc);
    m.state.fpu = x86::Fpu::default();
    // Everything unmasked and the stack empty: fstp qword [r10] is an underflow, which stores nothing.
    m.state.fpu.legacy.fcw = 0x340;
    m.step(&[0x41, 0xdd, 0x1a]).unwrap();
    assert_eq!(m.buffer.0[..8], [0xcc; 8]);
    assert_eq!(m.state.fpu.legacy.fsw & 0x80c1, 0x80c1);
    // Masked, it stores the indefinite.
    m.state.fpu.legacy.fcw = 0x37f;
    m.state.fpu.legacy.fsw = 0;
    m.step(&[0x41, 0xdd, 0x1a]).unwrap();
    assert_eq!(m.buffer.0[..8], 0xfff8_0000_0000_0000u64.to_le_bytes());
}

#[test]
fn a_store_that_faults_comes_before_the_exceptions_of_its_operand() {
    let mut m = Machine::new();
    m.state.gpr[10] = m.at() - 4;
    // A signalling NaN, unmasked: vcvtps2ph [r10], xmm0, 0
    m.state.fpu.legacy.mxcsr = 0x1f00;
    m.state.fpu.legacy.xmm[0] = (0x7f80_0001u128).to_le_bytes();
    let bytes = [0xc4, 0xc3, 0x79, 0x1d, 0x02, 0x00];
    assert_eq!(m.step(&bytes).unwrap_err().exception(0).unwrap().vector, Vector::PF);
    assert_eq!(m.state.fpu.legacy.mxcsr, 0x1f00);
    m.state.gpr[10] += 4;
    assert_eq!(m.step(&bytes), Err(XM));
}

#[test]
fn mmx_registers_are_physical() {
    let mut m = Machine::new();
    m.state.gpr[10] = m.at() - 4;
    for i in 0..8 {
        m.state.fpu.legacy.st[i][0] = i as u8;
    }
    m.state.fpu.legacy.fsw = 3 << 11;
    let before = m.state.fpu;
    // paddb mm3, [r10] faults; paddb mm3, mm4 does not.
    assert!(m.step(&[0x41, 0x0f, 0xfc, 0x1a]).is_err());
    assert_eq!(m.state.fpu, before);
    m.step(&[0x0f, 0xfc, 0xdc]).unwrap();
    let l = &m.state.fpu.legacy;
    assert_eq!((l.fsw, l.ftw, l.st[3][0], l.st[4][0], l.st[2][0]), (0, 0xff, 1, 1, 7));
    assert_eq!((l.st[3][8], l.st[3][9]), (0xff, 0xff));
}

#[test]
fn stubs_are_thrown_away_when_there_are_too_many() {
    let mut m = Machine::new();
    let mut sum = 0u64;
    for immediate in 0..=255u8 {
        for registers in 0..64u8 {
            let (to, from) = (registers >> 3, registers & 7);
            m.state.fpu.legacy.xmm[from as usize] = 0x0003_0002_0001_0000u128.to_le_bytes();
            // pshuflw
            m.step(&[0xf2, 0x0f, 0x70, 0xc0 | registers, immediate]).unwrap();
            let word = u16::from_le_bytes(m.state.fpu.legacy.xmm[to as usize][..2].try_into().unwrap());
            assert_eq!(word, immediate as u16 & 3, "pshuflw xmm{to}, xmm{from}, {immediate}");
            sum += word as u64;
        }
    }
    assert_eq!(sum, 64 * 64 * 6);
    let (live, flushes) = m.native.statistics();
    assert!(live <= 4096 && flushes >= 3, "{live} {flushes}");
}

#[test]
fn other_modes_work_too() {
    let mut m = Machine::new();
    m.state.efer = 0;
    m.state.cr4 &= !Cr4::PAE.bits();
    m.state.seg[1] = Segment::from_descriptor(0x33, 0x00cf_fb00_0000_ffff);
    m.state.refresh();
    assert_eq!(m.state.mode, Mode::Protected32);
    m.state.fpu = x86::Fpu::default();
    m.state.fpu.legacy.xmm[1] = (2.0f64.to_bits() as u128).to_le_bytes();
    // cvttsd2si eax, xmm1; vaddsd xmm2, xmm1, xmm1; fld1; fadd st0, st0
    m.state.gpr[0] = u64::MAX;
    m.step(&[0xf2, 0x0f, 0x2c, 0xc1]).unwrap();
    m.step(&[0xc5, 0xf3, 0x58, 0xd1]).unwrap();
    m.step(&[0xd9, 0xe8]).unwrap();
    m.step(&[0xd8, 0xc0]).unwrap();
    assert_eq!(m.state.gpr[0], 2);
    assert_eq!(m.state.fpu.legacy.xmm[2][..8], 4.0f64.to_le_bytes());
    assert_eq!(m.state.fpu.legacy.st[0][8..10], [0x00, 0x40]);
}

/// Whatever bytes a guest executes, with whatever modes: this process gets no signal and keeps its own modes.
#[test]
fn random_bytes_stay_in_the_guest() {
    let mut m = Machine::new();
    m.features = Features::all();
    let mut r = Random::new(&[0x0dd0_5eed]);
    let before = host_state();
    let mut completed = 0;
    for round in 0..60_000u32 {
        let mut bytes = vec![];
        match r.below(6) {
            0 => bytes.push(0xd8 + r.below(8) as u8),
            1 => bytes.extend([0xc5, r.bits() as u8]),
            2 => bytes.extend([0xc4, r.bits() as u8 & 0xe0 | (1 + r.below(3) as u8), r.bits() as u8]),
            _ => {
                bytes.extend([0x66, 0xf2, 0xf3].get(r.below(4) as usize));
                if r.one_in(2) {
                    bytes.push(0x40 + r.below(16) as u8);
                }
                bytes.push(0x0f);
                bytes.extend([0x38, 0x3a].get(r.below(4) as usize));
            }
        }
        bytes.extend((0..10).map(|_| r.bits() as u8));
        if round % 16 == 0 {
            m.state.fpu.legacy.mxcsr = r.bits() as u32 & 0xffff;
            m.state.fpu.legacy.fcw = r.bits() as u16;
            m.state.fpu.legacy.fsw = r.bits() as u16;
            m.state.fpu.legacy.ftw = r.bits() as u8;
            for st in &mut m.state.fpu.legacy.st {
                *st = r.f80().to_le_bytes();
            }
        }
        let at = m.at();
        m.state.gpr = std::array::from_fn(|_| at + r.below(0x1000));
        let (features, mode, shape) = (m.features, m.state.mode, (m.state.cr0, m.state.cr4, m.state.xcr0));
        // Only vector instructions: others may leave the mode that this test is about.
        let Ok(op) = emulate::decode::<Machine>(&bytes, mode, features) else { continue };
        let vector = op.regs.iter().any(|&reg| reg != 0xff && reg >= 0x80) || crate::native::assemble::is_x87(op.code);
        if vector && m.step(&bytes).is_ok() {
            completed += 1;
        }
        assert_eq!((m.state.cr0, m.state.cr4, m.state.xcr0), shape);
    }
    assert_eq!(host_state(), before);
    assert!(completed > 2_000, "{completed}");
}
