//! x87 instructions that only move registers or change a sign. A stack fault is left to [`Cpu::vector`], which knows what
//! follows from it.
use iced_x86::{Code, Instruction};

use super::registers::{set_top, top};
use super::{check, pointers};
use crate::{Access, Cpu, Handler, Op, Res, address};

const C1: u16 = 1 << 9;
const ONE: u128 = 0x3fff << 64 | 1 << 63;
const SIGN: u8 = 0x80;

/// Whether ST(`i`) holds something.
#[inline(always)]
fn full<C: Cpu>(cpu: &C, i: u8) -> bool {
    let fpu = &cpu.state().fpu;
    fpu.legacy.ftw.rotate_right(top(fpu)) >> (i & 7) & 1 != 0
}

/// Pushes `value`; ST(7) is empty.
#[inline(always)]
fn push<C: Cpu>(cpu: &mut C, op: &Op<C>, value: [u8; 16], data: Option<u64>) {
    let state = cpu.state_mut();
    let legacy = &mut state.fpu.legacy;
    legacy.st.rotate_right(1);
    legacy.st[0] = value;
    let to = (legacy.fsw >> 11).wrapping_sub(1) & 7;
    legacy.fsw = legacy.fsw & !(7 << 11) & !C1 | to << 11;
    legacy.ftw |= 1 << to;
    pointers::note(state, op, data);
}

#[inline(always)]
fn pop<C: Cpu>(cpu: &mut C) {
    let fpu = &mut cpu.state_mut().fpu;
    let from = top(fpu);
    fpu.legacy.ftw &= !(1 << from);
    set_top(fpu, from + 1);
}

/// The end of an instruction without memory operand.
#[inline(always)]
fn done<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    state.fpu.legacy.fsw &= !C1;
    pointers::note(state, op, None);
    Ok(())
}

/// What the family's general handler does when the registers are not as expected.
#[cold]
fn fault<C: Cpu>(cpu: &mut C, op: &Op<C>, memory: Option<u64>) -> Res {
    let data = if op.is_memory() { Some(op.offset(cpu.state())) } else { None };
    cpu.vector(op, memory)?;
    pointers::note(cpu.state_mut(), op, data);
    Ok(())
}

fn fxch<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let i = op.regs[1] & 7;
    if !full(cpu, 0) || !full(cpu, i) {
        return fault(cpu, op, None);
    }
    cpu.state_mut().fpu.legacy.st.swap(0, i as usize);
    done(cpu, op)
}

fn fld_register<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let i = op.regs[0] & 7;
    if !full(cpu, i) || full(cpu, 7) {
        return fault(cpu, op, None);
    }
    let value = cpu.state().fpu.legacy.st[i as usize];
    push(cpu, op, value, None);
    Ok(())
}

/// FLD1 and FLDZ.
fn constant<C: Cpu, const ZERO: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    if full(cpu, 7) {
        return fault(cpu, op, None);
    }
    push(cpu, op, if ZERO { [0; 16] } else { ONE.to_le_bytes() }, None);
    Ok(())
}

/// FST and FSTP to a register.
fn fst_register<C: Cpu, const POP: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    if !full(cpu, 0) {
        return fault(cpu, op, None);
    }
    let i = op.regs[0] & 7;
    let fpu = &mut cpu.state_mut().fpu;
    fpu.legacy.st[i as usize] = fpu.legacy.st[0];
    fpu.legacy.ftw |= 1u8.rotate_left(top(fpu) + i as u32);
    if POP {
        pop(cpu);
    }
    done(cpu, op)
}

/// FCHS and FABS.
fn sign<C: Cpu, const CHANGE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    if !full(cpu, 0) {
        return fault(cpu, op, None);
    }
    let byte = &mut cpu.state_mut().fpu.legacy.st[0][9];
    *byte = if CHANGE { *byte ^ SIGN } else { *byte & !SIGN };
    done(cpu, op)
}

fn fld_extended<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let linear = address::linear(cpu, op, 10, false)?;
    if full(cpu, 7) {
        return fault(cpu, op, Some(linear));
    }
    let low: u64 = cpu.load(linear, Access::Program)?;
    let high: u16 = cpu.load(linear.wrapping_add(8), Access::Program)?;
    let data = op.offset(cpu.state());
    push(cpu, op, (low as u128 | (high as u128) << 64).to_le_bytes(), Some(data));
    Ok(())
}

fn fstp_extended<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::x87_waiting(cpu)?;
    let linear = address::linear(cpu, op, 10, true)?;
    if !full(cpu, 0) {
        return fault(cpu, op, Some(linear));
    }
    let value = u128::from_le_bytes(cpu.state().fpu.legacy.st[0]);
    cpu.probe_write(linear, 10, Access::Program)?;
    cpu.store(linear, value as u64, Access::Program)?;
    cpu.store(linear.wrapping_add(8), (value >> 64) as u16, Access::Program)?;
    let data = op.offset(cpu.state());
    pop(cpu);
    done(cpu, op)?;
    pointers::note(cpu.state_mut(), op, Some(data));
    Ok(())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    use Code::*;
    Some(match insn.code() {
        Fxch_st0_sti | Fxch_st0_sti_DDC8 | Fxch_st0_sti_DFC8 => fxch,
        Fld_sti => fld_register,
        Fld1 => constant::<C, false>,
        Fldz => constant::<C, true>,
        Fst_sti => fst_register::<C, false>,
        Fstp_sti | Fstp_sti_DFD0 | Fstp_sti_DFD8 => fst_register::<C, true>,
        Fchs => sign::<C, true>,
        Fabs => sign::<C, false>,
        Fld_m80fp => fld_extended,
        Fstp_m80fp => fstp_extended,
        _ => return None,
    })
}
