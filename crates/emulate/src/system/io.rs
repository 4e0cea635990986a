//! IN, OUT, INS and OUTS (SDM vol. 2; vol. 1, 19.5).
//!
//! Each iteration of REP INS and REP OUTS ends the handler with [`Stop::RESTART`] while others remain: an iteration
//! is a transaction of its own, and whoever runs the processor looks around between two of them. Iterations that touch
//! one page may be done as one, where the [`Cpu`] can.
use x86::{Seg, flags, paging::PAGE_SIZE};

use super::{registers, tss::check_io};
use crate::{
    Access, Cpu, Op, Res, Stop, address,
    op::{
        gpr::{RAX, RCX, RDI, RDX, RSI},
        prefix,
    },
};

/// Where INS writes, whatever the prefixes say.
const ES: u8 = Seg::Es as u8;

/// IN; `FROM_DX` else the port is the immediate.
pub(super) fn input<C: Cpu, const SIZE: u8, const FROM_DX: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let port = port::<C, FROM_DX>(cpu, op);
    check_io(cpu, port, SIZE)?;
    let value = cpu.port_in(port, SIZE)? as u64;
    let rax = &mut cpu.state_mut().gpr[RAX];
    *rax = match SIZE {
        1 => *rax & !0xff | value & 0xff,
        2 => *rax & !0xffff | value & 0xffff,
        _ => value,
    };
    Ok(())
}

/// OUT.
pub(super) fn output<C: Cpu, const SIZE: u8, const FROM_DX: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let port = port::<C, FROM_DX>(cpu, op);
    check_io(cpu, port, SIZE)?;
    let value = truncate::<SIZE>(cpu.state().gpr[RAX] as u32);
    cpu.port_out(port, SIZE, value)
}

fn port<C: Cpu, const FROM_DX: bool>(cpu: &C, op: &Op<C>) -> u16 {
    if FROM_DX { cpu.state().gpr[RDX] as u16 } else { op.imm as u8 as u16 }
}

fn truncate<const SIZE: u8>(value: u32) -> u32 {
    match SIZE {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value,
    }
}

/// INS.
pub(super) fn input_string<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let port = cpu.state().gpr[RDX] as u16;
    check_io(cpu, port, SIZE)?;
    if finished(cpu, op) {
        return Ok(());
    }
    if let Some((at, count)) = run::<C, SIZE>(cpu, op, RDI, true) {
        let done = cpu.ports_in(port, SIZE, at, count)?;
        if done != 0 {
            return advance::<C, SIZE>(cpu, op, RDI, done.min(count));
        }
    }
    let offset = wrap(op, cpu.state().gpr[RDI]);
    let at = address::segment_offset(cpu, ES, offset, SIZE as u64, true)?;
    // A device must not be read for a value that cannot be stored.
    cpu.probe_write(at, SIZE as u64, Access::Program)?;
    let value = cpu.port_in(port, SIZE)?;
    match SIZE {
        1 => cpu.store(at, value as u8, Access::Program)?,
        2 => cpu.store(at, value as u16, Access::Program)?,
        _ => cpu.store(at, value, Access::Program)?,
    }
    advance::<C, SIZE>(cpu, op, RDI, 1)
}

/// OUTS.
pub(super) fn output_string<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let port = cpu.state().gpr[RDX] as u16;
    check_io(cpu, port, SIZE)?;
    if finished(cpu, op) {
        return Ok(());
    }
    if let Some((at, count)) = run::<C, SIZE>(cpu, op, RSI, false) {
        let done = cpu.ports_out(port, SIZE, at, count)?;
        if done != 0 {
            return advance::<C, SIZE>(cpu, op, RSI, done.min(count));
        }
    }
    let offset = wrap(op, cpu.state().gpr[RSI]);
    let at = address::segment_offset(cpu, op.seg, offset, SIZE as u64, false)?;
    let value = match SIZE {
        1 => cpu.load::<u8>(at, Access::Program)? as u32,
        2 => cpu.load::<u16>(at, Access::Program)? as u32,
        _ => cpu.load(at, Access::Program)?,
    };
    cpu.port_out(port, SIZE, value)?;
    advance::<C, SIZE>(cpu, op, RSI, 1)
}

fn repeats<C>(op: &Op<C>) -> bool {
    op.prefix & (prefix::REP | prefix::REPNE) != 0
}

/// `value` as an offset or count of the instruction's address size.
fn wrap<C>(op: &Op<C>, value: u64) -> u64 {
    match op.address_size {
        8 => value,
        4 => value as u32 as u64,
        _ => value as u16 as u64,
    }
}

/// A REP with a count of zero.
fn finished<C: Cpu>(cpu: &C, op: &Op<C>) -> bool {
    repeats(op) && wrap(op, cpu.state().gpr[RCX]) == 0
}

/// The linear address of the next element, and how many elements from there on lie in one page and in the segment. None:
/// fewer than two, or they have to be done one by one: downwards, with a trap after each, or aligned.
fn run<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>, index: usize, write: bool) -> Option<(u64, u64)> {
    let state = cpu.state();
    let offset = wrap(op, state.gpr[index]);
    let to_wrap = wrap(op, u64::MAX) - offset;
    let count = wrap(op, state.gpr[RCX]).min(to_wrap / SIZE as u64);
    let checked = state.cpl == 3 && state.flags.control(flags::AC);
    if !repeats(op) || count < 2 || checked || state.flags.control(flags::DF | flags::TF) || cpu.data_breakpoints() {
        return None;
    }
    let seg = if write { ES } else { op.seg };
    let at = address::segment_offset(cpu, seg, offset, SIZE as u64, write).ok()?;
    let count = count.min((PAGE_SIZE - at % PAGE_SIZE) / SIZE as u64);
    let fits = count > 1 && address::segment_offset(cpu, seg, offset, count * SIZE as u64, write).is_ok();
    fits.then_some((at, count))
}

/// Commits `count` iterations: moves the index register, counts down, and asks for the next.
fn advance<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>, index: usize, count: u64) -> Res {
    let state = cpu.state_mut();
    let bytes = SIZE as u64 * count;
    let step = if state.flags.control(flags::DF) { bytes.wrapping_neg() } else { bytes };
    registers::write(state, index as u8, op.address_size, state.gpr[index].wrapping_add(step));
    if !repeats(op) {
        return Ok(());
    }
    registers::write(state, RCX as u8, op.address_size, state.gpr[RCX].wrapping_sub(count));
    if wrap(op, state.gpr[RCX]) == 0 { Ok(()) } else { Err(Stop::RESTART) }
}
