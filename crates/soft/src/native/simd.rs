//! SSE and AVX instructions that depend on MXCSR.
use std::ptr::NonNull;

use emulate::{Cpu, Op, Res, Stop};
use x86::{Cr4, Vector, flags};

use super::{assemble, call, context::Context, stubs::Stub};

/// The six exception flags of MXCSR; their masks are 7 bits higher.
const EXCEPTIONS: u32 = 0x3f;
/// Exceptions of operands: invalid, denormal, division by zero.
const PRE_COMPUTATION: u32 = 0x07;
const UNDERFLOW: u32 = 1 << 4;
/// Denormals are zeros, rounding control, flush to zero.
const MODES: u32 = 0xe040;
const FLUSH_TO_ZERO: u32 = 1 << 15;
const ALL_MASKED: u32 = 0x1f80;
/// As exceptions to be fatal: keeps results from being written back whatever is raised, because the masks are always
/// set.
const NEVER: u32 = ALL_MASKED;

/// Runs `stub` with the guest's modes. If it raises an exception that the guest has unmasked, its registers are as
/// before but for the flags in MXCSR, and #XM (#UD without CR4.OSXMMEXCPT) is the result. The flags of masked
/// exceptions are left for [`commit`].
#[inline(always)]
pub(super) fn execute<C: Cpu>(cpu: &mut C, context: NonNull<Context>, stub: Stub, op: &Op<C>) -> Res {
    let guest = cpu.state().fpu.legacy.mxcsr;
    let unmasked = !(guest >> 7) & EXCEPTIONS;
    if unmasked & UNDERFLOW != 0 {
        return execute_trapping_underflow(cpu, context, stub, unmasked, assemble::is_to_half(op.code));
    }
    let raised = run(cpu, context, stub, guest & MODES, unmasked);
    if raised & unmasked == 0 { Ok(()) } else { Err(fault(cpu, raised, unmasked)) }
}

/// Unmasked underflow is raised for every tiny result, masked underflow only for the inexact ones (SDM vol. 1,
/// 4.9.1.5), and flushing to zero works only while it is masked. Flushing raises underflow for every tiny result, so a
/// first run with it tells; but conversions `to_half` precision never flush, and show by their results.
#[cold]
fn execute_trapping_underflow<C: Cpu>(
    cpu: &mut C,
    context: NonNull<Context>,
    stub: Stub,
    unmasked: u32,
    to_half: bool,
) -> Res {
    let modes = cpu.state().fpu.legacy.mxcsr & MODES & !FLUSH_TO_ZERO;
    if to_half {
        // A result of 64 bits leaves the rest as it is.
        // SAFETY: the context is live, and no stub runs.
        unsafe { (*context.as_ptr()).memory[0] = 0 };
    }
    let mut tiny = run(cpu, context, stub, modes | FLUSH_TO_ZERO, NEVER) & UNDERFLOW;
    // SAFETY: as above.
    if to_half && has_denormal_half(unsafe { (*context.as_ptr()).memory[0] }) {
        tiny = UNDERFLOW;
    }
    let fatal = if tiny != 0 { NEVER } else { unmasked };
    let raised = run(cpu, context, stub, modes, fatal) | tiny;
    if raised & unmasked == 0 { Ok(()) } else { Err(fault(cpu, raised, unmasked)) }
}

/// Whether one of eight half-precision numbers is denormal.
fn has_denormal_half(halves: u128) -> bool {
    (0..8).any(|i| {
        let half = (halves >> (16 * i)) as u16;
        half & 0x7c00 == 0 && half & 0x3ff != 0
    })
}

/// Runs `stub` once; returns the exceptions that it raised. Registers are written back unless one is among `fatal`.
#[inline(always)]
fn run<C: Cpu>(cpu: &mut C, context: NonNull<Context>, stub: Stub, modes: u32, fatal: u32) -> u32 {
    // SAFETY: the context is live, and no stub runs.
    unsafe {
        (*context.as_ptr()).mxcsr = modes | ALL_MASKED;
        (*context.as_ptr()).fatal = fatal;
    }
    call(cpu, context, stub);
    // SAFETY: as above.
    unsafe { (*context.as_ptr()).raised & EXCEPTIONS }
}

#[cold]
fn fault<C: Cpu>(cpu: &mut C, raised: u32, unmasked: u32) -> Stop {
    // An unmasked exception of an operand comes before there is a result that could raise others.
    // Beside an unmasked overflow or underflow, processors flag an inexact result only if the significand was rounded; it
    // is always flagged here, as for the masked ones.
    let before = raised & PRE_COMPUTATION;
    let seen = if before & unmasked != 0 { before } else { raised };
    let state = cpu.state_mut();
    state.fpu.legacy.mxcsr |= seen;
    if state.cr4 & Cr4::OSXMMEXCPT.bits() != 0 { Stop::fault(Vector::XM) } else { Stop::UD }
}

/// The instruction is complete: adds the masked exceptions that it raised to the guest's MXCSR.
#[inline(always)]
pub(super) fn commit<C: Cpu>(cpu: &mut C, context: NonNull<Context>) {
    // SAFETY: the context is live, and no stub runs.
    let raised = unsafe { (*context.as_ptr()).raised & EXCEPTIONS };
    cpu.state_mut().fpu.legacy.mxcsr |= raised;
}

/// Takes the status flags that the stub produced.
#[inline(always)]
pub(super) fn take_flags<C: Cpu>(cpu: &mut C, context: NonNull<Context>) {
    // SAFETY: the context is live, and no stub runs.
    let new = unsafe { (*context.as_ptr()).flags };
    let rflags = &mut cpu.state_mut().flags;
    rflags.set(rflags.get() & !flags::STATUS | new & flags::STATUS);
}
