//! Whether an instruction may be executed at all: CPUID, CR0, CR4, XCR0 and pending x87 exceptions.
use x86::{CpuState, Cr0, Cr4, Features, Mode, Vector, control::xcr0};

use crate::{Cpu, Res, Stop};

/// #MF.
pub(super) const MF: Stop = Stop::fault(Vector::MF);

const EM: u64 = Cr0::EM.bits();
const TS: u64 = Cr0::TS.bits();
const OSFXSR: u64 = Cr4::OSFXSR.bits();
const OSXSAVE: u64 = Cr4::OSXSAVE.bits();
const AVX_STATE: u64 = xcr0::SSE | xcr0::AVX;

#[inline(always)]
fn offered<C: Cpu>(cpu: &C, features: u64) -> bool {
    cpu.features().bits() & features == features
}

/// What lets an encoding family run.
pub(super) trait Isa: 'static {
    /// VEX-encoded: the first source is an operand of its own, bits above the result are zeroed, memory need not
    /// be aligned.
    const VEX: bool;
    /// #UD or #NM if the instruction cannot run now.
    fn check<C: Cpu>(cpu: &C) -> Res;
}

/// Legacy SSE that needs the features `F`.
pub(super) enum Sse<const F: u64> {}
/// VEX that needs the features `F` besides AVX.
pub(super) enum Vex<const F: u64> {}

impl<const F: u64> Isa for Sse<F> {
    const VEX: bool = false;
    #[inline(always)]
    fn check<C: Cpu>(cpu: &C) -> Res {
        let s = cpu.state();
        if s.cr0 & (EM | TS) | !s.cr4 & OSFXSR == 0 && offered(cpu, F) { Ok(()) } else { Err(sse_fault::<C, F>(cpu)) }
    }
}

impl<const F: u64> Isa for Vex<F> {
    const VEX: bool = true;
    #[inline(always)]
    fn check<C: Cpu>(cpu: &C) -> Res {
        let s = cpu.state();
        let usable = s.cr0 & TS | !s.cr4 & OSXSAVE | !s.xcr0 & AVX_STATE == 0
            && s.mode != Mode::Real
            && s.mode != Mode::Virtual8086
            && offered(cpu, F | Features::AVX.bits());
        if usable { Ok(()) } else { Err(vex_fault::<C, F>(cpu)) }
    }
}

#[cold]
fn sse_fault<C: Cpu, const F: u64>(cpu: &C) -> Stop {
    let s = cpu.state();
    if !offered(cpu, F) || s.cr0 & EM | !s.cr4 & OSFXSR != 0 { Stop::UD } else { Stop::NM }
}

#[cold]
fn vex_fault<C: Cpu, const F: u64>(cpu: &C) -> Stop {
    let s = cpu.state();
    let exists = s.protected() && !s.cr4 & OSXSAVE | !s.xcr0 & AVX_STATE == 0 && offered(cpu, F | Features::AVX.bits());
    if exists { Stop::NM } else { Stop::UD }
}

/// A pending unmasked x87 exception is #MF. The summary bit ES would tell too, but whoever sets the state from outside
/// may have left it wrong, as a processor's own never is.
#[inline(always)]
pub(super) fn pending(state: &CpuState) -> Res {
    let legacy = &state.fpu.legacy;
    if legacy.fsw & !legacy.fcw & 0x3f == 0 { Ok(()) } else { Err(MF) }
}

/// For x87 instructions that do not wait for pending exceptions.
#[inline(always)]
pub(super) fn x87<C: Cpu>(cpu: &C) -> Res {
    if cpu.state().cr0 & (EM | TS) != 0 {
        return Err(Stop::NM);
    }
    if offered(cpu, Features::FPU.bits()) { Ok(()) } else { Err(Stop::UD) }
}

/// For x87 instructions that do.
#[inline(always)]
pub(super) fn x87_waiting<C: Cpu>(cpu: &C) -> Res {
    x87(cpu)?;
    pending(cpu.state())
}

/// For MMX instructions, and SSE instructions with an MMX operand, that need the features `F`.
#[inline(always)]
pub(super) fn mmx<C: Cpu, const F: u64>(cpu: &C) -> Res {
    if cpu.state().cr0 & EM != 0 || !offered(cpu, F) {
        return Err(Stop::UD);
    }
    if cpu.state().cr0 & TS != 0 {
        return Err(Stop::NM);
    }
    pending(cpu.state())
}

/// FXSAVE and FXRSTOR.
pub(super) fn fxsave<C: Cpu>(cpu: &C) -> Res {
    if cpu.state().cr0 & EM != 0 || !offered(cpu, Features::FXSR.bits()) {
        return Err(Stop::UD);
    }
    if cpu.state().cr0 & TS != 0 { Err(Stop::NM) } else { Ok(()) }
}

/// XSAVE and its kin, which need the features `F` besides XSAVE.
pub(super) fn xsave<C: Cpu, const F: u64>(cpu: &C) -> Res {
    if cpu.state().cr4 & OSXSAVE == 0 || !offered(cpu, F | Features::XSAVE.bits()) {
        return Err(Stop::UD);
    }
    if cpu.state().cr0 & TS != 0 { Err(Stop::NM) } else { Ok(()) }
}
