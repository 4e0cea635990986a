//! What the processor reads from the current task-state segment while a task runs: stacks of inner levels, the I/O
//! permission bitmap and the interrupt redirection bitmap (SDM vol. 3, 7.2, 7.7, 20.3.3; vol. 1, 19.5.2).
use x86::{CpuState, Vector, segment::system_type};

use super::descriptor::{fault, system_address};
use crate::{Access, Cpu, Res, Stop};

/// Offset of the I/O map base in a 32-bit or 64-bit TSS.
const IO_MAP_BASE: u64 = 102;

/// The linear address of `bytes` bytes at `offset` of the current TSS; None beyond its limit.
fn locate(state: &CpuState, offset: u64, bytes: u64) -> Option<u64> {
    (offset + bytes - 1 <= state.tr.limit as u64).then(|| system_address(state, state.tr.base.wrapping_add(offset)))
}

/// Whether the current TSS is a 16-bit one.
fn is_16bit(state: &CpuState) -> bool {
    matches!(state.tr.attr.typ(), system_type::TSS16_AVAILABLE | system_type::TSS16_BUSY)
}

/// SS and (E)SP for the privilege level `level`, outside of long mode.
pub(crate) fn inner_stack<C: Cpu>(cpu: &mut C, level: u8, ext: u32) -> Res<(u16, u64)> {
    let state = cpu.state();
    let small = is_16bit(state);
    let (offset, bytes) = if small { (level as u64 * 4 + 2, 4) } else { (level as u64 * 8 + 4, 8) };
    let at = locate(state, offset, bytes).ok_or(fault(Vector::TS, state.tr.selector, ext))?;
    if small {
        let sp: u16 = cpu.load(at, Access::System)?;
        let ss = cpu.load(at.wrapping_add(2), Access::System)?;
        Ok((ss, sp as u64))
    } else {
        let esp: u32 = cpu.load(at, Access::System)?;
        let ss = cpu.load(at.wrapping_add(4), Access::System)?;
        Ok((ss, esp as u64))
    }
}

/// RSP of the privilege level `level`, in long mode.
pub(crate) fn long_stack<C: Cpu>(cpu: &mut C, level: u8, ext: u32) -> Res<u64> {
    long_entry(cpu, level as u64 * 8 + 4, ext)
}

/// RSP of the interrupt stack table's entry `ist`, 1 to 7.
pub(crate) fn interrupt_stack<C: Cpu>(cpu: &mut C, ist: u8, ext: u32) -> Res<u64> {
    long_entry(cpu, ist as u64 * 8 + 28, ext)
}

fn long_entry<C: Cpu>(cpu: &mut C, offset: u64, ext: u32) -> Res<u64> {
    let state = cpu.state();
    let at = locate(state, offset, 8).ok_or(fault(Vector::TS, state.tr.selector, ext))?;
    cpu.load(at, Access::System)
}

/// Checks that the program may reach `size` ports from `port`: #GP(0) if not (SDM vol. 1, 19.5).
pub(crate) fn check_io<C: Cpu>(cpu: &mut C, port: u16, size: u8) -> Res {
    let state = cpu.state();
    let v86 = state.mode == x86::Mode::Virtual8086;
    if state.mode == x86::Mode::Real || !v86 && state.cpl <= state.flags.iopl() {
        return Ok(());
    }
    if is_16bit(state) || state.tr.attr.unusable() {
        return Err(Stop::GP0);
    }
    let at = locate(state, IO_MAP_BASE, 2).ok_or(Stop::GP0)?;
    let base: u16 = cpu.load(at, Access::System)?;
    // Two bytes are always read, so the map ends one byte behind the last port's.
    let at = locate(cpu.state(), base as u64 + port as u64 / 8, 2).ok_or(Stop::GP0)?;
    let bits: u16 = cpu.load(at, Access::System)?;
    let wanted = ((1u32 << size) - 1) << (port & 7);
    if bits as u32 & wanted != 0 { Err(Stop::GP0) } else { Ok(()) }
}

/// Whether INT `vector` of a virtual-8086 task goes to its own handler: its bit in the interrupt redirection bitmap, the
/// 32 bytes below the I/O map, is clear (SDM vol. 3, 20.3.3).
pub(crate) fn redirects<C: Cpu>(cpu: &mut C, vector: u8) -> Res<bool> {
    let state = cpu.state();
    if is_16bit(state) {
        return Err(Stop::GP0);
    }
    let at = locate(state, IO_MAP_BASE, 2).ok_or(Stop::GP0)?;
    let base: u16 = cpu.load(at, Access::System)?;
    let offset = (base as u64).checked_sub(32).ok_or(Stop::GP0)? + vector as u64 / 8;
    let at = locate(cpu.state(), offset, 1).ok_or(Stop::GP0)?;
    let bits: u8 = cpu.load(at, Access::System)?;
    Ok(bits >> (vector & 7) & 1 == 0)
}
