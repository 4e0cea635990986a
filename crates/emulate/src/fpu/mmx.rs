//! MMX moves and EMMS, and SSE moves with an MMX operand.
use iced_x86::{Code, Instruction};
use platform::Word;
use x86::Features;

use super::check;
use super::moves::has_memory;
use super::registers::{enter_mmx, mm, set_mm, set_top, set_xmm, xmm};
use crate::{Access, Cpu, Handler, Op, Res, address};

const MMX: u64 = Features::MMX.bits();
const SSE: u64 = Features::SSE.bits();
const SSE2: u64 = Features::SSE2.bits();

fn put<C: Cpu>(cpu: &mut C, reg: u8, value: u64) {
    let state = cpu.state_mut();
    enter_mmx(state);
    set_mm(state, reg, value);
}

/// MOVD and MOVQ from memory.
fn load<C: Cpu, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    check::mmx::<C, MMX>(cpu)?;
    let linear = address::linear(cpu, op, W::BYTES, false)?;
    let value: W = cpu.load(linear, Access::Program)?;
    put(cpu, op.regs[0], value.low());
    Ok(())
}

/// MOVD, MOVQ and MOVNTQ to memory.
fn store<C: Cpu, W: Word, const F: u64>(cpu: &mut C, op: &Op<C>) -> Res {
    check::mmx::<C, F>(cpu)?;
    let linear = address::linear(cpu, op, W::BYTES, true)?;
    let value = W::from_low(mm(cpu.state(), op.regs[1]));
    cpu.store(linear, value, Access::Program)?;
    enter_mmx(cpu.state_mut());
    Ok(())
}

fn from_gpr<C: Cpu, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    check::mmx::<C, MMX>(cpu)?;
    let value = W::from_low(cpu.state().gpr[(op.regs[1] & 15) as usize]);
    put(cpu, op.regs[0], value.low());
    Ok(())
}

fn to_gpr<C: Cpu, W: Word>(cpu: &mut C, op: &Op<C>) -> Res {
    check::mmx::<C, MMX>(cpu)?;
    let value = W::from_low(mm(cpu.state(), op.regs[1]));
    let state = cpu.state_mut();
    enter_mmx(state);
    state.gpr[(op.regs[0] & 15) as usize] = value.low();
    Ok(())
}

fn register<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::mmx::<C, MMX>(cpu)?;
    let value = mm(cpu.state(), op.regs[1]);
    put(cpu, op.regs[0], value);
    Ok(())
}

/// MOVQ2DQ.
fn to_xmm<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    <check::Sse<SSE2> as check::Isa>::check(cpu)?;
    check::pending(cpu.state())?;
    let value = mm(cpu.state(), op.regs[1]);
    let state = cpu.state_mut();
    enter_mmx(state);
    set_xmm(state, op.regs[0], value as u128);
    Ok(())
}

/// MOVDQ2Q.
fn from_xmm<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    <check::Sse<SSE2> as check::Isa>::check(cpu)?;
    check::pending(cpu.state())?;
    let value = xmm(cpu.state(), op.regs[1]) as u64;
    put(cpu, op.regs[0], value);
    Ok(())
}

fn emms<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    check::mmx::<C, MMX>(cpu)?;
    let fpu = &mut cpu.state_mut().fpu;
    set_top(fpu, 0);
    fpu.legacy.ftw = 0;
    Ok(())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    let mem = has_memory(insn);
    macro_rules! either {
        ($mem:expr, $reg:expr) => {
            if mem { $mem } else { $reg }
        };
    }
    use Code::*;
    Some(match insn.code() {
        Movd_mm_rm32 => either!(load::<C, u32>, from_gpr::<C, u32>),
        Movq_mm_rm64 => either!(load::<C, u64>, from_gpr::<C, u64>),
        Movq_mm_mmm64 => either!(load::<C, u64>, register),
        Movd_rm32_mm => either!(store::<C, u32, MMX>, to_gpr::<C, u32>),
        Movq_rm64_mm => either!(store::<C, u64, MMX>, to_gpr::<C, u64>),
        Movq_mmm64_mm => either!(store::<C, u64, MMX>, register),
        Movntq_m64_mm => store::<C, u64, SSE>,
        Movq2dq_xmm_mm => to_xmm,
        Movdq2q_mm_xmm => from_xmm,
        Emms => emms,
        _ => return None,
    })
}
