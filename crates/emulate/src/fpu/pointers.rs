//! The x87's instruction and data pointers (SDM vol. 1, 8.1.8).
use x86::{CpuState, Mode, Seg};

use crate::Op;

/// A pointer as it is kept: 64 bits of offset in 64-bit mode, else selector and 32 bits of offset.
fn pack(state: &CpuState, seg: u8, offset: u64) -> u64 {
    if state.mode == Mode::Long64 {
        offset
    } else {
        (state.seg[(seg as usize).min(5)].selector as u64) << 32 | offset as u32 as u64
    }
}

/// Notes `op`, which has just been executed, as the last non-control instruction. `data` is the offset of its memory
/// operand.
#[inline]
pub(super) fn note<C>(state: &mut CpuState, op: &Op<C>, data: Option<u64>) {
    let start = state.rip.wrapping_sub(op.len as u64);
    state.fpu.legacy.fip = pack(state, Seg::Cs as u8, start);
    state.fpu.legacy.fop = op.imm as u16 & 0x7ff;
    if let Some(offset) = data {
        state.fpu.legacy.fdp = pack(state, op.seg, offset);
    }
}
