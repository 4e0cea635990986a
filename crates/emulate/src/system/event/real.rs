//! Delivery through the table of far pointers that real mode uses, in real mode itself and, with CR4.VME, for
//! INT n of virtual-8086 tasks (SDM vol. 3, 20.1.4 and 20.3.3).
use x86::{Cr4, Exception, Seg, flags};

use super::Delivering;
use crate::{Access, Cpu, Res, Stop, stack::Stack, system::tss};

/// Through the interrupt vector table at IDTR.base.
pub(super) fn deliver<C: Cpu>(cpu: &mut C, d: &Delivering) -> Res<Option<Exception>> {
    let idtr = cpu.state().idtr;
    let offset = d.vector as u64 * 4;
    if offset + 3 > idtr.limit as u64 {
        return Err(d.idt_fault(x86::Vector::GP));
    }
    let entry = cpu.load(idtr.base.wrapping_add(offset) as u32 as u64, Access::System)?;
    enter(cpu, d, entry, d.flags)?;
    let state = cpu.state_mut();
    state.flags.set_control(flags::IF | flags::TF | flags::AC | flags::RF, 0);
    Ok(None)
}

/// Whether INT n of a virtual-8086 task goes to the task's own handler. #GP(0) if it must trap to the monitor instead.
pub(super) fn redirected<C: Cpu>(cpu: &mut C, d: &Delivering) -> Res<bool> {
    let vme = cpu.state().cr4 & Cr4::VME.bits() != 0;
    if vme && tss::redirects(cpu, d.vector)? {
        return Ok(true);
    }
    if cpu.state().flags.iopl() < 3 { Err(Stop::GP0) } else { Ok(false) }
}

/// Through the task's own table at linear address 0.
pub(super) fn deliver_redirected<C: Cpu>(cpu: &mut C, d: &Delivering) -> Res<Option<Exception>> {
    let entry = cpu.load(d.vector as u64 * 4, Access::Program)?;
    let virtual_if = cpu.state().flags.iopl() < 3;
    let mut image = d.flags;
    if virtual_if {
        // The task sees IOPL 3 and its virtual interrupt flag.
        let vif = if image & flags::VIF != 0 { flags::IF } else { 0 };
        image = image & !flags::IF | flags::IOPL | vif;
    }
    enter(cpu, d, entry, image)?;
    let cleared = if virtual_if { flags::VIF } else { flags::IF };
    cpu.state_mut().flags.set_control(cleared | flags::TF | flags::RF, 0);
    Ok(None)
}

/// Pushes the return address and `image`, and goes to the far pointer `entry`.
fn enter<C: Cpu>(cpu: &mut C, d: &Delivering, entry: u32, image: u64) -> Res {
    let state = cpu.state();
    let cs = state.seg[Seg::Cs as usize];
    let mut stack = Stack::current(state);
    let (selector, ip) = ((entry >> 16) as u16, entry as u16 as u64);
    if ip > cs.limit as u64 {
        return Err(Stop::GP0);
    }
    stack.push(cpu, image as u16)?;
    stack.push(cpu, cs.selector)?;
    stack.push(cpu, d.rip as u16)?;
    let state = cpu.state_mut();
    stack.commit(state);
    let cs = &mut state.seg[Seg::Cs as usize];
    cs.selector = selector;
    cs.base = (selector as u64) << 4;
    state.rip = ip;
    Ok(())
}
