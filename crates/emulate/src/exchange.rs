//! XCHG, XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B.
use iced_x86::{Instruction, Mnemonic};

use crate::{
    Access, Cpu, Handler, Op, Res, address,
    address::Any,
    alu,
    op::{gpr, prefix},
    operand::{Locked, Place, Reg, Source, Width, by_width},
};
use platform::Word;
use x86::flags;

const AL: u8 = gpr::RAX as u8;

fn exchange_registers<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let (a, b) = (W::get(state, op.regs[0]), W::get(state, op.regs[1]));
    W::set(state, op.regs[0], b);
    W::set(state, op.regs[1], a);
    Ok(())
}

/// XCHG with memory is locked, with or without the prefix.
fn exchange<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let slot = if op.mem == 0 { 1 } else { 0 };
    let new = Reg::read::<C, W>(cpu, op, slot)?;
    let old = Locked::modify::<C, W, _>(cpu, op, 0, |_, old| (new, old))?;
    W::set(cpu.state_mut(), op.regs[slot], old);
    Ok(())
}

/// XADD. Of one register with itself it leaves the sum: the destination is written last.
fn add_registers<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let a = W::get(state, op.regs[0]);
    let outcome = alu::sum(a, W::get(state, op.regs[1]), false);
    W::set(state, op.regs[1], a);
    W::set(state, op.regs[0], outcome.value);
    alu::set_flags::<W>(state, outcome);
    Ok(())
}

fn exchange_add<C: Cpu, W: Width, D: Place>(cpu: &mut C, op: &Op<C>) -> Res {
    let b = Reg::read::<C, W>(cpu, op, 1)?;
    let (a, outcome) = D::modify::<C, W, _>(cpu, op, 0, |_, a| {
        let outcome = alu::sum(a, b, false);
        (outcome.value, (a, outcome))
    })?;
    let state = cpu.state_mut();
    W::set(state, op.regs[1], a);
    alu::set_flags::<W>(state, outcome);
    Ok(())
}

/// CMPXCHG: leaves the flags of comparing the accumulator with `old`, and `old` in the accumulator if they differ.
#[inline(always)]
fn compared<C: Cpu, W: Width>(cpu: &mut C, accumulator: u64, old: u64) {
    let state = cpu.state_mut();
    alu::set_compare::<W>(state, accumulator, old);
    if accumulator != old {
        W::set(state, AL, old);
    }
}

/// A register that differs is not written, not even the upper half that a 32-bit write would clear.
fn compare_exchange_registers<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let (old, new) = (W::get(state, op.regs[0]), W::get(state, op.regs[1]));
    let accumulator = W::get(state, AL);
    if old == accumulator {
        W::set(state, op.regs[0], new);
    }
    compared::<C, W>(cpu, accumulator, old);
    Ok(())
}

fn compare_exchange<C: Cpu, W: Width, D: Place>(cpu: &mut C, op: &Op<C>) -> Res {
    let new = Reg::read::<C, W>(cpu, op, 1)?;
    let accumulator = W::get(cpu.state(), AL);
    let old = D::modify::<C, W, _>(cpu, op, 0, |_, old| (if old == accumulator { new } else { old }, old))?;
    compared::<C, W>(cpu, accumulator, old);
    Ok(())
}

fn locked_compare_exchange<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let at = address::linear(cpu, op, W::BYTES, true)?;
    let state = cpu.state();
    let (new, accumulator) = (W::get(state, op.regs[1]), W::get(state, AL));
    let old = cpu.compare_exchange(at, W::from_low(accumulator), W::from_low(new), Access::Program)?.low();
    compared::<C, W>(cpu, accumulator, old);
    Ok(())
}

/// CMPXCHG8B and CMPXCHG16B: `P` holds a pair of registers of width `W`.
fn compare_exchange_pair<C: Cpu, P: Word, W: Width, const LOCK: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let at = address::linear(cpu, op, P::BYTES, true);
    let at = if P::BYTES == 16 { address::require_alignment(cpu, op, 16, at)? } else { at? };
    let state = cpu.state();
    let pair = |low: usize, high: usize| {
        let (low, high) = (W::get(state, low as u8), W::get(state, high as u8));
        if W::BITS == 64 { P::from_halves(low, high) } else { P::from_low(low | high << 32) }
    };
    let (expected, new) = (pair(gpr::RAX, gpr::RDX), pair(gpr::RBX, gpr::RCX));
    let old = if LOCK {
        cpu.compare_exchange(at, expected, new, Access::Program)?
    } else {
        let old = cpu.load_for_write::<P>(at, Access::Program)?;
        cpu.store(at, if old == expected { new } else { old }, Access::Program)?;
        old
    };
    let state = cpu.state_mut();
    if old == expected {
        state.flags.merge_status(flags::ZF, flags::ZF);
    } else {
        let high = if W::BITS == 64 { old.high() } else { old.low() >> 32 };
        W::set(state, AL, old.low());
        W::set(state, gpr::RDX as u8, high);
        state.flags.merge_status(flags::ZF, 0);
    }
    Ok(())
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    let lock = op.prefix & prefix::LOCK != 0;
    match insn.mnemonic() {
        Mnemonic::Xchg if op.is_memory() => by_width!(bytes, W => Some(exchange::<C, W>)),
        Mnemonic::Xchg => by_width!(bytes, W => Some(exchange_registers::<C, W>)),
        Mnemonic::Xadd if lock => by_width!(bytes, W => Some(exchange_add::<C, W, Locked>)),
        Mnemonic::Xadd if op.is_memory() => by_width!(bytes, W => Some(exchange_add::<C, W, Any>)),
        Mnemonic::Xadd => by_width!(bytes, W => Some(add_registers::<C, W>)),
        Mnemonic::Cmpxchg if lock => by_width!(bytes, W => Some(locked_compare_exchange::<C, W>)),
        Mnemonic::Cmpxchg if op.is_memory() => by_width!(bytes, W => Some(compare_exchange::<C, W, Any>)),
        Mnemonic::Cmpxchg => by_width!(bytes, W => Some(compare_exchange_registers::<C, W>)),
        Mnemonic::Cmpxchg8b if lock => Some(compare_exchange_pair::<C, u64, u32, true>),
        Mnemonic::Cmpxchg8b => Some(compare_exchange_pair::<C, u64, u32, false>),
        Mnemonic::Cmpxchg16b if lock => Some(compare_exchange_pair::<C, u128, u64, true>),
        Mnemonic::Cmpxchg16b => Some(compare_exchange_pair::<C, u128, u64, false>),
        _ => None,
    }
}
