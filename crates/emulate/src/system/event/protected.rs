//! Delivery in protected and virtual-8086 mode: 8-byte gates, with and without a change of privilege, and tasks
//! (SDM vol. 3, 6.12, 7.3 and 20.3.1).
use x86::{Exception, Mode, Seg, Vector, flags, segment::system_type};

use super::Delivering;
use crate::{
    Access, Cpu, Res, Stop,
    op::gpr::RSP,
    stack::Stack,
    system::{
        descriptor::{self, Descriptor, fault, is_conforming, is_null, null_segment, stack_segment, system_address},
        gate::Gate,
        room, task, tss,
    },
};

/// Through the IDT's 8-byte gates.
pub(super) fn deliver<C: Cpu>(cpu: &mut C, d: &Delivering) -> Res<Option<Exception>> {
    let state = cpu.state();
    let (idtr, cpl) = (state.idtr, state.cpl);
    let offset = d.vector as u64 * 8;
    if offset + 7 > idtr.limit as u64 {
        return Err(d.idt_fault(Vector::GP));
    }
    let at = system_address(state, idtr.base.wrapping_add(offset));
    let gate = Gate::parse(cpu.load(at, Access::System)?);
    let known = matches!(
        gate.typ,
        system_type::INTERRUPT_GATE
            | system_type::TRAP_GATE
            | system_type::INTERRUPT_GATE16
            | system_type::TRAP_GATE16
            | system_type::TASK_GATE
    );
    if !known || d.software && gate.dpl < cpl {
        return Err(d.idt_fault(Vector::GP));
    }
    if !gate.present {
        return Err(d.idt_fault(Vector::NP));
    }
    if gate.typ == system_type::TASK_GATE {
        let reason = task::Reason::Event { code: d.code, ext: d.ext };
        return task::switch(cpu, gate.selector, reason, d.rip, d.flags);
    }
    through_gate(cpu, d, gate)?;
    Ok(None)
}

fn through_gate<C: Cpu>(cpu: &mut C, d: &Delivering, gate: Gate) -> Res {
    let cpl = cpu.state().cpl;
    let v86 = cpu.state().mode == Mode::Virtual8086;
    if is_null(gate.selector) {
        return Err(Stop::gp(d.ext));
    }
    let mut code = descriptor::read(cpu, gate.selector, Vector::GP, d.ext)?;
    let attr = code.attr();
    if !attr.is_code() || attr.dpl() > cpl {
        return Err(fault(Vector::GP, gate.selector, d.ext));
    }
    if !attr.present() {
        return Err(fault(Vector::NP, gate.selector, d.ext));
    }
    let inner = !is_conforming(attr) && attr.dpl() < cpl;
    if v86 && (!inner || attr.dpl() != 0) {
        return Err(fault(Vector::GP, gate.selector, d.ext));
    }

    let interrupts = if gate.clears_if() { flags::IF } else { 0 };
    if inner {
        to_inner_level(cpu, d, gate, &mut code, attr.dpl(), v86)?;
    } else {
        let mut stack = Stack::current(cpu.state());
        stack.fault = Stop::fault_code(Vector::SS, d.ext);
        let items = 3 + d.code.is_some() as u64;
        finish(cpu, d, gate, &mut code, cpl, stack, items, |_, _| Ok(()))?;
    }
    let state = cpu.state_mut();
    state.flags.set_control(flags::TF | flags::VM | flags::RF | flags::NT | interrupts, 0);
    Ok(())
}

fn to_inner_level<C: Cpu>(cpu: &mut C, d: &Delivering, gate: Gate, code: &mut Descriptor, level: u8, v86: bool) -> Res {
    let (selector, top) = tss::inner_stack(cpu, level, d.ext)?;
    let ss = stack_segment(cpu, selector, level, Vector::TS, d.ext)?;
    let no_room = fault(Vector::SS, selector, d.ext);
    let stack = Stack::other(ss, top, false, Access::System, no_room);
    let items = if v86 { 9 } else { 5 } + d.code.is_some() as u64;
    finish(cpu, d, gate, code, level, stack, items, |cpu, stack| {
        let state = cpu.state();
        let seg = state.seg;
        let rsp = state.gpr[RSP];
        let size = gate.size();
        if v86 {
            for s in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
                stack.push_sized(cpu, size, seg[s as usize].selector as u64)?;
            }
        }
        stack.push_sized(cpu, size, seg[Seg::Ss as usize].selector as u64)?;
        stack.push_sized(cpu, size, rsp)
    })?;
    let state = cpu.state_mut();
    state.seg[Seg::Ss as usize] = ss;
    if v86 {
        for s in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
            state.seg[s as usize] = null_segment(0, 0);
        }
    }
    Ok(())
}

/// Checks that `items` values fit on `stack` and that the entry point is in its segment, pushes what `before` does
/// and the rest, and goes to the handler at the privilege level `level`.
#[allow(clippy::too_many_arguments)]
fn finish<C: Cpu>(
    cpu: &mut C,
    d: &Delivering,
    gate: Gate,
    code: &mut Descriptor,
    level: u8,
    mut stack: Stack,
    items: u64,
    before: impl FnOnce(&mut C, &mut Stack) -> Res,
) -> Res {
    let size = gate.size();
    room(cpu, &stack, size, items)?;
    if gate.offset > code.segment().limit as u64 {
        return Err(Stop::gp(d.ext));
    }
    code.mark_accessed(cpu)?;
    before(cpu, &mut stack)?;
    stack.push_sized(cpu, size, d.flags)?;
    stack.push_sized(cpu, size, cpu.state().seg[Seg::Cs as usize].selector as u64)?;
    stack.push_sized(cpu, size, d.rip)?;
    if let Some(error) = d.code {
        stack.push_sized(cpu, size, error as u64)?;
    }
    let state = cpu.state_mut();
    stack.commit(state);
    state.seg[Seg::Cs as usize] = code.code_segment(level);
    state.rip = gate.offset;
    Ok(())
}
