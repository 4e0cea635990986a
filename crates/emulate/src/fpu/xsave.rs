//! XSAVE, XSAVEOPT, XSAVEC and XRSTOR for the components x87, SSE and AVX (SDM vol. 1, 13.7 to 13.10).
//!
//! With these three components the compacted format places each where the standard format has it.
use iced_x86::{Code, Instruction};
use x86::{CpuState, Features, Fpu, Mode, control::xcr0, fpu::MXCSR_RESET};

use super::check;
use super::fxsave::{X87_WORDS, head, initial_x87, load_words, load_x87, mxcsr, store_words};
use crate::{Access, Cpu, Handler, Op, Res, Stop, address};

const X87: u64 = xcr0::X87;
const SSE: u64 = xcr0::SSE;
const AVX: u64 = xcr0::AVX;
const COMPACTED: u64 = 1 << 63;
/// Offsets in the area.
const XMM: u64 = 160;
const HEADER: u64 = 512;
const YMM: u64 = 576;
const OPT: u64 = Features::XSAVEOPT.bits();
const COMPACT: u64 = Features::XSAVEC.bits();

/// XINUSE: the components that are not in their initial configuration. MXCSR does not count.
pub fn in_use(fpu: &Fpu) -> u64 {
    let l = &fpu.legacy;
    let [control, _] = head(fpu, true);
    let x87 = control != x86::fpu::FCW_INIT as u128 || l.fdp != 0 || l.st.iter().any(|r| r[..10] != [0; 10]);
    let sse = l.xmm != [[0; 16]; 16];
    let avx = fpu.ymm_hi != [[0; 16]; 16];
    (x87 as u64 * X87) | (sse as u64 * SSE) | (avx as u64 * AVX)
}

/// Vector registers of the current mode.
fn count(state: &CpuState) -> usize {
    if state.mode == Mode::Long64 { 16 } else { 8 }
}

/// The requested-feature bitmap and the checked linear address of the area.
fn begin<C: Cpu>(cpu: &mut C, op: &Op<C>, write: bool) -> Res<(u64, u64)> {
    let state = cpu.state();
    let wanted = state.gpr[0] as u32 as u64 | (state.gpr[2] as u32 as u64) << 32;
    let wanted = wanted & state.xcr0 & (X87 | SSE | AVX);
    let bytes = if wanted & AVX != 0 { YMM + 256 } else { YMM };
    let linear = address::linear(cpu, op, bytes, write);
    let linear = address::require_alignment(cpu, op, 64, linear)?;
    if write {
        cpu.probe_write(linear, bytes, Access::Program)?;
    }
    Ok((wanted, linear))
}

/// Writes the components `which`; MXCSR too if `with_mxcsr`.
fn write<C: Cpu>(cpu: &mut C, linear: u64, which: u64, with_mxcsr: bool, wide: bool) -> Res {
    let fpu = cpu.state().fpu;
    let count = count(cpu.state());
    let [first, second] = head(&fpu, wide);
    if which & X87 != 0 {
        let mut words = [0; X87_WORDS];
        words[0] = first;
        for (word, st) in words[2..].iter_mut().zip(&fpu.legacy.st) {
            *word = u128::from_le_bytes(*st);
        }
        cpu.store(linear, first, Access::Program)?;
        cpu.store(linear.wrapping_add(16), second as u64, Access::Program)?;
        store_words(cpu, linear.wrapping_add(32), &words[2..])?;
    }
    if with_mxcsr {
        cpu.store(linear.wrapping_add(24), (second >> 64) as u64, Access::Program)?;
    }
    if which & SSE != 0 {
        store_words(cpu, linear.wrapping_add(XMM), &fpu.legacy.xmm.map(u128::from_le_bytes)[..count])?;
    }
    if which & AVX != 0 {
        store_words(cpu, linear.wrapping_add(YMM), &fpu.ymm_hi.map(u128::from_le_bytes)[..count])?;
    }
    Ok(())
}

/// XSAVE, and with `OPTIMIZE` XSAVEOPT, which leaves out what is in its initial configuration.
fn xsave<C: Cpu, const WIDE: bool, const OPTIMIZE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    if OPTIMIZE {
        check::xsave::<C, OPT>(cpu)?
    } else {
        check::xsave::<C, 0>(cpu)?
    }
    let (wanted, linear) = begin(cpu, op, true)?;
    let old: u64 = cpu.load_for_write(linear.wrapping_add(HEADER), Access::Program)?;
    let in_use = in_use(&cpu.state().fpu) & wanted;
    let which = if OPTIMIZE { in_use } else { wanted };
    write(cpu, linear, which, wanted & (SSE | AVX) != 0, WIDE)?;
    cpu.store(linear.wrapping_add(HEADER), old & !wanted | in_use, Access::Program)
}

fn xsavec<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::xsave::<C, COMPACT>(cpu)?;
    let (wanted, linear) = begin(cpu, op, true)?;
    let fpu = &cpu.state().fpu;
    let mut which = in_use(fpu);
    if fpu.legacy.mxcsr != MXCSR_RESET {
        which |= SSE;
    }
    which &= wanted;
    write(cpu, linear, which, which & SSE != 0, WIDE)?;
    cpu.store(linear.wrapping_add(HEADER), which, Access::Program)?;
    cpu.store(linear.wrapping_add(HEADER + 8), wanted | COMPACTED, Access::Program)
}

fn xrstor<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::xsave::<C, 0>(cpu)?;
    let (wanted, linear) = begin(cpu, op, false)?;
    let mut header = [0u64; 8];
    for (i, word) in header.iter_mut().enumerate() {
        *word = cpu.load(linear.wrapping_add(HEADER + 8 * i as u64), Access::Program)?;
    }
    let (present, format) = (header[0], header[1]);
    let compacted = format & COMPACTED != 0;
    let xcr0 = cpu.state().xcr0;
    let legal = if compacted {
        cpu.features().contains(Features::XSAVEC)
            && format & !COMPACTED & !xcr0 == 0
            && present & !format == 0
            && present & COMPACTED == 0
            && header[2..].iter().all(|&word| word == 0)
    } else {
        present & !xcr0 == 0 && format == 0 && header[2] == 0
    };
    if !legal {
        return Err(Stop::GP0);
    }
    restore::<C, WIDE>(cpu, linear, wanted, present, compacted)
}

/// Reads everything, then changes the registers: each wanted component is loaded if present, else initialized.
fn restore<C: Cpu, const WIDE: bool>(cpu: &mut C, linear: u64, wanted: u64, present: u64, compacted: bool) -> Res {
    let count = count(cpu.state());
    let load = wanted & present;
    let mut x87 = [0; X87_WORDS];
    let mut xmm = [0; 16];
    let mut ymm = [0; 16];
    let new_mxcsr = if wanted & SSE == 0 && (compacted || wanted & AVX == 0) {
        None
    } else if compacted && load & SSE == 0 {
        Some(MXCSR_RESET)
    } else {
        let word: u32 = cpu.load(linear.wrapping_add(24), Access::Program)?;
        Some(mxcsr((word as u128) << 64)?)
    };
    if load & X87 != 0 {
        load_words(cpu, linear, &mut x87)?;
    }
    if load & SSE != 0 {
        load_words(cpu, linear.wrapping_add(XMM), &mut xmm[..count])?;
    }
    if load & AVX != 0 {
        load_words(cpu, linear.wrapping_add(YMM), &mut ymm[..count])?;
    }
    let fpu = &mut cpu.state_mut().fpu;
    if let Some(value) = new_mxcsr {
        fpu.legacy.mxcsr = value;
    }
    if load & X87 != 0 {
        load_x87(fpu, &x87, WIDE);
    } else if wanted & X87 != 0 {
        initial_x87(fpu);
    }
    if wanted & SSE != 0 {
        fill(&mut fpu.legacy.xmm[..count], &xmm);
    }
    if wanted & AVX != 0 {
        fill(&mut fpu.ymm_hi[..count], &ymm);
    }
    Ok(())
}

fn fill(registers: &mut [[u8; 16]], words: &[u128; 16]) {
    for (register, word) in registers.iter_mut().zip(words) {
        *register = word.to_le_bytes();
    }
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    use Code::*;
    Some(match insn.code() {
        Xsave_mem => xsave::<C, false, false>,
        Xsave64_mem => xsave::<C, true, false>,
        Xsaveopt_mem => xsave::<C, false, true>,
        Xsaveopt64_mem => xsave::<C, true, true>,
        Xsavec_mem => xsavec::<C, false>,
        Xsavec64_mem => xsavec::<C, true>,
        Xrstor_mem => xrstor::<C, false>,
        Xrstor64_mem => xrstor::<C, true>,
        _ => return None,
    })
}
