//! Single flags, BOUND, hints, fences and cache control.
use core::sync::atomic::{Ordering, fence};

use iced_x86::{Instruction, Mnemonic};
use x86::{Vector, flags};

use crate::{
    Access, Cpu, Handler, Intercept, Op, Res, Stop, address,
    op::{HIGH_BYTE, gpr},
    operand::{Width, by_word},
};

fn nop<C: Cpu>(_cpu: &mut C, _op: &Op<C>) -> Res {
    Ok(())
}

fn pause<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    cpu.intercept(Intercept::Pause, op)
}

/// MFENCE keeps a load behind it from being done before a store ahead of it; the host's processor needs to be told.
fn full_fence<C: Cpu>(_cpu: &mut C, _op: &Op<C>) -> Res {
    fence(Ordering::SeqCst);
    Ok(())
}

/// CLC, STC, CMC.
fn carry<C: Cpu, const KIND: u8>(cpu: &mut C, _op: &Op<C>) -> Res {
    let flags = &mut cpu.state_mut().flags;
    let value = match KIND {
        0 => false,
        1 => true,
        _ => !flags.cf(),
    };
    flags.set_cf(value);
    Ok(())
}

fn direction<C: Cpu, const DOWN: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    cpu.state_mut().flags.set_control(flags::DF, if DOWN { flags::DF } else { 0 });
    Ok(())
}

fn lahf<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let value = state.flags.status() & 0xff | flags::FIXED;
    u8::set(state, HIGH_BYTE, value);
    Ok(())
}

fn sahf<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let value = u8::get(state, HIGH_BYTE);
    state.flags.merge_status(flags::STATUS & !flags::OF, value);
    Ok(())
}

/// SALC, in no manual but in every processor: AL filled with CF.
fn salc<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let value = if state.flags.cf() { 0xff } else { 0 };
    u8::set(state, gpr::RAX as u8, value);
    Ok(())
}

fn bound<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let offset = op.offset(cpu.state());
    let mut bound = |offset: u64| -> Res<u64> {
        let at = address::segment_offset(cpu, op.seg, offset, W::BYTES, false)?;
        Ok(cpu.load::<W>(at, Access::Program)?.low())
    };
    let low = bound(offset)?;
    let high = bound(op.wrap(offset.wrapping_add(W::BYTES)))?;
    let signed = |value| W::sign_extend(value) as i64;
    let index = signed(W::get(cpu.state(), op.regs[0]));
    if index < signed(low) || index > signed(high) { Err(Stop::fault(Vector::BR)) } else { Ok(()) }
}

/// CLFLUSH, CLFLUSHOPT, CLWB: checked as a read of one byte; there is no cache to flush.
fn flush_line<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    let at = address::linear(cpu, op, 1, false)?;
    cpu.probe_read(at, Access::Program)
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>) -> Option<Handler<C>> {
    match insn.mnemonic() {
        Mnemonic::Nop | Mnemonic::Reservednop | Mnemonic::Lfence | Mnemonic::Sfence => Some(nop),
        Mnemonic::Mfence => Some(full_fence),
        Mnemonic::Pause => Some(pause),
        Mnemonic::Clc => Some(carry::<C, 0>),
        Mnemonic::Stc => Some(carry::<C, 1>),
        Mnemonic::Cmc => Some(carry::<C, 2>),
        Mnemonic::Cld => Some(direction::<C, false>),
        Mnemonic::Std => Some(direction::<C, true>),
        Mnemonic::Lahf => Some(lahf),
        Mnemonic::Sahf => Some(sahf),
        Mnemonic::Salc => Some(salc),
        Mnemonic::Bound => by_word!(op.mem_size / 2, W => Some(bound::<C, W>)),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Some(flush_line),
        _ => None,
    }
}
