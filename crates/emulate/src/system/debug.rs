//! MOV to and from debug registers (SDM vol. 3, 17.2).
use x86::{Cr4, Vector, debug};

use super::{registers, tables::require_supervisor};
use crate::{Cpu, Flush, Op, Res, Stop};

/// The checks of both directions, in their order; DR4 and DR5 are DR6 and DR7 unless CR4.DE is set.
fn select<C: Cpu>(cpu: &mut C, number: u8) -> Res<u8> {
    let aliased = matches!(number, 4 | 5);
    if number > 7 || aliased && cpu.state().cr4 & Cr4::DE.bits() != 0 {
        return Err(Stop::UD);
    }
    require_supervisor(cpu)?;
    if cpu.state().dr7 & debug::DR7_GD != 0 {
        cpu.set_payload(debug::DR6_BD);
        return Err(Stop::fault(Vector::DB));
    }
    Ok(if aliased { number + 2 } else { number })
}

/// MOV DRn, r; `WIDE` in 64-bit mode.
pub(super) fn mov_to<C: Cpu, const WIDE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let number = select(cpu, op.regs[0])?;
    let value = registers::read(cpu.state(), op.regs[1]);
    let value = if WIDE { value } else { value as u32 as u64 };
    if number >= 6 && value >> 32 != 0 {
        return Err(Stop::GP0);
    }
    let state = cpu.state_mut();
    match number {
        6 => state.dr6 = dr6(value),
        7 => state.dr7 = dr7(value),
        n => state.dr[(n & 3) as usize] = value,
    }
    cpu.flush(Flush::Rights);
    Ok(())
}

/// MOV r, DRn.
pub(super) fn mov_from<C: Cpu, const SIZE: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let number = select(cpu, op.regs[1])?;
    let state = cpu.state_mut();
    let value = match number {
        6 => state.dr6,
        7 => state.dr7,
        n => state.dr[(n & 3) as usize],
    };
    registers::write(state, op.regs[0], SIZE, value);
    Ok(())
}

/// DR6 after `value` was written to it: reserved bits read as they are wired.
pub fn dr6(value: u64) -> u64 {
    value & (0xf | debug::DR6_BD | debug::DR6_BS | debug::DR6_BT) | debug::DR6_FIXED
}

/// DR7 after `value` was written to it.
pub fn dr7(value: u64) -> u64 {
    value & debug::DR7_VOLATILE | debug::DR7_FIXED
}
