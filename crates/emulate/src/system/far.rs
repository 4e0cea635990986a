//! Far jumps, calls and returns (SDM vol. 2, JMP, CALL, RET; vol. 3, 5.8).
use x86::{Seg, Vector, segment::system_type};

use super::{
    call_gate,
    descriptor::{self, Descriptor, drop_inner_segments, fault, is_conforming, is_null},
    gate::Gate,
    iret::{check_target, merge_stack_pointer, return_code_segment, return_stack_segment},
    privilege_changed, room,
    segment::read_far_pointer,
    task,
};
use crate::{Cpu, Op, Res, Stop, op::gpr::RSP, stack::Stack};

/// JMP ptr16:16 and ptr16:32.
pub(super) fn jmp_direct<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    jump(cpu, (op.imm >> 32) as u16, op.imm as u32 as u64)
}

/// JMP m16:16, m16:32 and m16:64.
pub(super) fn jmp_indirect<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let (offset, selector) = read_far_pointer::<C, SIZE>(cpu, op)?;
    jump(cpu, selector, offset)
}

/// CALL ptr16:16 and ptr16:32.
pub(super) fn call_direct<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    call(cpu, (op.imm >> 32) as u16, op.imm as u32 as u64, SIZE)
}

/// CALL m16:16, m16:32 and m16:64.
pub(super) fn call_indirect<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let (offset, selector) = read_far_pointer::<C, SIZE>(cpu, op)?;
    call(cpu, selector, offset, SIZE)
}

/// What a far pointer leads to.
enum Target {
    Code(Descriptor),
    CallGate(Descriptor, Gate),
    TaskGate(Gate),
    Task,
}

/// Reads the descriptor that `selector` names and makes the checks that JMP and CALL share.
fn target<C: Cpu>(cpu: &mut C, selector: u16) -> Res<Target> {
    if is_null(selector) {
        return Err(Stop::GP0);
    }
    let d = descriptor::read(cpu, selector, Vector::GP, 0)?;
    let attr = d.attr();
    let (cpl, rpl, long) = (cpu.state().cpl, (selector & 3) as u8, cpu.state().long_mode());
    let refuse = Err(fault(Vector::GP, selector, 0));
    let Some(typ) = d.system_type() else {
        let allowed =
            if is_conforming(attr) { attr.dpl() <= cpl } else { attr.is_code() && rpl <= cpl && attr.dpl() == cpl };
        if !allowed || long && attr.long() && attr.big() {
            return refuse;
        }
        return if attr.present() { Ok(Target::Code(d)) } else { Err(fault(Vector::NP, selector, 0)) };
    };
    let gate = Gate::parse(d.raw);
    let found = match typ {
        system_type::CALL_GATE => Target::CallGate(d, gate),
        system_type::CALL_GATE16 if !long => Target::CallGate(d, gate),
        system_type::TASK_GATE if !long => Target::TaskGate(gate),
        system_type::TSS_AVAILABLE | system_type::TSS16_AVAILABLE if !long => Target::Task,
        _ => return refuse,
    };
    if attr.dpl() < cpl || attr.dpl() < rpl {
        return refuse;
    }
    if attr.present() { Ok(found) } else { Err(fault(Vector::NP, selector, 0)) }
}

fn jump<C: Cpu>(cpu: &mut C, selector: u16, offset: u64) -> Res {
    if !cpu.state().protected() {
        return go_real(cpu, selector, offset, None);
    }
    match target(cpu, selector)? {
        Target::Code(d) => enter(cpu, d, offset, None),
        Target::CallGate(d, gate) => call_gate::jump(cpu, d, gate),
        Target::TaskGate(gate) => task::switch_by(cpu, gate.selector, task::Reason::Jump),
        Target::Task => task::switch_by(cpu, selector, task::Reason::Jump),
    }
}

fn call<C: Cpu>(cpu: &mut C, selector: u16, offset: u64, size: u8) -> Res {
    if !cpu.state().protected() {
        let stack = push_return(cpu, size)?;
        return go_real(cpu, selector, offset, Some(stack));
    }
    match target(cpu, selector)? {
        Target::Code(d) => enter(cpu, d, offset, Some(size)),
        Target::CallGate(d, gate) => call_gate::call(cpu, d, gate),
        Target::TaskGate(gate) => task::switch_by(cpu, gate.selector, task::Reason::Call),
        Target::Task => task::switch_by(cpu, selector, task::Reason::Call),
    }
}

/// Real and virtual-8086 mode: CS holds the selector, and its base is that times 16.
fn go_real<C: Cpu>(cpu: &mut C, selector: u16, ip: u64, stack: Option<Stack>) -> Res {
    let state = cpu.state_mut();
    let cs = &mut state.seg[Seg::Cs as usize];
    if ip > cs.limit as u64 {
        return Err(Stop::GP0);
    }
    cs.selector = selector;
    cs.base = (selector as u64) << 4;
    state.rip = ip;
    if let Some(stack) = stack {
        stack.commit(state);
    }
    Ok(())
}

/// Pushes the far return address on the current stack, without committing RSP.
pub(super) fn push_return<C: Cpu>(cpu: &mut C, size: u8) -> Res<Stack> {
    let state = cpu.state();
    let (cs, rip) = (state.seg[Seg::Cs as usize].selector, state.rip);
    let mut stack = Stack::current(state);
    stack.push_sized(cpu, size, cs as u64)?;
    stack.push_sized(cpu, size, rip)?;
    Ok(stack)
}

/// Goes to the checked code segment `d` without a change of privilege; `push` is the size of the return address.
pub(super) fn enter<C: Cpu>(cpu: &mut C, mut d: Descriptor, offset: u64, push: Option<u8>) -> Res {
    let to64 = cpu.state().long_mode() && d.attr().long();
    if let Some(size) = push {
        room(cpu, &Stack::current(cpu.state()), size, 2)?;
    }
    check_target(cpu, &d.segment(), offset, to64)?;
    d.mark_accessed(cpu)?;
    let stack = match push {
        Some(size) => Some(push_return(cpu, size)?),
        None => None,
    };
    let state = cpu.state_mut();
    if let Some(stack) = stack {
        stack.commit(state);
    }
    state.seg[Seg::Cs as usize] = d.code_segment(state.cpl);
    state.rip = offset;
    privilege_changed(cpu);
    Ok(())
}

/// RETF, and RETF imm16 that releases the parameters; `SIZE` bytes a value.
pub(super) fn ret<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let release = op.imm & 0xffff;
    let mut stack = Stack::current(cpu.state());
    let rip = stack.pop_sized(cpu, SIZE)?;
    let selector = stack.pop_sized(cpu, SIZE)? as u16;
    stack.skip(release);
    if !cpu.state().protected() {
        return go_real(cpu, selector, rip, Some(stack));
    }
    let code = return_code_segment(cpu, selector)?;
    let level = (selector & 3) as u8;
    let outer = level > cpu.state().cpl;
    let to64 = cpu.state().long_mode() && code.attr.long();
    let mut ss = cpu.state().seg[Seg::Ss as usize];
    if outer {
        let rsp = stack.pop_sized(cpu, SIZE)?;
        let selector = stack.pop_sized(cpu, SIZE)? as u16;
        ss = return_stack_segment(cpu, selector, level, to64)?;
        stack = Stack::other(ss, rsp, to64, stack.access, stack.fault);
        stack.pointer = merge_stack_pointer(cpu.state().gpr[RSP], rsp, stack.mask);
        // The parameters were copied to the inner stack; the caller's are released as well.
        stack.skip(release);
    }
    check_target(cpu, &code, rip, to64)?;

    let state = cpu.state_mut();
    stack.commit(state);
    state.rip = rip;
    state.seg[Seg::Cs as usize] = code;
    state.seg[Seg::Ss as usize] = ss;
    if outer {
        drop_inner_segments(state, level);
    }
    privilege_changed(cpu);
    Ok(())
}
