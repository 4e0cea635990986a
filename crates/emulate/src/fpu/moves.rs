//! SSE and AVX moves between registers and memory. They carry out device accesses too.
use iced_x86::{Code, Instruction, OpKind};
use platform::Word;
use x86::Features;

use super::check::{Isa, Sse, Vex};
use super::registers::{set_xmm, set_ymm_hi, xmm, ymm_hi};
use crate::{Access, Cpu, Handler, Op, Res, address};

pub(super) const SSE: u64 = Features::SSE.bits();
pub(super) const SSE2: u64 = Features::SSE2.bits();
const SSE3: u64 = Features::SSE3.bits();
const SSE41: u64 = Features::SSE41.bits();
const SSE4A: u64 = Features::SSE4A.bits();

/// The linear address of a 16- or 32-byte operand; with `aligned`, #GP(0) unless it is.
#[inline(always)]
pub(super) fn wide<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, write: bool, aligned: bool) -> Res<u64> {
    let linear = address::linear(cpu, op, bytes, write);
    if aligned { address::require_alignment(cpu, op, bytes, linear) } else { linear }
}

/// Reads 32 bytes: low and high half.
#[inline(always)]
pub(super) fn load256<C: Cpu>(cpu: &mut C, linear: u64) -> Res<[u128; 2]> {
    Ok([cpu.load(linear, Access::Program)?, cpu.load(linear.wrapping_add(16), Access::Program)?])
}

/// Writes 32 bytes, or nothing when a part of them faults.
#[inline(always)]
pub(super) fn store256<C: Cpu>(cpu: &mut C, linear: u64, value: [u128; 2]) -> Res {
    if linear & 0xfff > 0xfe0 {
        cpu.probe_write(linear, 32, Access::Program)?;
    }
    cpu.store(linear, value[0], Access::Program)?;
    cpu.store(linear.wrapping_add(16), value[1], Access::Program)
}

/// Writes an XMM register as the result of a whole-register instruction: VEX clears what is above.
#[inline(always)]
pub(super) fn put<C: Cpu, I: Isa>(cpu: &mut C, reg: u8, value: u128) {
    let state = cpu.state_mut();
    set_xmm(state, reg, value);
    if I::VEX {
        set_ymm_hi(state, reg, 0);
    }
}

fn load<C: Cpu, I: Isa, const ALIGNED: bool, const MEM: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let value = if MEM {
        let linear = wide(cpu, op, 16, false, ALIGNED)?;
        cpu.load(linear, Access::Program)?
    } else {
        xmm(cpu.state(), op.regs[1])
    };
    put::<C, I>(cpu, op.regs[0], value);
    Ok(())
}

fn store<C: Cpu, I: Isa, const ALIGNED: bool, const MEM: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let value = xmm(cpu.state(), op.regs[1]);
    if MEM {
        let linear = wide(cpu, op, 16, true, ALIGNED)?;
        return cpu.store(linear, value, Access::Program);
    }
    put::<C, I>(cpu, op.regs[0], value);
    Ok(())
}

fn load_ymm<C: Cpu, I: Isa, const ALIGNED: bool, const MEM: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let [low, high] = if MEM {
        let linear = wide(cpu, op, 32, false, ALIGNED)?;
        load256(cpu, linear)?
    } else {
        [xmm(cpu.state(), op.regs[1]), ymm_hi(cpu.state(), op.regs[1])]
    };
    let state = cpu.state_mut();
    set_xmm(state, op.regs[0], low);
    set_ymm_hi(state, op.regs[0], high);
    Ok(())
}

fn store_ymm<C: Cpu, I: Isa, const ALIGNED: bool, const MEM: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let state = cpu.state();
    let value = [xmm(state, op.regs[1]), ymm_hi(state, op.regs[1])];
    if MEM {
        let linear = wide(cpu, op, 32, true, ALIGNED)?;
        return store256(cpu, linear, value);
    }
    let state = cpu.state_mut();
    set_xmm(state, op.regs[0], value[0]);
    set_ymm_hi(state, op.regs[0], value[1]);
    Ok(())
}

/// MOVSS, MOVSD, MOVQ, MOVD from memory: zero-extends.
fn load_scalar<C: Cpu, I: Isa, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let linear = address::linear(cpu, op, W::BYTES, false)?;
    let value: W = cpu.load(linear, Access::Program)?;
    put::<C, I>(cpu, op.regs[0], value.low() as u128);
    Ok(())
}

/// MOVSS, MOVSD, MOVQ, MOVD, MOVLPS, MOVLPD and MOVNTSS to memory.
fn store_scalar<C: Cpu, I: Isa, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let linear = address::linear(cpu, op, W::BYTES, true)?;
    let value = W::from_low(xmm(cpu.state(), op.regs[1]) as u64);
    cpu.store(linear, value, Access::Program)
}

/// MOVSS and MOVSD between registers: bits above the element come from the first source.
fn merge<C: Cpu, I: Isa, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let (first, second) = if I::VEX { (op.regs[1], op.regs[2]) } else { (op.regs[0], op.regs[1]) };
    let mask = (1u128 << (8 * W::BYTES)) - 1;
    let value = xmm(cpu.state(), first) & !mask | xmm(cpu.state(), second) & mask;
    put::<C, I>(cpu, op.regs[0], value);
    Ok(())
}

/// MOVQ between XMM registers: zero-extends.
fn quad<C: Cpu, I: Isa>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let value = xmm(cpu.state(), op.regs[1]) as u64 as u128;
    put::<C, I>(cpu, op.regs[0], value);
    Ok(())
}

/// MOVD and MOVQ from a general register.
fn from_gpr<C: Cpu, I: Isa, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let value = W::from_low(cpu.state().gpr[(op.regs[1] & 15) as usize]);
    put::<C, I>(cpu, op.regs[0], value.low() as u128);
    Ok(())
}

/// MOVD and MOVQ to a general register, of which the upper half is cleared by 32 bits.
fn to_gpr<C: Cpu, I: Isa, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let value = W::from_low(xmm(cpu.state(), op.regs[1]) as u64);
    cpu.state_mut().gpr[(op.regs[0] & 15) as usize] = value.low();
    Ok(())
}

/// The first source of MOVLPS and its kin.
#[inline(always)]
fn first<C: Cpu, I: Isa>(cpu: &C, op: &Op<C>) -> u128 {
    xmm(cpu.state(), op.regs[I::VEX as usize])
}

#[inline(always)]
fn join(low: u64, high: u64) -> u128 {
    low as u128 | (high as u128) << 64
}

/// MOVLPS, MOVLPD from memory.
fn load_low<C: Cpu, I: Isa>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let linear = address::linear(cpu, op, 8, false)?;
    let value = cpu.load(linear, Access::Program)?;
    let high = (first::<C, I>(cpu, op) >> 64) as u64;
    put::<C, I>(cpu, op.regs[0], join(value, high));
    Ok(())
}

/// MOVHPS, MOVHPD from memory.
fn load_high<C: Cpu, I: Isa>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let linear = address::linear(cpu, op, 8, false)?;
    let value = cpu.load(linear, Access::Program)?;
    let low = first::<C, I>(cpu, op) as u64;
    put::<C, I>(cpu, op.regs[0], join(low, value));
    Ok(())
}

/// MOVHPS, MOVHPD to memory.
fn store_high<C: Cpu, I: Isa>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let linear = address::linear(cpu, op, 8, true)?;
    let value = (xmm(cpu.state(), op.regs[1]) >> 64) as u64;
    cpu.store(linear, value, Access::Program)
}

/// MOVHLPS (`LOW`: the high quadword moves down) and MOVLHPS.
fn cross<C: Cpu, I: Isa, const LOW: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let first = first::<C, I>(cpu, op);
    let second = xmm(cpu.state(), op.regs[1 + I::VEX as usize]);
    let value = if LOW { join((second >> 64) as u64, (first >> 64) as u64) } else { join(first as u64, second as u64) };
    put::<C, I>(cpu, op.regs[0], value);
    Ok(())
}

pub(super) fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    let mem = has_memory(insn);
    // A 16- or 32-byte move, by whether it must be aligned and whether it has a memory operand.
    macro_rules! whole {
        ($f:ident, $isa:ty, $aligned:literal) => {
            if mem { $f::<C, $isa, $aligned, true> } else { $f::<C, $isa, $aligned, false> }
        };
    }
    macro_rules! either {
        ($mem:expr, $reg:expr) => {
            if mem { $mem } else { $reg }
        };
    }
    use Code::*;
    Some(match insn.code() {
        Movups_xmm_xmmm128 => whole!(load, Sse<SSE>, false),
        Movupd_xmm_xmmm128 | Movdqu_xmm_xmmm128 => whole!(load, Sse<SSE2>, false),
        Lddqu_xmm_m128 => whole!(load, Sse<SSE3>, false),
        Movaps_xmm_xmmm128 => whole!(load, Sse<SSE>, true),
        Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 => whole!(load, Sse<SSE2>, true),
        Movntdqa_xmm_m128 => whole!(load, Sse<SSE41>, true),
        Movups_xmmm128_xmm => whole!(store, Sse<SSE>, false),
        Movupd_xmmm128_xmm | Movdqu_xmmm128_xmm => whole!(store, Sse<SSE2>, false),
        Movaps_xmmm128_xmm | Movntps_m128_xmm => whole!(store, Sse<SSE>, true),
        Movapd_xmmm128_xmm | Movdqa_xmmm128_xmm | Movntpd_m128_xmm | Movntdq_m128_xmm => {
            whole!(store, Sse<SSE2>, true)
        }
        Movss_xmm_xmmm32 => either!(load_scalar::<C, Sse<SSE>, u32>, merge::<C, Sse<SSE>, u32>),
        Movsd_xmm_xmmm64 => either!(load_scalar::<C, Sse<SSE2>, u64>, merge::<C, Sse<SSE2>, u64>),
        Movss_xmmm32_xmm => either!(store_scalar::<C, Sse<SSE>, u32>, merge::<C, Sse<SSE>, u32>),
        Movsd_xmmm64_xmm => either!(store_scalar::<C, Sse<SSE2>, u64>, merge::<C, Sse<SSE2>, u64>),
        Movntss_m32_xmm => store_scalar::<C, Sse<SSE4A>, u32>,
        Movntsd_m64_xmm => store_scalar::<C, Sse<SSE4A>, u64>,
        Movd_xmm_rm32 => either!(load_scalar::<C, Sse<SSE2>, u32>, from_gpr::<C, Sse<SSE2>, u32>),
        Movq_xmm_rm64 => either!(load_scalar::<C, Sse<SSE2>, u64>, from_gpr::<C, Sse<SSE2>, u64>),
        Movd_rm32_xmm => either!(store_scalar::<C, Sse<SSE2>, u32>, to_gpr::<C, Sse<SSE2>, u32>),
        Movq_rm64_xmm => either!(store_scalar::<C, Sse<SSE2>, u64>, to_gpr::<C, Sse<SSE2>, u64>),
        Movq_xmm_xmmm64 => either!(load_scalar::<C, Sse<SSE2>, u64>, quad::<C, Sse<SSE2>>),
        Movq_xmmm64_xmm => either!(store_scalar::<C, Sse<SSE2>, u64>, quad::<C, Sse<SSE2>>),
        Movlps_xmm_m64 => load_low::<C, Sse<SSE>>,
        Movlpd_xmm_m64 => load_low::<C, Sse<SSE2>>,
        Movhps_xmm_m64 => load_high::<C, Sse<SSE>>,
        Movhpd_xmm_m64 => load_high::<C, Sse<SSE2>>,
        Movlps_m64_xmm => store_scalar::<C, Sse<SSE>, u64>,
        Movlpd_m64_xmm => store_scalar::<C, Sse<SSE2>, u64>,
        Movhps_m64_xmm => store_high::<C, Sse<SSE>>,
        Movhpd_m64_xmm => store_high::<C, Sse<SSE2>>,
        Movhlps_xmm_xmm => cross::<C, Sse<SSE>, true>,
        Movlhps_xmm_xmm => cross::<C, Sse<SSE>, false>,

        VEX_Vmovups_xmm_xmmm128 | VEX_Vmovupd_xmm_xmmm128 | VEX_Vmovdqu_xmm_xmmm128 | VEX_Vlddqu_xmm_m128 => {
            whole!(load, Vex<0>, false)
        }
        VEX_Vmovaps_xmm_xmmm128 | VEX_Vmovapd_xmm_xmmm128 | VEX_Vmovdqa_xmm_xmmm128 | VEX_Vmovntdqa_xmm_m128 => {
            whole!(load, Vex<0>, true)
        }
        VEX_Vmovups_xmmm128_xmm | VEX_Vmovupd_xmmm128_xmm | VEX_Vmovdqu_xmmm128_xmm => whole!(store, Vex<0>, false),
        VEX_Vmovaps_xmmm128_xmm
        | VEX_Vmovapd_xmmm128_xmm
        | VEX_Vmovdqa_xmmm128_xmm
        | VEX_Vmovntps_m128_xmm
        | VEX_Vmovntpd_m128_xmm
        | VEX_Vmovntdq_m128_xmm => whole!(store, Vex<0>, true),
        VEX_Vmovups_ymm_ymmm256 | VEX_Vmovupd_ymm_ymmm256 | VEX_Vmovdqu_ymm_ymmm256 | VEX_Vlddqu_ymm_m256 => {
            whole!(load_ymm, Vex<0>, false)
        }
        VEX_Vmovaps_ymm_ymmm256 | VEX_Vmovapd_ymm_ymmm256 | VEX_Vmovdqa_ymm_ymmm256 => whole!(load_ymm, Vex<0>, true),
        VEX_Vmovntdqa_ymm_m256 => whole!(load_ymm, Vex<{ Features::AVX2.bits() }>, true),
        VEX_Vmovups_ymmm256_ymm | VEX_Vmovupd_ymmm256_ymm | VEX_Vmovdqu_ymmm256_ymm => {
            whole!(store_ymm, Vex<0>, false)
        }
        VEX_Vmovaps_ymmm256_ymm
        | VEX_Vmovapd_ymmm256_ymm
        | VEX_Vmovdqa_ymmm256_ymm
        | VEX_Vmovntps_m256_ymm
        | VEX_Vmovntpd_m256_ymm
        | VEX_Vmovntdq_m256_ymm => whole!(store_ymm, Vex<0>, true),
        VEX_Vmovss_xmm_m32 => load_scalar::<C, Vex<0>, u32>,
        VEX_Vmovsd_xmm_m64 => load_scalar::<C, Vex<0>, u64>,
        VEX_Vmovss_m32_xmm => store_scalar::<C, Vex<0>, u32>,
        VEX_Vmovsd_m64_xmm => store_scalar::<C, Vex<0>, u64>,
        VEX_Vmovss_xmm_xmm_xmm | VEX_Vmovss_xmm_xmm_xmm_0F11 => merge::<C, Vex<0>, u32>,
        VEX_Vmovsd_xmm_xmm_xmm | VEX_Vmovsd_xmm_xmm_xmm_0F11 => merge::<C, Vex<0>, u64>,
        VEX_Vmovd_xmm_rm32 => either!(load_scalar::<C, Vex<0>, u32>, from_gpr::<C, Vex<0>, u32>),
        VEX_Vmovq_xmm_rm64 => either!(load_scalar::<C, Vex<0>, u64>, from_gpr::<C, Vex<0>, u64>),
        VEX_Vmovd_rm32_xmm => either!(store_scalar::<C, Vex<0>, u32>, to_gpr::<C, Vex<0>, u32>),
        VEX_Vmovq_rm64_xmm => either!(store_scalar::<C, Vex<0>, u64>, to_gpr::<C, Vex<0>, u64>),
        VEX_Vmovq_xmm_xmmm64 => either!(load_scalar::<C, Vex<0>, u64>, quad::<C, Vex<0>>),
        VEX_Vmovq_xmmm64_xmm => either!(store_scalar::<C, Vex<0>, u64>, quad::<C, Vex<0>>),
        VEX_Vmovlps_xmm_xmm_m64 | VEX_Vmovlpd_xmm_xmm_m64 => load_low::<C, Vex<0>>,
        VEX_Vmovhps_xmm_xmm_m64 | VEX_Vmovhpd_xmm_xmm_m64 => load_high::<C, Vex<0>>,
        VEX_Vmovlps_m64_xmm | VEX_Vmovlpd_m64_xmm => store_scalar::<C, Vex<0>, u64>,
        VEX_Vmovhps_m64_xmm | VEX_Vmovhpd_m64_xmm => store_high::<C, Vex<0>>,
        VEX_Vmovhlps_xmm_xmm_xmm => cross::<C, Vex<0>, true>,
        VEX_Vmovlhps_xmm_xmm_xmm => cross::<C, Vex<0>, false>,
        _ => return None,
    })
}
