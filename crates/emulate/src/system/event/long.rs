//! Delivery in long mode: 16-byte gates, 64-bit handlers, stacks from the TSS (SDM vol. 3, 6.14).
use x86::{Exception, Seg, Vector, flags, paging, segment::system_type};

use super::Delivering;
use crate::{
    Access, Cpu, Res, Stop,
    op::gpr::RSP,
    stack::Stack,
    system::{
        descriptor::{self, fault, is_conforming, is_null, null_segment},
        gate::Gate,
        tss,
    },
};

/// Through the IDT's 16-byte gates.
pub(super) fn deliver<C: Cpu>(cpu: &mut C, d: &Delivering) -> Res<Option<Exception>> {
    let state = cpu.state();
    let (idtr, cpl) = (state.idtr, state.cpl);
    let offset = d.vector as u64 * 16;
    if offset + 15 > idtr.limit as u64 {
        return Err(d.idt_fault(Vector::GP));
    }
    let at = idtr.base.wrapping_add(offset);
    let low = cpu.load(at, Access::System)?;
    let high: u64 = cpu.load(at.wrapping_add(8), Access::System)?;
    let gate = Gate::parse(low);
    if !matches!(gate.typ, system_type::INTERRUPT_GATE | system_type::TRAP_GATE) || d.software && gate.dpl < cpl {
        return Err(d.idt_fault(Vector::GP));
    }
    if !gate.present {
        return Err(d.idt_fault(Vector::NP));
    }
    let entry = gate.offset | high << 32;

    if is_null(gate.selector) {
        return Err(Stop::gp(d.ext));
    }
    let mut code = descriptor::read(cpu, gate.selector, Vector::GP, d.ext)?;
    let attr = code.attr();
    if !attr.is_code() || attr.dpl() > cpl || !attr.long() || attr.big() {
        return Err(fault(Vector::GP, gate.selector, d.ext));
    }
    if !attr.present() {
        return Err(fault(Vector::NP, gate.selector, d.ext));
    }
    let level = if is_conforming(attr) { cpl } else { attr.dpl() };
    let inner = level < cpl;

    let old_ss = cpu.state().seg[Seg::Ss as usize];
    let old_rsp = cpu.state().gpr[RSP];
    let top = if gate.ist != 0 {
        tss::interrupt_stack(cpu, gate.ist, d.ext)?
    } else if inner {
        tss::long_stack(cpu, level, d.ext)?
    } else {
        old_rsp
    };
    let access = if inner { Access::System } else { Access::Program };
    let bits = cpu.state().linear_bits();
    let no_stack = Stop::fault_code(Vector::SS, d.ext);
    if !paging::canonical(top, bits) {
        return Err(no_stack);
    }
    if !paging::canonical(entry, bits) {
        return Err(Stop::gp(d.ext));
    }
    code.mark_accessed(cpu)?;

    let mut stack = Stack::other(old_ss, top & !0xf, true, access, no_stack);
    stack.push(cpu, old_ss.selector as u64)?;
    stack.push(cpu, old_rsp)?;
    stack.push(cpu, d.flags)?;
    stack.push(cpu, cpu.state().seg[Seg::Cs as usize].selector as u64)?;
    stack.push(cpu, d.rip)?;
    if let Some(error) = d.code {
        stack.push(cpu, error as u64)?;
    }

    let state = cpu.state_mut();
    stack.commit(state);
    if inner {
        state.seg[Seg::Ss as usize] = null_segment(level as u16, level);
    }
    state.seg[Seg::Cs as usize] = code.code_segment(level);
    state.rip = entry;
    let interrupts = if gate.clears_if() { flags::IF } else { 0 };
    state.flags.set_control(flags::TF | flags::VM | flags::RF | flags::NT | interrupts, 0);
    Ok(None)
}
