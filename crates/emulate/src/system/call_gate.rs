//! Call gates of 16, 32 and 64 bits: the change of level, the stack of the TSS and the copying of parameters (SDM
//! vol. 3, 5.8.2 to 5.8.5).
use x86::{Seg, Segment, Vector, paging};

use super::{
    descriptor::{self, Descriptor, fault, is_conforming, is_null, null_segment, stack_segment},
    far,
    gate::Gate,
    iret::check_target,
    privilege_changed, room, tss,
};
use crate::{Access, Cpu, Res, Stop, op::gpr::RSP, stack::Stack};

/// JMP through the gate `gate`, which is the descriptor `d`.
pub(super) fn jump<C: Cpu>(cpu: &mut C, d: Descriptor, gate: Gate) -> Res {
    let (code, entry) = resolve(cpu, &d, gate)?;
    let (attr, cpl) = (code.attr(), cpu.state().cpl);
    // A jump cannot change the level.
    if !is_conforming(attr) && attr.dpl() != cpl {
        return Err(fault(Vector::GP, code.selector, 0));
    }
    if !attr.present() {
        return Err(fault(Vector::NP, code.selector, 0));
    }
    far::enter(cpu, code, entry, None)
}

/// CALL through the gate `gate`, which is the descriptor `d`.
pub(super) fn call<C: Cpu>(cpu: &mut C, d: Descriptor, gate: Gate) -> Res {
    let (code, entry) = resolve(cpu, &d, gate)?;
    let (attr, long) = (code.attr(), cpu.state().long_mode());
    if !attr.present() {
        return Err(fault(Vector::NP, code.selector, 0));
    }
    let size = if long { 8 } else { gate.size() };
    if is_conforming(attr) || attr.dpl() == cpu.state().cpl {
        return far::enter(cpu, code, entry, Some(size));
    }
    if long { call_inner_long(cpu, code, entry) } else { call_inner(cpu, code, entry, gate, size) }
}

/// The code segment behind a gate and the entry point in it; DPL not above CPL has been checked.
fn resolve<C: Cpu>(cpu: &mut C, d: &Descriptor, gate: Gate) -> Res<(Descriptor, u64)> {
    let long = cpu.state().long_mode();
    let mut entry = gate.offset;
    if long {
        let upper = descriptor::read_upper(cpu, d, Vector::GP, 0)?;
        if upper >> 40 & 0x1f != 0 {
            return Err(fault(Vector::GP, d.selector, 0));
        }
        entry |= upper << 32;
    }
    if is_null(gate.selector) {
        return Err(Stop::GP0);
    }
    let code = descriptor::read(cpu, gate.selector, Vector::GP, 0)?;
    let attr = code.attr();
    if !attr.is_code() || attr.dpl() > cpu.state().cpl || long && (!attr.long() || attr.big()) {
        return Err(fault(Vector::GP, gate.selector, 0));
    }
    Ok((code, entry))
}

/// To an inner level in long mode: SS becomes null, nothing is copied.
fn call_inner_long<C: Cpu>(cpu: &mut C, mut code: Descriptor, entry: u64) -> Res {
    let level = code.attr().dpl();
    let top = tss::long_stack(cpu, level, 0)?;
    let bits = cpu.state().linear_bits();
    if !paging::canonical(top, bits) {
        return Err(Stop::SS0);
    }
    if !paging::canonical(entry, bits) {
        return Err(Stop::GP0);
    }
    let ss = null_segment(level as u16, level);
    code.mark_accessed(cpu)?;
    let mut stack = Stack::other(ss, top, true, Access::System, Stop::SS0);
    push_old_stack(cpu, &mut stack, 8)?;
    finish(cpu, stack, ss, code, entry, 8)
}

/// To an inner level outside of long mode.
fn call_inner<C: Cpu>(cpu: &mut C, mut code: Descriptor, entry: u64, gate: Gate, size: u8) -> Res {
    let level = code.attr().dpl();
    let (selector, top) = tss::inner_stack(cpu, level, 0)?;
    let ss = stack_segment(cpu, selector, level, Vector::TS, 0)?;
    let mut stack = Stack::other(ss, top, false, Access::System, fault(Vector::SS, selector, 0));
    room(cpu, &stack, size, 4 + gate.parameters as u64)?;
    check_target(cpu, &code.segment(), entry, false)?;
    code.mark_accessed(cpu)?;
    push_old_stack(cpu, &mut stack, size)?;
    // The last parameter lies lowest on both stacks.
    let from = Stack::current(cpu.state());
    for n in (0..gate.parameters as u64).rev() {
        let at = n * size as u64;
        let value = if size == 2 { from.peek::<C, u16>(cpu, at)? as u64 } else { from.peek::<C, u32>(cpu, at)? as u64 };
        stack.push_sized(cpu, size, value)?;
    }
    finish(cpu, stack, ss, code, entry, size)
}

fn push_old_stack<C: Cpu>(cpu: &mut C, stack: &mut Stack, size: u8) -> Res {
    let state = cpu.state();
    let (ss, rsp) = (state.seg[Seg::Ss as usize].selector, state.gpr[RSP]);
    stack.push_sized(cpu, size, ss as u64)?;
    stack.push_sized(cpu, size, rsp)
}

fn finish<C: Cpu>(cpu: &mut C, mut stack: Stack, ss: Segment, code: Descriptor, entry: u64, size: u8) -> Res {
    let state = cpu.state();
    let (cs, rip) = (state.seg[Seg::Cs as usize].selector, state.rip);
    stack.push_sized(cpu, size, cs as u64)?;
    stack.push_sized(cpu, size, rip)?;
    let state = cpu.state_mut();
    stack.commit(state);
    state.seg[Seg::Ss as usize] = ss;
    state.seg[Seg::Cs as usize] = code.code_segment(ss.attr.dpl());
    state.rip = entry;
    privilege_changed(cpu);
    Ok(())
}
