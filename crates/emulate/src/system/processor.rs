//! Instructions about the processor itself: CPUID, HLT, caches, translations, MONITOR, hypercalls,
//! segment bases.
use x86::{Cr4, Features, Mode, paging};

use super::{counters::require, registers, tables::require_supervisor};
use crate::{Access, Cpu, Flush, Intercept, Op, Res, Stop, TranslationChange, address};

/// CPUID.
pub(super) fn cpuid<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    cpu.intercept(Intercept::Cpuid, op)
}

/// HLT.
pub(super) fn hlt<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_supervisor(cpu)?;
    cpu.intercept(Intercept::Hlt, op)
}

/// WBINVD, WBNOINVD and INVD.
pub(super) fn wbinvd<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_supervisor(cpu)?;
    cpu.intercept(Intercept::Wbinvd, op)
}

/// VMCALL and VMMCALL.
pub(super) fn hypercall<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    cpu.intercept(Intercept::Hypercall, op)
}

/// RSM: whether the processor is in system-management mode is known outside.
pub(super) fn rsm<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    cpu.intercept(Intercept::Rsm, op)
}

/// MONITOR.
pub(super) fn monitor<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_monitor(cpu)?;
    if cpu.state().gpr[1] as u32 != 0 {
        return Err(Stop::GP0);
    }
    cpu.intercept(Intercept::Monitor, op)
}

/// MWAIT.
pub(super) fn mwait<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_monitor(cpu)?;
    cpu.intercept(Intercept::Mwait, op)
}

fn require_monitor<C: Cpu>(cpu: &C) -> Res {
    require(cpu, Features::MONITOR)?;
    if cpu.state().cpl == 0 { Ok(()) } else { Err(Stop::UD) }
}

/// INVLPG: an address that is not canonical invalidates nothing; segment limits do not count.
pub(super) fn invlpg<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_supervisor(cpu)?;
    let state = cpu.state();
    let offset = op.offset(state);
    let linear = if state.mode == Mode::Long64 {
        let base = if op.seg >= 4 { address::segment(state, op.seg).base } else { 0 };
        base.wrapping_add(offset)
    } else {
        address::segment(state, op.seg).base.wrapping_add(offset) as u32 as u64
    };
    if paging::canonical(linear, state.linear_bits()) {
        cpu.before_translation_change(TranslationChange::Page(linear))?;
        cpu.flush(Flush::Page(linear));
    }
    Ok(())
}

/// INVPCID.
pub(super) fn invpcid<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require(cpu, Features::INVPCID)?;
    require_supervisor(cpu)?;
    let at = address::linear(cpu, op, 16, false)?;
    let descriptor: u128 = cpu.load(at, Access::Program)?;
    let state = cpu.state();
    let kind = registers::read(state, op.regs[0]);
    let kind = if state.mode == Mode::Long64 { kind } else { kind as u32 as u64 };
    let (low, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcid = (low & 0xfff) as u16;
    let one_space = kind <= 1;
    if kind > 3
        || one_space && low >> 12 != 0
        || one_space && state.cr4 & Cr4::PCIDE.bits() == 0 && pcid != 0
        || kind == 0 && !paging::canonical(linear, state.linear_bits())
    {
        return Err(Stop::GP0);
    }
    cpu.flush(match kind {
        0 => Flush::PcidPage { pcid, linear },
        1 => Flush::Pcid(pcid),
        2 => Flush::All,
        _ => Flush::NonGlobal,
    });
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE are there in 64-bit mode with CR4.FSGSBASE.
fn require_fsgsbase<C: Cpu>(cpu: &C) -> Res {
    let state = cpu.state();
    let on = state.mode == Mode::Long64 && state.cr4 & Cr4::FSGSBASE.bits() != 0;
    if on { Ok(()) } else { Err(Stop::UD) }
}

/// RDFSBASE and RDGSBASE.
pub(super) fn read_base<C: Cpu, const SEG: u8, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    require_fsgsbase(cpu)?;
    let state = cpu.state_mut();
    let base = address::segment(state, SEG).base;
    registers::write(state, op.regs[0], SIZE, base);
    Ok(())
}

/// WRFSBASE and WRGSBASE.
pub(super) fn write_base<C: Cpu, const SEG: u8, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    require_fsgsbase(cpu)?;
    let state = cpu.state_mut();
    let base = registers::read(state, op.regs[0]);
    let base = if SIZE == 8 { base } else { base as u32 as u64 };
    if !paging::canonical(base, state.linear_bits()) {
        return Err(Stop::GP0);
    }
    state.seg[SEG as usize % 6].base = base;
    Ok(())
}
