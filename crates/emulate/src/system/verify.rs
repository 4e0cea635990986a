//! Questions about descriptors that answer in ZF instead of faulting: LAR, LSL, VERR, VERW; and ARPL (SDM vol. 2).
use x86::{Attr, flags, segment::system_type};

use super::{
    descriptor::{self, Descriptor, is_conforming, is_null, is_writable_data},
    registers,
};
use crate::{Access, Cpu, Op, Res, Stop, address};

/// These exist in protected mode only.
fn require_protected<C: Cpu>(cpu: &C) -> Res {
    if cpu.state().protected() { Ok(()) } else { Err(Stop::UD) }
}

/// The descriptor, if there is one and the program may see it.
fn visible<C: Cpu>(cpu: &mut C, selector: u16) -> Res<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(linear) = descriptor::locate(cpu.state(), selector, 8) else {
        return Ok(None);
    };
    let raw = cpu.load(linear, Access::System)?;
    let d = Descriptor { selector, linear, raw };
    let attr = d.attr();
    let level = cpu.state().cpl.max((selector & 3) as u8);
    Ok((is_conforming(attr) || level <= attr.dpl()).then_some(d))
}

fn set_zf<C: Cpu>(cpu: &mut C, zf: bool) {
    let flags = &mut cpu.state_mut().flags;
    flags.set(flags.get() & !flags::ZF | if zf { flags::ZF } else { 0 });
}

/// Whether LAR (`gates` too) or LSL knows the system type.
fn known(typ: u8, long: bool, gates: bool) -> bool {
    match typ {
        system_type::LDT | system_type::TSS_AVAILABLE | system_type::TSS_BUSY => true,
        system_type::TSS16_AVAILABLE | system_type::TSS16_BUSY => !long,
        system_type::CALL_GATE16 | system_type::TASK_GATE => gates && !long,
        system_type::CALL_GATE => gates,
        _ => false,
    }
}

/// Finds what LAR and LSL tell about.
fn described<C: Cpu>(cpu: &mut C, op: &Op<C>, gates: bool) -> Res<Option<Descriptor>> {
    require_protected(cpu)?;
    let selector = registers::read_rm16(cpu, op, 1)?;
    let long = cpu.state().long_mode();
    let d = visible(cpu, selector)?;
    Ok(d.filter(|d| d.system_type().is_none_or(|typ| known(typ, long, gates))))
}

/// LAR. The manuals leave the limit's bits 19:16 in it undefined; processors show them.
pub(super) fn lar<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let found = described(cpu, op, true)?;
    if let Some(d) = found {
        registers::write(cpu.state_mut(), op.regs[0], SIZE, d.raw >> 32 & 0x00ff_ff00);
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

/// LSL.
pub(super) fn lsl<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let found = described(cpu, op, false)?;
    if let Some(d) = found {
        registers::write(cpu.state_mut(), op.regs[0], SIZE, d.segment().limit as u64);
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

/// VERW (`WRITE`) and VERR.
pub(super) fn verify<C: Cpu, const WRITE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    require_protected(cpu)?;
    let selector = registers::read_rm16(cpu, op, 0)?;
    let usable = |attr: Attr| {
        let readable = attr.is_code_or_data() && (!attr.is_code() || attr.type_bit1());
        if WRITE { is_writable_data(attr) } else { readable }
    };
    let ok = visible(cpu, selector)?.is_some_and(|d| usable(d.attr()));
    set_zf(cpu, ok);
    Ok(())
}

/// ARPL.
pub(super) fn arpl<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_protected(cpu)?;
    let source = registers::read(cpu.state(), op.regs[1]) as u16;
    let adjust = |old: u16| (old & 3 < source & 3).then_some(old & !3 | source & 3);
    let changed = if op.is_memory() {
        // Only a change is a write.
        let at = address::linear(cpu, op, 2, false)?;
        let new = adjust(cpu.load(at, Access::Program)?);
        if let Some(new) = new {
            let at = address::linear(cpu, op, 2, true)?;
            cpu.store(at, new, Access::Program)?;
        }
        new
    } else {
        let new = adjust(registers::read(cpu.state(), op.regs[0]) as u16);
        if let Some(new) = new {
            registers::write(cpu.state_mut(), op.regs[0], 2, new as u64);
        }
        new
    };
    set_zf(cpu, changed.is_some());
    Ok(())
}
