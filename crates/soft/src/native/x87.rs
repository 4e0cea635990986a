//! x87 instructions, run on the guest's whole x87 state and with its own control word; or, where that makes no
//! difference, on their operands alone.
//!
//! An unmasked exception makes the hardware do what it does to the guest's registers and set ES; the #MF comes with the
//! next waiting instruction, and a stub has none behind the guest's.
use std::ptr::NonNull;

use emulate::{Cpu, Op, Res, Stop, fpu::registers};
use x86::{Fpu, Vector, flags};

use super::{
    assemble, call,
    context::Context,
    load_operand, simd, store_operand,
    stubs::{Kind, Stub},
};

/// Exceptions that keep a store from happening when they are unmasked: all but precision.
const NO_STORE: u16 = 0x1f;

/// The exceptions in the status word.
const EXCEPTIONS: u16 = 0x3f;

/// Executes an instruction on its operands alone, if [`super::light`] allows it now.
pub(super) fn execute_light<C: Cpu>(
    cpu: &mut C,
    context: NonNull<Context>,
    stub: Stub,
    op: &Op<C>,
    memory: Option<u64>,
    complete: impl FnOnce(&mut C) -> Option<Stub>,
) -> Res {
    let legacy = &cpu.state().fpu.legacy;
    if !stub.light.hold(legacy.fcw, legacy.fsw, legacy.ftw) {
        let stub = complete(cpu).ok_or(Stop::UD)?;
        return execute(cpu, context, stub, op, memory);
    }
    if stub.kind == Kind::Light {
        load_operand(cpu, context, op, memory)?;
    }
    let flags = assemble::x87_flags(op.code);
    if flags == assemble::X87Flags::Reads {
        // SAFETY: the context is live, and no stub runs.
        unsafe { (*context.as_ptr()).flags = cpu.state().flags.get() & flags::STATUS | flags::FIXED };
    }
    call(cpu, context, stub);
    if stub.kind == Kind::LightStore {
        store_operand(cpu, context, op, memory)?;
    }
    if flags == assemble::X87Flags::Writes {
        simd::take_flags(cpu, context);
    }
    // SAFETY: as above.
    let fsw = unsafe { (*context.as_ptr()).fsw };
    let fpu = &mut cpu.state_mut().fpu;
    let replaced = stub.light.status;
    fpu.legacy.fsw = fpu.legacy.fsw & !replaced | fsw & (replaced | EXCEPTIONS);
    move_top(fpu, stub.light.pops);
    Ok(())
}

/// Pops one or two registers, or pushes one: the tags of those that are left or entered, the stack top, and the order in
/// which the state keeps the registers.
#[inline(always)]
fn move_top(fpu: &mut Fpu, pops: i8) {
    let top = registers::top(fpu);
    let legacy = &mut fpu.legacy;
    let by = match pops {
        0 => return,
        1 => {
            legacy.ftw &= !(1 << top);
            legacy.st.rotate_left(1);
            1
        }
        2 => {
            legacy.ftw &= !(1u8.rotate_left(top) | 2u8.rotate_left(top));
            legacy.st.rotate_left(2);
            2
        }
        _ => {
            legacy.ftw |= 1u8.rotate_left(top + 7);
            legacy.st.rotate_right(1);
            7
        }
    };
    legacy.fsw = legacy.fsw & !registers::TOP | (((top + by) & 7) as u16) << 11;
}

pub(super) fn execute<C: Cpu>(
    cpu: &mut C,
    context: NonNull<Context>,
    stub: Stub,
    op: &Op<C>,
    memory: Option<u64>,
) -> Res {
    let legacy = &cpu.state().fpu.legacy;
    if legacy.fsw & !legacy.fcw & EXCEPTIONS != 0 {
        // `emulate` has looked; but the host must not find a pending exception when it executes the instruction.
        return Err(Stop::fault(Vector::MF));
    }
    if stub.kind == Kind::X87 {
        load_operand(cpu, context, op, memory)?;
    } else if let Some(linear) = memory {
        // A store that cannot happen must fault before the exceptions of its operand show.
        cpu.probe_write(linear, op.mem_size as u64, emulate::Access::Program)?;
    }
    let conditions = assemble::x87_flags(op.code);
    let state = cpu.state();
    let legacy = &state.fpu.legacy;
    // SAFETY: the context is live, and no stub runs.
    let image = unsafe {
        (*context.as_ptr()).flags = state.flags.get() & flags::STATUS | flags::FIXED;
        &mut (*context.as_ptr()).fx.0
    };
    image[0] = legacy.fcw as u64 | (legacy.fsw as u64) << 16 | (legacy.ftw as u64) << 32;
    (image[1], image[2]) = (0, 0);
    for (i, st) in legacy.st.iter().enumerate() {
        let value = u128::from_le_bytes(*st);
        (image[4 + 2 * i], image[5 + 2 * i]) = (value as u64, (value >> 64) as u64 & 0xffff);
    }
    call(cpu, context, stub);
    // SAFETY: as above.
    let image = unsafe { &(*context.as_ptr()).fx.0 };
    let (fcw, fsw) = (image[0] as u16, (image[0] >> 16) as u16);
    if stub.kind == Kind::X87Store && fsw & !fcw & NO_STORE == 0 {
        store_operand(cpu, context, op, memory)?;
    }
    if conditions == assemble::X87Flags::Writes {
        simd::take_flags(cpu, context);
    }
    let legacy = &mut cpu.state_mut().fpu.legacy;
    legacy.fsw = fsw;
    legacy.ftw = (image[0] >> 32) as u8;
    for (i, st) in legacy.st.iter_mut().enumerate() {
        *st = (image[4 + 2 * i] as u128 | (image[5 + 2 * i] as u128) << 64).to_le_bytes();
    }
    Ok(())
}
