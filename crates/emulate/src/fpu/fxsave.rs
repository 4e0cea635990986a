//! FXSAVE and FXRSTOR, and the legacy region that XSAVE shares with them (SDM vol. 1, 10.5 and 13.4.1).
use iced_x86::{Code, Instruction};
use x86::{CpuState, Efer, Fpu, Mode, fpu::MXCSR_MASK};

use super::check;
use super::registers::summarize;
use crate::{Access, Cpu, Handler, Op, Res, Stop, address};

/// 16-byte words of the x87 part, of which word 1 holds FDP and MXCSR.
pub(super) const X87_WORDS: usize = 10;
/// 16-byte words of the x87 part and 16 XMM registers.
const WORDS: usize = 26;

/// Words 0 and 1: x87 control and pointers, MXCSR. `wide` is the 64-bit layout of the pointers.
pub(super) fn head(fpu: &Fpu, wide: bool) -> [u128; 2] {
    let l = &fpu.legacy;
    let keep = if wide { u64::MAX } else { 0xffff_ffff_ffff };
    let control = l.fcw as u64 | (l.fsw as u64) << 16 | (l.ftw as u64) << 32 | ((l.fop & 0x7ff) as u64) << 48;
    let mxcsr = l.mxcsr as u64 | (MXCSR_MASK as u64) << 32;
    [control as u128 | ((l.fip & keep) as u128) << 64, (l.fdp & keep) as u128 | (mxcsr as u128) << 64]
}

/// Loads the x87 part from its ten words.
pub(super) fn load_x87(fpu: &mut Fpu, words: &[u128; X87_WORDS], wide: bool) {
    let keep = if wide { u64::MAX } else { 0xffff_ffff_ffff };
    let control = words[0] as u64;
    let l = &mut fpu.legacy;
    l.fcw = control as u16 & 0x1f3f | 0x40;
    l.fsw = (control >> 16) as u16;
    l.ftw = (control >> 32) as u8;
    l.fop = (control >> 48) as u16 & 0x7ff;
    l.fip = (words[0] >> 64) as u64 & keep;
    l.fdp = words[1] as u64 & keep;
    for (st, word) in l.st.iter_mut().zip(&words[2..]) {
        *st = (word & ((1 << 80) - 1)).to_le_bytes();
    }
    summarize(fpu);
}

/// The initial configuration of the x87 (SDM vol. 1, 13.6).
pub(super) fn initial_x87(fpu: &mut Fpu) {
    let mut words = [0; X87_WORDS];
    words[0] = x86::fpu::FCW_INIT as u128;
    load_x87(fpu, &words, true);
}

/// MXCSR in word 1; #GP(0) if it has reserved bits.
pub(super) fn mxcsr(word: u128) -> Res<u32> {
    let value = (word >> 64) as u32;
    if value & !MXCSR_MASK != 0 { Err(Stop::GP0) } else { Ok(value) }
}

/// Reads consecutive 16-byte words.
pub(super) fn load_words<C: Cpu>(cpu: &mut C, linear: u64, words: &mut [u128]) -> Res {
    let mut at = linear;
    for word in words {
        *word = cpu.load(at, Access::Program)?;
        at = at.wrapping_add(16);
    }
    Ok(())
}

/// Writes consecutive 16-byte words.
pub(super) fn store_words<C: Cpu>(cpu: &mut C, linear: u64, words: &[u128]) -> Res {
    let mut at = linear;
    for &word in words {
        cpu.store(at, word, Access::Program)?;
        at = at.wrapping_add(16);
    }
    Ok(())
}

/// How many XMM registers FXSAVE and FXRSTOR transfer.
fn xmm_count(state: &CpuState) -> usize {
    if state.mode != Mode::Long64 {
        8
    } else if state.cpl == 0 && state.efer & Efer::FFXSR.bits() != 0 {
        0
    } else {
        16
    }
}

fn area<C: Cpu>(cpu: &mut C, op: &Op<C>, write: bool) -> Res<u64> {
    check::fxsave(cpu)?;
    let linear = address::linear(cpu, op, 512, write);
    address::require_alignment(cpu, op, 16, linear)
}

fn fxsave<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let linear = area(cpu, op, true)?;
    cpu.probe_write(linear, 512, Access::Program)?;
    let state = cpu.state();
    let mut words = [0; WORDS];
    words[..2].copy_from_slice(&head(&state.fpu, WIDE));
    let registers = state.fpu.legacy.st.iter().chain(&state.fpu.legacy.xmm);
    for (word, register) in words[2..].iter_mut().zip(registers) {
        *word = u128::from_le_bytes(*register);
    }
    let count = X87_WORDS + xmm_count(state);
    store_words(cpu, linear, &words[..count])
}

fn fxrstor<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let linear = area(cpu, op, false)?;
    let mut words = [0; WORDS];
    let count = xmm_count(cpu.state());
    load_words(cpu, linear, &mut words[..X87_WORDS + count])?;
    let mxcsr = mxcsr(words[1])?;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.legacy.mxcsr = mxcsr;
    if let Some(x87) = words.first_chunk() {
        load_x87(fpu, x87, WIDE);
    }
    for (xmm, word) in fpu.legacy.xmm.iter_mut().zip(&words[X87_WORDS..X87_WORDS + count]) {
        *xmm = word.to_le_bytes();
    }
    Ok(())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    use Code::*;
    Some(match insn.code() {
        Fxsave_m512byte => fxsave::<C, false>,
        Fxsave64_m512byte => fxsave::<C, true>,
        Fxrstor_m512byte => fxrstor::<C, false>,
        Fxrstor64_m512byte => fxrstor::<C, true>,
        _ => return None,
    })
}
