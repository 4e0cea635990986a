//! CLI, STI, CLAC and STAC (SDM vol. 2; vol. 3, 20.3 for the virtual interrupt flag).
use x86::{CpuState, Cr4, Features, Mode, Shadow, flags};

use super::privilege_changed;
use crate::{Cpu, Op, Res, Stop};

/// Whether VIF takes IF's place, with CR4.VME in virtual-8086 mode and CR4.PVI at level 3; #GP(0) if the program may
/// touch neither.
fn uses_virtual_if(state: &CpuState) -> Res<bool> {
    let iopl = state.flags.iopl();
    let virtual_if = match state.mode {
        Mode::Real => return Ok(false),
        Mode::Virtual8086 if iopl == 3 => return Ok(false),
        Mode::Virtual8086 => state.cr4 & Cr4::VME.bits() != 0,
        _ if state.cpl <= iopl => return Ok(false),
        _ => state.cr4 & Cr4::PVI.bits() != 0 && state.cpl == 3,
    };
    if virtual_if { Ok(true) } else { Err(Stop::GP0) }
}

/// CLI.
pub(super) fn cli<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let cleared = if uses_virtual_if(cpu.state())? { flags::VIF } else { flags::IF };
    cpu.state_mut().flags.set_control(cleared, 0);
    Ok(())
}

/// STI.
pub(super) fn sti<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let virtual_if = uses_virtual_if(cpu.state())?;
    let state = cpu.state_mut();
    if virtual_if {
        if state.flags.control(flags::VIP) {
            return Err(Stop::GP0);
        }
        state.flags.set_control(flags::VIF, flags::VIF);
        return Ok(());
    }
    if !state.flags.control(flags::IF) {
        state.flags.set_control(flags::IF, flags::IF);
        state.shadow = Shadow::Sti;
    }
    Ok(())
}

/// STAC (`SET`) and CLAC.
pub(super) fn access_flag<C: Cpu, const SET: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    if !cpu.features().contains(Features::SMAP) || cpu.state().cpl != 0 || cpu.state().mode == Mode::Virtual8086 {
        return Err(Stop::UD);
    }
    cpu.state_mut().flags.set_control(flags::AC, if SET { flags::AC } else { 0 });
    privilege_changed(cpu);
    Ok(())
}
