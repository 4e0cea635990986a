//! Model-specific registers, time-stamp counter, performance counters, processor number and random numbers
//! (SDM vol. 2, RDMSR, RDTSC, RDPMC, RDPID, RDRAND).
use x86::{Cr4, Features, Mode, flags};

use super::{registers, tables::require_supervisor};
use crate::{
    Cpu, Intercept, Op, Res, Stop,
    op::gpr::{RAX, RCX, RDX},
};

/// #UD unless the guest's CPUID offers `feature`.
pub(super) fn require<C: Cpu>(cpu: &C, feature: Features) -> Res {
    if cpu.features().contains(feature) { Ok(()) } else { Err(Stop::UD) }
}

/// RDMSR.
pub(super) fn rdmsr<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require(cpu, Features::MSR)?;
    require_supervisor(cpu)?;
    cpu.intercept(Intercept::Rdmsr, op)
}

/// WRMSR.
pub(super) fn wrmsr<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require(cpu, Features::MSR)?;
    require_supervisor(cpu)?;
    cpu.intercept(Intercept::Wrmsr, op)
}

/// #GP(0) for a program that CR4.TSD keeps from the time.
fn check_tsd<C: Cpu>(cpu: &C) -> Res {
    let state = cpu.state();
    let hidden = state.mode != Mode::Real && state.cr4 & Cr4::TSD.bits() != 0 && state.cpl != 0;
    if hidden { Err(Stop::GP0) } else { Ok(()) }
}

/// RDTSC.
pub(super) fn rdtsc<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    require(cpu, Features::TSC)?;
    check_tsd(cpu)?;
    let now = cpu.tsc()?;
    let state = cpu.state_mut();
    state.gpr[RAX] = now & 0xffff_ffff;
    state.gpr[RDX] = now >> 32;
    Ok(())
}

/// RDTSCP.
pub(super) fn rdtscp<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require(cpu, Features::RDTSCP)?;
    rdtsc(cpu, op)?;
    let state = cpu.state_mut();
    state.gpr[RCX] = state.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPID.
pub(super) fn rdpid<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require(cpu, Features::RDPID)?;
    let state = cpu.state_mut();
    registers::write(state, op.regs[0], 8, state.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// RDPMC.
pub(super) fn rdpmc<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state();
    if state.mode != Mode::Real && state.cr4 & Cr4::PCE.bits() == 0 && state.cpl != 0 {
        return Err(Stop::GP0);
    }
    cpu.intercept(Intercept::Rdpmc, op)
}

/// RDRAND and RDSEED (`SEED`); there is always a number to be had, so CF is set.
pub(super) fn random<C: Cpu, const SIZE: u8, const SEED: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    require(cpu, if SEED { Features::RDSEED } else { Features::RDRAND })?;
    let value = cpu.random();
    let state = cpu.state_mut();
    registers::write(state, op.regs[0], SIZE, value);
    state.flags.set(state.flags.get() & !flags::STATUS | flags::CF);
    Ok(())
}
