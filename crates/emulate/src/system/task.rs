//! Hardware task switches (SDM vol. 3, chapter 7). They exist outside of long mode only.
//!
//! A switch has a point of no return: before it, a fault belongs to the old task and nothing has changed; behind it the
//! new task's registers are loaded, and what is wrong with its segments is an exception of the new task.
use x86::{Cr0, Cr4, Exception, Flags, Seg, Segment, Shadow, Vector, debug, flags, segment::system_type};

use super::{
    control,
    descriptor::{
        self, Descriptor, fault, is_conforming, is_null, is_tss, null_segment, stack_segment, system_address,
    },
    privilege_changed,
    segment::load_data,
    task_state::{Layout, TaskState},
};
use crate::{Access, Cpu, Flush, Res, Stop, TranslationChange, stack::Stack};

/// DR7's local enables, which a task switch clears.
const DR7_LOCAL: u64 = 0x155;

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Far JMP.
    Jump,
    /// Far CALL: the new task is nested.
    Call,
    /// IRET with NT set: back to the task that the current one is nested in.
    Return,
    /// An exception or interrupt through a task gate: nested as with CALL.
    Event {
        /// Error code to push in the new task.
        code: Option<u32>,
        /// EXT in the error codes of faults: not a software interrupt.
        ext: u32,
    },
}

impl Reason {
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }

    fn ext(self) -> u32 {
        if let Self::Event { ext, .. } = self { ext } else { 0 }
    }
}

/// Switches to the task whose TSS `selector` names, saving `rip` and `flags` as the old task's. `Err`: the switch
/// has not happened. `Ok(Some)`: it has, and the new task starts with this exception.
///
/// Rights to the gate or descriptor that led here have been checked.
pub fn switch<C: Cpu>(cpu: &mut C, selector: u16, reason: Reason, rip: u64, flags: u64) -> Res<Option<Exception>> {
    cpu.before_translation_change(TranslationChange::Task)?;
    let mut new_tss = find(cpu, selector, reason)?;
    let new = Layout::of(new_tss.attr());
    let old = Layout::of(cpu.state().tr.attr);
    let base = new_tss.segment().base;
    let incoming = new.load(cpu, base)?;
    let pdptr = incoming_pdptrs(cpu, &incoming)?;
    let outgoing = TaskState::of(cpu.state(), rip, if reason == Reason::Return { flags & !flags::NT } else { flags });

    // Memory: everything here is repeated identically if it has to be, and the busy bit comes last.
    old.probe(cpu)?;
    old.store(cpu, &outgoing)?;
    if reason.nests() {
        let back_link = cpu.state().tr.selector;
        cpu.store(system_address(cpu.state(), base), back_link, Access::System)?;
    } else {
        let current = cpu.state().tr.selector;
        if let Some(linear) = descriptor::locate(cpu.state(), current & !4, 8) {
            let raw = cpu.load(linear, Access::System)?;
            let mut d = Descriptor { selector: current, linear, raw };
            if d.system_type().is_some_and(is_tss) {
                d.set_busy(cpu, false)?;
            }
        }
    }
    if reason != Reason::Return {
        new_tss.set_busy(cpu, true)?;
    }

    let before = cpu.state().clone();
    commit(cpu, new_tss.segment(), new, &incoming, reason, pdptr);
    let result = enter(cpu, &incoming, new, reason);
    let Err(stop) = result else {
        // The trap of the T bit comes behind the switch, before the new task's first instruction.
        return Ok(incoming.trap.then(|| Exception::debug(debug::DR6_BT)));
    };
    if let Some(exception) = stop.exception(cpu.payload()) {
        privilege_changed(cpu);
        return Ok(Some(exception));
    }
    // Something outside is needed: the whole switch happens again later.
    *cpu.state_mut() = before;
    cpu.flush(Flush::All);
    privilege_changed(cpu);
    if reason != Reason::Return {
        new_tss.set_busy(cpu, false)?;
    }
    Err(stop)
}

/// JMP and CALL to a task: RIP is already behind the instruction.
pub(super) fn switch_by<C: Cpu>(cpu: &mut C, selector: u16, reason: Reason) -> Res {
    let (rip, flags) = (cpu.state().rip, cpu.state().flags.get());
    if let Some(exception) = switch(cpu, selector, reason, rip, flags)? {
        cpu.raise_after(exception);
    }
    Ok(())
}

/// IRET with NT set.
pub(super) fn return_from_task<C: Cpu>(cpu: &mut C) -> Res {
    let at = system_address(cpu.state(), cpu.state().tr.base);
    let back_link: u16 = cpu.load(at, Access::System)?;
    switch_by(cpu, back_link, Reason::Return)
}

/// Finds the new task's TSS and checks its descriptor.
fn find<C: Cpu>(cpu: &mut C, selector: u16, reason: Reason) -> Res<Descriptor> {
    let ext = reason.ext();
    let wrong = if reason == Reason::Return { Vector::TS } else { Vector::GP };
    if selector & 4 != 0 || is_null(selector) {
        return Err(fault(wrong, selector, ext));
    }
    let d = descriptor::read(cpu, selector, wrong, ext)?;
    let busy = match d.system_type() {
        Some(system_type::TSS_AVAILABLE | system_type::TSS16_AVAILABLE) => false,
        Some(system_type::TSS_BUSY | system_type::TSS16_BUSY) => true,
        _ => return Err(fault(wrong, selector, ext)),
    };
    if busy != (reason == Reason::Return) {
        return Err(fault(wrong, selector, ext));
    }
    if !d.attr().present() {
        return Err(fault(Vector::NP, selector, ext));
    }
    if d.segment().limit < Layout::of(d.attr()).min_limit() {
        return Err(fault(Vector::TS, selector, ext));
    }
    Ok(d)
}

/// The PDPTEs of the new task's address space, with PAE paging.
fn incoming_pdptrs<C: Cpu>(cpu: &mut C, incoming: &TaskState) -> Res<Option<[u64; 4]>> {
    let state = cpu.state();
    match incoming.cr3 {
        Some(cr3) if state.paging() && state.cr4 & Cr4::PAE.bits() != 0 => {
            Ok(Some(control::load_pdptrs(cpu, cr3 as u64)?))
        }
        _ => Ok(None),
    }
}

/// Loads the registers of the new task, with segment registers that hold no more than selectors.
fn commit<C: Cpu>(
    cpu: &mut C,
    tr: Segment,
    layout: Layout,
    incoming: &TaskState,
    reason: Reason,
    pdptr: Option<[u64; 4]>,
) {
    let state = cpu.state_mut();
    state.tr = Segment { attr: tr.attr.with_type(layout.busy_type()), ..tr };
    let mut image = incoming.flags as u64;
    if reason.nests() {
        image |= flags::NT;
    }
    state.flags = Flags::default();
    state.flags.set(image);
    state.rip = incoming.ip as u64;
    for (register, value) in state.gpr.iter_mut().zip(incoming.gpr) {
        *register = value as u64;
    }
    let level = if state.flags.control(flags::VM) { 3 } else { (incoming.selectors[Seg::Cs as usize] & 3) as u8 };
    for (segment, selector) in state.seg.iter_mut().zip(incoming.selectors) {
        *segment = null_segment(selector, level);
    }
    state.ldtr = null_segment(incoming.ldt, 0);
    state.cr0 |= Cr0::TS.bits();
    state.dr7 &= !DR7_LOCAL;
    state.shadow = Shadow::None;
    if let (Some(cr3), true) = (incoming.cr3, state.paging()) {
        state.cr3 = cr3 as u64;
        state.pdptr = pdptr.unwrap_or(state.pdptr);
        cpu.flush(Flush::Cr3 { keep: false });
    }
    privilege_changed(cpu);
}

/// Loads and checks the new task's segments, and pushes the error code of an event.
fn enter<C: Cpu>(cpu: &mut C, incoming: &TaskState, layout: Layout, reason: Reason) -> Res {
    let ext = reason.ext();
    let ldt = load_ldt(cpu, incoming.ldt, ext)?;
    cpu.state_mut().ldtr = ldt;
    if cpu.state().flags.control(flags::VM) {
        for (segment, selector) in cpu.state_mut().seg.iter_mut().zip(incoming.selectors) {
            *segment = Segment::real(selector, 3);
        }
    } else {
        load_segments(cpu, &incoming.selectors, ext)?;
    }
    privilege_changed(cpu);
    if let Reason::Event { code: Some(code), .. } = reason {
        let mut stack = Stack::current(cpu.state());
        stack.fault = Stop::fault_code(Vector::SS, ext);
        stack.push_sized(cpu, layout.word(), code as u64)?;
        stack.commit(cpu.state_mut());
    }
    let state = cpu.state();
    if state.rip > state.seg[Seg::Cs as usize].limit as u64 {
        return Err(Stop::gp(ext));
    }
    Ok(())
}

fn load_ldt<C: Cpu>(cpu: &mut C, selector: u16, ext: u32) -> Res<Segment> {
    if is_null(selector) {
        return Ok(null_segment(selector, 0));
    }
    let wrong = Err(fault(Vector::TS, selector, ext));
    if selector & 4 != 0 {
        return wrong;
    }
    let d = descriptor::read(cpu, selector, Vector::TS, ext)?;
    if d.system_type() != Some(system_type::LDT) || !d.attr().present() {
        return wrong;
    }
    Ok(d.segment())
}

fn load_segments<C: Cpu>(cpu: &mut C, selectors: &[u16; 6], ext: u32) -> Res {
    let cs = selectors[Seg::Cs as usize];
    let level = (cs & 3) as u8;
    if is_null(cs) {
        return Err(fault(Vector::TS, cs, ext));
    }
    let mut code = descriptor::read(cpu, cs, Vector::TS, ext)?;
    let attr = code.attr();
    let wrong_level = if is_conforming(attr) { attr.dpl() > level } else { attr.dpl() != level };
    if !attr.is_code() || wrong_level {
        return Err(fault(Vector::TS, cs, ext));
    }
    let ss = stack_segment(cpu, selectors[Seg::Ss as usize], level, Vector::TS, ext)?;
    cpu.state_mut().seg[Seg::Ss as usize] = ss;
    if !attr.present() {
        return Err(fault(Vector::NP, cs, ext));
    }
    code.mark_accessed(cpu)?;
    cpu.state_mut().seg[Seg::Cs as usize] = code.segment();
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        let segment = load_data(cpu, selectors[seg as usize], level, Vector::TS, ext)?;
        cpu.state_mut().seg[seg as usize] = segment;
    }
    Ok(())
}
