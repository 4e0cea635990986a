//! Loads of the data and stack segment registers, and moves from segment registers (SDM vol. 2, MOV, POP, LDS; vol. 3,
//! 3.4.4, 5.4 to 5.7).
use x86::{Mode, Seg, Segment, Shadow, Vector};

use super::{
    descriptor::{self, fault, is_conforming, is_null, null_segment},
    privilege_changed, registers,
};
use crate::{Access, Cpu, Op, Res, Stop, address, stack::Stack};

const SEGS: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

/// What the segment register `seg` (not CS) holds after `selector` was loaded; commits nothing but the accessed bit.
pub(crate) fn load<C: Cpu>(cpu: &mut C, seg: Seg, selector: u16) -> Res<Segment> {
    let state = cpu.state();
    match state.mode {
        Mode::Real => Ok(load_real(&state.seg[seg as usize], selector)),
        Mode::Virtual8086 => Ok(Segment::real(selector, 3)),
        _ if seg == Seg::Ss => {
            let cpl = state.cpl;
            if is_null(selector) && state.mode == Mode::Long64 && cpl != 3 && (selector & 3) as u8 == cpl {
                return Ok(null_segment(selector, cpl));
            }
            descriptor::stack_segment(cpu, selector, cpl, Vector::GP, 0)
        }
        _ => load_data(cpu, selector, state.cpl, Vector::GP, 0),
    }
}

/// Real mode changes selector and base only: limit and attributes stay what protected mode has left.
pub(super) fn load_real(old: &Segment, selector: u16) -> Segment {
    if old.attr.unusable() {
        return Segment::real(selector, 0);
    }
    Segment { selector, base: (selector as u64) << 4, ..*old }
}

/// A data segment register of protected mode for a program at `cpl`; what breaks a rule raises `vector`(selector).
pub(super) fn load_data<C: Cpu>(cpu: &mut C, selector: u16, cpl: u8, vector: Vector, ext: u32) -> Res<Segment> {
    if is_null(selector) {
        return Ok(null_segment(selector, 0));
    }
    let mut d = descriptor::read(cpu, selector, vector, ext)?;
    let attr = d.attr();
    let readable = attr.is_code_or_data() && (!attr.is_code() || attr.type_bit1());
    let too_low = !is_conforming(attr) && ((selector & 3) as u8 > attr.dpl() || cpl > attr.dpl());
    if !readable || too_low {
        return Err(fault(vector, selector, ext));
    }
    if !attr.present() {
        return Err(fault(Vector::NP, selector, ext));
    }
    d.mark_accessed(cpu)?;
    Ok(d.segment())
}

/// Puts a loaded segment into its register.
fn commit<C: Cpu>(cpu: &mut C, seg: Seg, segment: Segment) {
    cpu.state_mut().seg[seg as usize] = segment;
    if seg == Seg::Ss {
        privilege_changed(cpu);
    }
}

/// The segment register that operand 0 or 1 names; #UD for CS and numbers without a register.
fn operand<C: Cpu>(op: &Op<C>, position: usize) -> Res<Seg> {
    SEGS.get(op.regs[position] as usize).copied().ok_or(Stop::UD)
}

/// MOV Sreg, r/m16.
pub(super) fn mov_to<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    let seg = operand(op, 0)?;
    if seg == Seg::Cs {
        return Err(Stop::UD);
    }
    let selector = registers::read_rm16(cpu, op, 1)?;
    let segment = load(cpu, seg, selector)?;
    commit(cpu, seg, segment);
    if seg == Seg::Ss {
        cpu.state_mut().shadow = Shadow::MovSs;
    }
    Ok(())
}

/// MOV r/m, Sreg; `SIZE` bytes of a register, always 2 of memory.
pub(super) fn mov_from<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let seg = operand(op, 1)?;
    let selector = cpu.state().seg[seg as usize].selector;
    registers::write_rm16(cpu, op, SIZE, selector as u64)
}

/// PUSH Sreg, zero-extended to `SIZE` bytes.
pub(super) fn push<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let seg = operand(op, 0)?;
    let state = cpu.state();
    let selector = state.seg[seg as usize].selector;
    let mut stack = Stack::current(state);
    stack.push_sized(cpu, SIZE, selector as u64)?;
    stack.commit(cpu.state_mut());
    Ok(())
}

/// POP Sreg.
pub(super) fn pop<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let seg = operand(op, 0)?;
    if seg == Seg::Cs {
        return Err(Stop::UD);
    }
    let mut stack = Stack::current(cpu.state());
    let selector = stack.pop_sized(cpu, SIZE)? as u16;
    let segment = load(cpu, seg, selector)?;
    // The stack pointer moves by the width of the old stack segment.
    stack.commit(cpu.state_mut());
    commit(cpu, seg, segment);
    if seg == Seg::Ss {
        cpu.state_mut().shadow = Shadow::MovSs;
    }
    Ok(())
}

/// LDS, LES, LFS, LGS and LSS: `SIZE` bytes of offset into a register, then a selector into the segment register
/// number `SEG`.
pub(super) fn load_pointer<C: Cpu, const SEG: u8, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let seg = SEGS[SEG as usize % SEGS.len()];
    let (offset, selector) = read_far_pointer::<C, SIZE>(cpu, op)?;
    let segment = load(cpu, seg, selector)?;
    commit(cpu, seg, segment);
    registers::write(cpu.state_mut(), op.regs[0], SIZE, offset);
    Ok(())
}

/// Reads the far pointer in memory: `SIZE` bytes of offset and a selector.
pub(super) fn read_far_pointer<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res<(u64, u16)> {
    let base = op.offset(cpu.state());
    let wrap = |offset: u64| match op.address_size {
        8 => offset,
        4 => offset as u32 as u64,
        _ => offset as u16 as u64,
    };
    let at = address::segment_offset(cpu, op.seg, base, SIZE as u64, false)?;
    let offset = match SIZE {
        2 => cpu.load::<u16>(at, Access::Program)? as u64,
        4 => cpu.load::<u32>(at, Access::Program)? as u64,
        _ => cpu.load(at, Access::Program)?,
    };
    let at = address::segment_offset(cpu, op.seg, wrap(base.wrapping_add(SIZE as u64)), 2, false)?;
    let selector = cpu.load(at, Access::Program)?;
    Ok((offset, selector))
}
