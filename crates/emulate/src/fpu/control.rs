//! Control and status: MXCSR, the x87's control and status words, its stack pointer and tags.
use iced_x86::{Code, Instruction};
use x86::{Features, fpu::MXCSR_MASK};

use super::check::{self, Isa, Sse, Vex};
use super::pointers;
use super::registers::{initialize, set_control, set_top, top};
use crate::{Access, Cpu, Handler, Op, Res, Stop, address};

const SSE: u64 = Features::SSE.bits();

fn ldmxcsr<C: Cpu, I: Isa>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let linear = address::linear(cpu, op, 4, false)?;
    let value: u32 = cpu.load(linear, Access::Program)?;
    if value & !MXCSR_MASK != 0 {
        return Err(Stop::GP0);
    }
    cpu.state_mut().fpu.legacy.mxcsr = value;
    Ok(())
}

fn stmxcsr<C: Cpu, I: Isa>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let linear = address::linear(cpu, op, 4, true)?;
    cpu.store(linear, cpu.state().fpu.legacy.mxcsr, Access::Program)
}

fn begin<C: Cpu, const WAIT: bool>(cpu: &C) -> Res {
    if WAIT { check::x87_waiting(cpu) } else { check::x87(cpu) }
}

fn store_word<C: Cpu>(cpu: &mut C, op: &Op<C>, value: u16) -> Res {
    let linear = address::linear(cpu, op, 2, true)?;
    cpu.store(linear, value, Access::Program)
}

fn fnstcw<C: Cpu, const WAIT: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)?;
    store_word(cpu, op, cpu.state().fpu.legacy.fcw)
}

fn fnstsw<C: Cpu, const WAIT: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)?;
    store_word(cpu, op, cpu.state().fpu.legacy.fsw)
}

fn fnstsw_ax<C: Cpu, const WAIT: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)?;
    let state = cpu.state_mut();
    state.gpr[0] = state.gpr[0] & !0xffff | state.fpu.legacy.fsw as u64;
    Ok(())
}

fn fldcw<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let linear = address::linear(cpu, op, 2, false)?;
    let value = cpu.load(linear, Access::Program)?;
    set_control(&mut cpu.state_mut().fpu, value);
    Ok(())
}

fn fnclex<C: Cpu, const WAIT: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)?;
    cpu.state_mut().fpu.legacy.fsw &= 0x7f00;
    Ok(())
}

fn fninit<C: Cpu, const WAIT: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)?;
    initialize(&mut cpu.state_mut().fpu);
    Ok(())
}

/// FENI, FDISI, FSETPM: the 8087's and 80287's, without effect since the 80387.
fn nothing<C: Cpu, const WAIT: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    begin::<C, WAIT>(cpu)
}

fn fwait<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    use x86::Cr0;
    let both = (Cr0::MP | Cr0::TS).bits();
    if cpu.state().cr0 & both == both {
        return Err(Stop::NM);
    }
    check::pending(cpu.state())
}

fn fnop<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    pointers::note(cpu.state_mut(), op, None);
    Ok(())
}

/// FINCSTP (`BY` 1) and FDECSTP (`BY` 7): renumbers, without touching tags.
fn rotate<C: Cpu, const BY: u32>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let state = cpu.state_mut();
    let to = top(&state.fpu) + BY;
    set_top(&mut state.fpu, to);
    state.fpu.legacy.fsw &= !C1;
    pointers::note(state, op, None);
    Ok(())
}

const C1: u16 = 1 << 9;

/// FFREE, and FFREEP, which pops too.
fn ffree<C: Cpu, const POP: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let state = cpu.state_mut();
    let top = top(&state.fpu);
    let register = (top + (op.regs[0] & 7) as u32) & 7;
    state.fpu.legacy.ftw &= !(1 << register);
    state.fpu.legacy.fsw &= !C1;
    if POP {
        state.fpu.legacy.ftw &= !(1 << top);
        set_top(&mut state.fpu, top + 1);
    }
    pointers::note(state, op, None);
    Ok(())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    use Code::*;
    Some(match insn.code() {
        Ldmxcsr_m32 => ldmxcsr::<C, Sse<SSE>>,
        Stmxcsr_m32 => stmxcsr::<C, Sse<SSE>>,
        VEX_Vldmxcsr_m32 => ldmxcsr::<C, Vex<0>>,
        VEX_Vstmxcsr_m32 => stmxcsr::<C, Vex<0>>,
        Fnstcw_m2byte => fnstcw::<C, false>,
        Fstcw_m2byte => fnstcw::<C, true>,
        Fnstsw_m2byte => fnstsw::<C, false>,
        Fstsw_m2byte => fnstsw::<C, true>,
        Fnstsw_AX => fnstsw_ax::<C, false>,
        Fstsw_AX => fnstsw_ax::<C, true>,
        Fldcw_m2byte => fldcw,
        Fnclex => fnclex::<C, false>,
        Fclex => fnclex::<C, true>,
        Fninit => fninit::<C, false>,
        Finit => fninit::<C, true>,
        Fneni | Fndisi | Fnsetpm => nothing::<C, false>,
        Feni | Fdisi | Fsetpm => nothing::<C, true>,
        Wait => fwait,
        Fnop => fnop,
        Fincstp => rotate::<C, 1>,
        Fdecstp => rotate::<C, 7>,
        Ffree_sti => ffree::<C, false>,
        Ffreep_sti => ffree::<C, true>,
        _ => return None,
    })
}
