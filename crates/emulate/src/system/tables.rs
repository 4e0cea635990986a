//! Descriptor-table registers: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR (SDM vol. 2).
use x86::{CpuState, Cr4, Mode, Segment, Table, Vector, paging, segment::system_type};

use super::{
    descriptor::{self, Descriptor, fault, is_null, null_segment},
    registers,
};
use crate::{Access, Cpu, Op, Res, Stop, address};

/// Which register an instruction means.
pub(super) const GDTR: bool = false;
/// See [`GDTR`].
pub(super) const IDTR: bool = true;

/// #GP(0) above level 0, and in virtual-8086 mode.
pub(super) fn require_supervisor<C: Cpu>(cpu: &C) -> Res {
    if cpu.state().cpl == 0 { Ok(()) } else { Err(Stop::GP0) }
}

/// #GP(0) for a program while CR4.UMIP hides the system registers.
pub(super) fn check_umip<C: Cpu>(cpu: &C) -> Res {
    let state = cpu.state();
    if state.cr4 & Cr4::UMIP.bits() != 0 && state.cpl != 0 { Err(Stop::GP0) } else { Ok(()) }
}

/// The second part of the operand of LGDT and its kin, behind the 16-bit limit.
fn base_address<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, write: bool) -> Res<u64> {
    let offset = op.offset(cpu.state()).wrapping_add(2);
    let offset = match op.address_size {
        8 => offset,
        4 => offset as u32 as u64,
        _ => offset as u16 as u64,
    };
    address::segment_offset(cpu, op.seg, offset, bytes, write)
}

/// LGDT and LIDT with a base of `SIZE` bytes; with a 16-bit operand (2) it has 24 bits.
pub(super) fn load_table<C: Cpu, const IDT: bool, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    require_supervisor(cpu)?;
    let at = address::segment_offset(cpu, op.seg, op.offset(cpu.state()), 2, false)?;
    let limit = cpu.load(at, Access::Program)?;
    let base = if SIZE == 8 {
        let at = base_address(cpu, op, 8, false)?;
        let base: u64 = cpu.load(at, Access::Program)?;
        if !paging::canonical(base, cpu.state().linear_bits()) {
            return Err(Stop::GP0);
        }
        base
    } else {
        let at = base_address(cpu, op, 4, false)?;
        let base: u32 = cpu.load(at, Access::Program)?;
        base as u64 & if SIZE == 2 { 0xff_ffff } else { 0xffff_ffff }
    };
    let state = cpu.state_mut();
    *(if IDT { &mut state.idtr } else { &mut state.gdtr }) = Table { base, limit };
    Ok(())
}

/// SGDT and SIDT with a base of `SIZE` bytes (with 2: 4 as well, as all processors since the 386 store it).
pub(super) fn store_table<C: Cpu, const IDT: bool, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    check_umip(cpu)?;
    let table = if IDT { cpu.state().idtr } else { cpu.state().gdtr };
    let at = address::segment_offset(cpu, op.seg, op.offset(cpu.state()), 2, true)?;
    let base_at = base_address(cpu, op, if SIZE == 8 { 8 } else { 4 }, true)?;
    cpu.store(at, table.limit, Access::Program)?;
    if SIZE == 8 {
        cpu.store(base_at, table.base, Access::Program)
    } else {
        cpu.store(base_at, table.base as u32, Access::Program)
    }
}

/// The checks that LLDT, LTR, SLDT and STR share: they exist in protected mode only.
fn require_protected<C: Cpu>(cpu: &C) -> Res {
    if cpu.state().protected() { Ok(()) } else { Err(Stop::UD) }
}

/// A system segment, with the upper half of its base in long mode.
fn system_segment<C: Cpu>(cpu: &mut C, d: &Descriptor) -> Res<Segment> {
    let mut segment = d.segment();
    if cpu.state().long_mode() {
        let upper = descriptor::read_upper(cpu, d, Vector::GP, 0)?;
        segment.base |= upper << 32;
        // A type in the second half would make it a descriptor of its own.
        if upper >> 40 & 0x1f != 0 || !paging::canonical(segment.base, cpu.state().linear_bits()) {
            return Err(fault(Vector::GP, d.selector, 0));
        }
    }
    Ok(segment)
}

/// LLDT.
pub(super) fn lldt<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_protected(cpu)?;
    require_supervisor(cpu)?;
    let selector = registers::read_rm16(cpu, op, 0)?;
    let segment = if is_null(selector) {
        null_segment(selector, 0)
    } else {
        if selector & 4 != 0 {
            return Err(fault(Vector::GP, selector, 0));
        }
        let d = descriptor::read(cpu, selector, Vector::GP, 0)?;
        if d.system_type() != Some(system_type::LDT) {
            return Err(fault(Vector::GP, selector, 0));
        }
        if !d.attr().present() {
            return Err(fault(Vector::NP, selector, 0));
        }
        system_segment(cpu, &d)?
    };
    cpu.state_mut().ldtr = segment;
    Ok(())
}

/// LTR.
pub(super) fn ltr<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    require_protected(cpu)?;
    require_supervisor(cpu)?;
    let selector = registers::read_rm16(cpu, op, 0)?;
    if is_null(selector) {
        return Err(Stop::GP0);
    }
    if selector & 4 != 0 {
        return Err(fault(Vector::GP, selector, 0));
    }
    let mut d = descriptor::read(cpu, selector, Vector::GP, 0)?;
    let available = match d.system_type() {
        Some(system_type::TSS_AVAILABLE) => true,
        Some(system_type::TSS16_AVAILABLE) => !cpu.state().long_mode(),
        _ => false,
    };
    if !available {
        return Err(fault(Vector::GP, selector, 0));
    }
    if !d.attr().present() {
        return Err(fault(Vector::NP, selector, 0));
    }
    let base = system_segment(cpu, &d)?.base;
    d.set_busy(cpu, true)?;
    cpu.state_mut().tr = Segment { base, ..d.segment() };
    Ok(())
}

fn store_selector<C: Cpu>(cpu: &mut C, op: &Op<C>, size: u8, of: impl Fn(&CpuState) -> u16) -> Res {
    if matches!(cpu.state().mode, Mode::Real | Mode::Virtual8086) {
        return Err(Stop::UD);
    }
    check_umip(cpu)?;
    let selector = of(cpu.state());
    registers::write_rm16(cpu, op, size, selector as u64)
}

/// SLDT.
pub(super) fn sldt<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    store_selector(cpu, op, SIZE, |state| state.ldtr.selector)
}

/// STR.
pub(super) fn str<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    store_selector(cpu, op, SIZE, |state| state.tr.selector)
}
