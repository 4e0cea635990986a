//! Register and 16-bit operands of system instructions.
use x86::CpuState;

use crate::{Access, Cpu, Op, Res, address};

/// The general register `number`.
pub(super) fn read(state: &CpuState, number: u8) -> u64 {
    state.gpr[(number & 15) as usize]
}

/// Writes `size` bytes of the general register `number`: 4 clear the upper half, 2 keep the rest.
pub(super) fn write(state: &mut CpuState, number: u8, size: u8, value: u64) {
    let slot = &mut state.gpr[(number & 15) as usize];
    *slot = match size {
        8 => value,
        4 => value as u32 as u64,
        _ => *slot & !0xffff | value & 0xffff,
    };
}

/// Reads operand 0 or 1 of `op`, a selector-sized register or memory operand.
pub(super) fn read_rm16<C: Cpu>(cpu: &mut C, op: &Op<C>, position: u8) -> Res<u16> {
    if op.mem == position {
        let linear = address::linear(cpu, op, 2, false)?;
        cpu.load(linear, Access::Program)
    } else {
        Ok(read(cpu.state(), op.regs[position as usize & 3]) as u16)
    }
}

/// Writes `value` to operand 0 of `op`: `size` bytes of a register, or 2 bytes of memory.
pub(super) fn write_rm16<C: Cpu>(cpu: &mut C, op: &Op<C>, size: u8, value: u64) -> Res {
    if op.is_memory() {
        let linear = address::linear(cpu, op, 2, true)?;
        cpu.store(linear, value as u16, Access::Program)
    } else {
        write(cpu.state_mut(), op.regs[0], size, value);
        Ok(())
    }
}
