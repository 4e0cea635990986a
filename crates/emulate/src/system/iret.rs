//! IRET: within a level, to an outer one, to virtual-8086 mode, within it, and back from a nested task (SDM vol. 2, IRET).
use x86::{Cr4, Mode, Seg, Segment, Vector, flags, paging};

use super::{
    descriptor::{self, drop_inner_segments, fault, is_conforming, is_null, null_segment},
    privilege_changed, task,
};
use crate::{Cpu, Op, Res, Stop, op::gpr::RSP, stack::Stack};

/// Flags that IRET writes at every level, with a 16-bit operand.
const ALWAYS16: u64 = flags::STATUS | flags::TF | flags::DF | flags::NT;
/// Flags that IRET writes at every level, with a 32-bit or 64-bit operand.
const ALWAYS: u64 = ALWAYS16 | flags::RF | flags::AC | flags::ID;

/// IRET, IRETD, IRETQ; `SIZE` bytes a value.
pub(super) fn iret<C: Cpu, const SIZE: u8>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state();
    let result = match state.mode {
        Mode::Real => real::<C, SIZE>(cpu),
        Mode::Virtual8086 => virtual8086::<C, SIZE>(cpu),
        _ if state.flags.control(flags::NT) => {
            if state.long_mode() {
                Err(Stop::GP0)
            } else {
                task::return_from_task(cpu)
            }
        }
        _ => protected::<C, SIZE>(cpu),
    };
    // Faulting does not keep NMIs blocked (SDM vol. 3, 6.7.1); waiting for somebody does not end the instruction.
    if result != Err(Stop::EXIT) && result != Err(Stop::RESTART) {
        cpu.unblock_nmi();
    }
    result
}

/// Bits of RFLAGS that a return by code at `cpl` may change.
fn writable(cpl: u8, iopl: u8, size: u8) -> u64 {
    let mut mask = if size == 2 { ALWAYS16 } else { ALWAYS };
    if cpl <= iopl {
        mask |= flags::IF;
    }
    if cpl == 0 {
        mask |= flags::IOPL;
        if size != 2 {
            mask |= flags::VIF | flags::VIP;
        }
    }
    mask
}

fn set_flags<C: Cpu>(cpu: &mut C, mask: u64, image: u64) {
    let flags = &mut cpu.state_mut().flags;
    flags.set(flags.get() & !mask | image & mask);
}

fn real<C: Cpu, const SIZE: u8>(cpu: &mut C) -> Res {
    let mut stack = Stack::current(cpu.state());
    let ip = stack.pop_sized(cpu, SIZE)?;
    let cs = stack.pop_sized(cpu, SIZE)? as u16;
    let image = stack.pop_sized(cpu, SIZE)?;
    if ip > cpu.state().seg[Seg::Cs as usize].limit as u64 {
        return Err(Stop::GP0);
    }
    let mask = writable(0, 0, SIZE) & !(flags::VIF | flags::VIP);
    finish_real(cpu, stack, ip, cs, mask, image);
    Ok(())
}

fn virtual8086<C: Cpu, const SIZE: u8>(cpu: &mut C) -> Res {
    let state = cpu.state();
    let full = state.flags.iopl() == 3;
    if !full && (SIZE != 2 || state.cr4 & Cr4::VME.bits() == 0) {
        return Err(Stop::GP0);
    }
    let mut stack = Stack::current(state);
    let ip = stack.pop_sized(cpu, SIZE)?;
    let cs = stack.pop_sized(cpu, SIZE)? as u16;
    let mut image = stack.pop_sized(cpu, SIZE)?;
    if ip > cpu.state().seg[Seg::Cs as usize].limit as u64 {
        return Err(Stop::GP0);
    }
    let mut mask = if SIZE == 2 { ALWAYS16 } else { ALWAYS };
    if full {
        mask |= flags::IF;
    } else {
        // The task's IF is the virtual one.
        let enables = image & flags::IF != 0;
        if enables && cpu.state().flags.control(flags::VIP) || image & flags::TF != 0 {
            return Err(Stop::GP0);
        }
        mask |= flags::VIF;
        image = image & !flags::VIF | if enables { flags::VIF } else { 0 };
    }
    finish_real(cpu, stack, ip, cs, mask, image);
    Ok(())
}

fn finish_real<C: Cpu>(cpu: &mut C, stack: Stack, ip: u64, cs: u16, mask: u64, image: u64) {
    let state = cpu.state_mut();
    stack.commit(state);
    let segment = &mut state.seg[Seg::Cs as usize];
    segment.selector = cs;
    segment.base = (cs as u64) << 4;
    state.rip = ip;
    set_flags(cpu, mask, image);
}

fn protected<C: Cpu, const SIZE: u8>(cpu: &mut C) -> Res {
    let state = cpu.state();
    let (cpl, iopl, from64) = (state.cpl, state.flags.iopl(), state.mode == Mode::Long64);
    let mut stack = Stack::current(state);
    let rip = stack.pop_sized(cpu, SIZE)?;
    let selector = stack.pop_sized(cpu, SIZE)? as u16;
    let image = stack.pop_sized(cpu, SIZE)?;
    if SIZE == 4 && image & flags::VM != 0 && cpl == 0 && !cpu.state().long_mode() {
        return to_virtual8086(cpu, stack, rip, selector, image);
    }

    let code = return_code_segment(cpu, selector)?;
    let level = (selector & 3) as u8;
    let outer = level > cpl;
    let to64 = cpu.state().long_mode() && code.attr.long();
    let mut ss = cpu.state().seg[Seg::Ss as usize];
    if outer || from64 {
        let rsp = stack.pop_sized(cpu, SIZE)?;
        let selector = stack.pop_sized(cpu, SIZE)? as u16;
        ss = return_stack_segment(cpu, selector, level, to64)?;
        stack = Stack::other(ss, rsp, to64, stack.access, stack.fault);
        stack.pointer = merge_stack_pointer(cpu.state().gpr[RSP], rsp, stack.mask);
    }
    check_target(cpu, &code, rip, to64)?;

    let state = cpu.state_mut();
    stack.commit(state);
    state.rip = rip;
    state.seg[Seg::Cs as usize] = code;
    state.seg[Seg::Ss as usize] = ss;
    set_flags(cpu, writable(cpl, iopl, SIZE), image);
    if outer {
        drop_inner_segments(cpu.state_mut(), level);
    }
    privilege_changed(cpu);
    Ok(())
}

/// RSP after a value was popped for it: a 16-bit stack keeps the upper half of ESP.
pub(super) fn merge_stack_pointer(old: u64, popped: u64, mask: u64) -> u64 {
    if mask == 0xffff { old & 0xffff_0000 | popped & 0xffff } else { popped }
}

/// Checks and reads the code segment that a far return goes to (SDM vol. 3, 5.8.6).
pub(super) fn return_code_segment<C: Cpu>(cpu: &mut C, selector: u16) -> Res<Segment> {
    let cpl = cpu.state().cpl;
    if is_null(selector) {
        return Err(Stop::GP0);
    }
    let mut d = descriptor::read(cpu, selector, Vector::GP, 0)?;
    let attr = d.attr();
    let rpl = (selector & 3) as u8;
    let wrong_level = if is_conforming(attr) { attr.dpl() > rpl } else { attr.dpl() != rpl };
    if !attr.is_code() || rpl < cpl || wrong_level || cpu.state().long_mode() && attr.long() && attr.big() {
        return Err(fault(Vector::GP, selector, 0));
    }
    if !attr.present() {
        return Err(fault(Vector::NP, selector, 0));
    }
    d.mark_accessed(cpu)?;
    Ok(d.segment())
}

/// Checks and reads the stack segment that a far return to `level` finds on the stack; in 64-bit mode it may be null
/// below level 3.
pub(super) fn return_stack_segment<C: Cpu>(cpu: &mut C, selector: u16, level: u8, to64: bool) -> Res<Segment> {
    if is_null(selector) && to64 && level != 3 && (selector & 3) as u8 == level {
        return Ok(null_segment(selector, level));
    }
    descriptor::stack_segment(cpu, selector, level, Vector::GP, 0)
}

/// #GP(0) if `rip` is not inside the code segment, or not canonical in 64-bit mode.
pub(super) fn check_target<C: Cpu>(cpu: &C, code: &Segment, rip: u64, to64: bool) -> Res {
    let ok = if to64 { paging::canonical(rip, cpu.state().linear_bits()) } else { rip <= code.limit as u64 };
    if ok { Ok(()) } else { Err(Stop::GP0) }
}

fn to_virtual8086<C: Cpu>(cpu: &mut C, mut stack: Stack, eip: u64, cs: u16, image: u64) -> Res {
    let esp: u32 = stack.pop(cpu)?;
    let mut selectors = [0; 6];
    for seg in [Seg::Ss, Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        selectors[seg as usize] = stack.pop::<C, u32>(cpu)? as u16;
    }
    selectors[Seg::Cs as usize] = cs;
    if eip > 0xffff {
        return Err(Stop::GP0);
    }
    let state = cpu.state_mut();
    for (segment, selector) in state.seg.iter_mut().zip(selectors) {
        *segment = Segment::real(selector, 3);
    }
    state.gpr[RSP] = esp as u64;
    state.rip = eip;
    state.flags.set(image);
    privilege_changed(cpu);
    Ok(())
}
