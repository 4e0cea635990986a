//! The fast ways between user and kernel: SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS (SDM vol. 2 and vol. 3, 5.8.7
//! and 5.8.8; APM vol. 3).
use core::mem::swap;

use x86::{Attr, CpuState, Efer, Exception, Features, Mode, Seg, Segment, debug, flags, paging};

use super::privilege_changed;
use crate::{
    Cpu, Op, Res, Stop,
    op::gpr::{R11, RCX, RDX, RSP},
};

const CODE: u16 = Attr::P | Attr::S | Attr::G | 11;
const DATA: u16 = Attr::P | Attr::S | Attr::G | Attr::DB | 3;

/// A flat segment, as these instructions make them without a descriptor.
fn flat(selector: u64, attr: u16, dpl: u8) -> Segment {
    Segment { selector: selector as u16, attr: Attr(attr).with_dpl(dpl), limit: u32::MAX, base: 0 }
}

fn set_code_and_stack(state: &mut CpuState, cs: Segment, ss: Segment) {
    state.seg[Seg::Cs as usize] = cs;
    state.seg[Seg::Ss as usize] = ss;
}

/// Whether SYSCALL and SYSRET exist here: Intel has them in 64-bit mode only.
fn check_syscall<C: Cpu>(cpu: &C) -> Res {
    let state = cpu.state();
    let features = cpu.features();
    let here = state.protected() && (features.contains(Features::AMD) || state.mode == Mode::Long64);
    if here && features.contains(Features::SYSCALL) && state.efer & Efer::SCE.bits() != 0 {
        Ok(())
    } else {
        Err(Stop::UD)
    }
}

/// SYSCALL.
pub(super) fn syscall<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    check_syscall(cpu)?;
    let state = cpu.state_mut();
    let selector = state.star >> 32 & 0xffff;
    if state.long_mode() {
        state.gpr[RCX] = state.rip;
        let old = state.flags.get();
        state.gpr[R11] = old & !flags::RF;
        state.rip = if state.mode == Mode::Long64 { state.lstar } else { state.cstar };
        state.flags.set(old & !state.sfmask & !flags::RF);
        set_code_and_stack(state, flat(selector & 0xfffc, CODE | Attr::L, 0), flat(selector.wrapping_add(8), DATA, 0));
    } else {
        state.gpr[RCX] = state.rip as u32 as u64;
        state.rip = state.star & 0xffff_ffff;
        state.flags.set_control(flags::IF | flags::RF | flags::VM, 0);
        set_code_and_stack(state, flat(selector & 0xfffc, CODE | Attr::DB, 0), flat(selector.wrapping_add(8), DATA, 0));
    }
    privilege_changed(cpu);
    Ok(())
}

/// SYSRET; `WIDE` with REX.W: to 64-bit mode.
pub(super) fn sysret<C: Cpu, const WIDE: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    check_syscall(cpu)?;
    let amd = cpu.features().contains(Features::AMD);
    let state = cpu.state();
    if state.cpl != 0 {
        return Err(Stop::GP0);
    }
    // Intel checks the target here, in the kernel; AMD's processors fault at the user's first fetch.
    if WIDE && !amd && !paging::canonical(state.gpr[RCX], state.linear_bits()) {
        return Err(Stop::GP0);
    }
    let state = cpu.state_mut();
    let selector = state.star >> 48;
    if state.long_mode() {
        let image = state.gpr[R11];
        state.flags.set(image & !(flags::RF | flags::VM));
    } else {
        state.flags.set_control(flags::IF, flags::IF);
    }
    let cs = if WIDE {
        state.rip = state.gpr[RCX];
        flat(selector.wrapping_add(16) | 3, CODE | Attr::L, 3)
    } else {
        state.rip = state.gpr[RCX] as u32 as u64;
        flat(selector | 3, CODE | Attr::DB, 3)
    };
    set_code_and_stack(state, cs, flat(selector.wrapping_add(8) | 3, DATA, 3));
    privilege_changed(cpu);
    if cpu.state().flags.control(flags::TF) {
        // The trap flag counts at once, as if the user's SYSCALL had just been stepped over.
        cpu.raise_after(Exception::debug(debug::DR6_BS));
    }
    Ok(())
}

/// Whether SYSENTER and SYSEXIT exist here: AMD has them outside of long mode only.
fn check_sysenter<C: Cpu>(cpu: &C) -> Res {
    let features = cpu.features();
    if !features.contains(Features::SEP) || features.contains(Features::AMD) && cpu.state().long_mode() {
        return Err(Stop::UD);
    }
    if cpu.state().mode == Mode::Real { Err(Stop::GP0) } else { Ok(()) }
}

/// SYSENTER.
pub(super) fn sysenter<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    check_sysenter(cpu)?;
    let state = cpu.state_mut();
    let selector = state.sysenter_cs & 0xfffc;
    if selector == 0 {
        return Err(Stop::GP0);
    }
    let long = state.long_mode();
    state.flags.set_control(flags::VM | flags::IF | flags::RF, 0);
    let (rip, rsp, size) = (state.sysenter_eip, state.sysenter_esp, if long { Attr::L } else { Attr::DB });
    (state.rip, state.gpr[RSP]) = if long { (rip, rsp) } else { (rip as u32 as u64, rsp as u32 as u64) };
    set_code_and_stack(state, flat(selector, CODE | size, 0), flat(selector + 8, DATA, 0));
    privilege_changed(cpu);
    Ok(())
}

/// SYSEXIT; `WIDE` with REX.W: to 64-bit mode.
pub(super) fn sysexit<C: Cpu, const WIDE: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    if cpu.features().contains(Features::SEP) && cpu.state().cpl != 0 {
        return Err(Stop::GP0);
    }
    check_sysenter(cpu)?;
    let state = cpu.state();
    let selector = state.sysenter_cs & 0xffff;
    if selector & 0xfffc == 0 || state.cpl != 0 || state.mode == Mode::Virtual8086 {
        return Err(Stop::GP0);
    }
    let (rip, rsp, bits) = (state.gpr[RDX], state.gpr[RCX], state.linear_bits());
    if WIDE && !(paging::canonical(rip, bits) && paging::canonical(rsp, bits)) {
        return Err(Stop::GP0);
    }
    let state = cpu.state_mut();
    let (cs, ss) = if WIDE {
        (state.rip, state.gpr[RSP]) = (rip, rsp);
        (flat((selector + 32) | 3, CODE | Attr::L, 3), flat((selector + 40) | 3, DATA, 3))
    } else {
        (state.rip, state.gpr[RSP]) = (rip as u32 as u64, rsp as u32 as u64);
        (flat((selector + 16) | 3, CODE | Attr::DB, 3), flat((selector + 24) | 3, DATA, 3))
    };
    set_code_and_stack(state, cs, ss);
    privilege_changed(cpu);
    Ok(())
}

/// SWAPGS.
pub(super) fn swapgs<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    if state.mode != Mode::Long64 {
        return Err(Stop::UD);
    }
    if state.cpl != 0 {
        return Err(Stop::GP0);
    }
    swap(&mut state.kernel_gs_base, &mut state.seg[Seg::Gs as usize].base);
    Ok(())
}
