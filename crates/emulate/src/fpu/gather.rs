//! AVX2 gathers: one load for each element whose mask bit is set (SDM vol. 2, VGATHERDPS). Elements are loaded in
//! ascending order. A fault leaves in destination and mask what was loaded before it, so that the instruction goes on from
//! there; an instruction that is stopped for other reasons begins anew.
use iced_x86::{Code, Instruction};
use platform::Word;
use x86::{CpuState, Features};

use super::check::{Isa, Vex};
use super::registers::{set_xmm, set_ymm_hi, xmm, ymm_hi};
use crate::{Access, Cpu, Handler, Op, Res, Stop, address};

type Avx2 = Vex<{ Features::AVX2.bits() }>;

/// A whole register as bytes.
fn bytes(state: &CpuState, reg: u8) -> [u8; 32] {
    let mut all = [0; 32];
    all[..16].copy_from_slice(&xmm(state, reg).to_le_bytes());
    all[16..].copy_from_slice(&ymm_hi(state, reg).to_le_bytes());
    all
}

/// Element `i` of `size` bytes, zero-extended.
fn element(from: &[u8; 32], i: usize, size: usize) -> u64 {
    let mut word = [0; 8];
    word[..size].copy_from_slice(&from[i * size..(i + 1) * size]);
    u64::from_le_bytes(word)
}

/// `N` elements of type `W`, with 64-bit or 32-bit indices.
fn gather<C: Cpu, W: Word, const N: usize, const INDEX64: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    Avx2::check(cpu)?;
    let (to, index, mask) = (op.regs[0] & 15, op.index & 15, op.regs[2] & 15);
    if to == index || to == mask || index == mask {
        return Err(Stop::UD);
    }
    let size = W::BYTES as usize;
    let (indices, masks, old) = (bytes(cpu.state(), index), bytes(cpu.state(), mask), bytes(cpu.state(), to));
    let mut result = old;
    for i in 0..N {
        if element(&masks, i, size) >> (8 * size - 1) & 1 == 0 {
            continue;
        }
        let index = if INDEX64 { element(&indices, i, 8) } else { element(&indices, i, 4) as i32 as i64 as u64 };
        let loaded = locate(cpu, op, index, W::BYTES).and_then(|linear| cpu.load::<W>(linear, Access::Program));
        match loaded {
            Ok(value) => result[i * size..(i + 1) * size].copy_from_slice(&value.low().to_le_bytes()[..size]),
            Err(stop) => {
                if i > 0 && stop.exception(0).is_some() {
                    let mut rest = masks;
                    rest[..i * size].fill(0);
                    write(cpu.state_mut(), to, &result);
                    write(cpu.state_mut(), mask, &rest);
                }
                return Err(stop);
            }
        }
    }
    result[N * size..].fill(0);
    let state = cpu.state_mut();
    write(state, to, &result);
    write(state, mask, &[0; 32]);
    Ok(())
}

/// Sets a whole register.
fn write(state: &mut CpuState, reg: u8, bytes: &[u8; 32]) {
    let (low, high) = bytes.split_at(16);
    set_xmm(state, reg, u128::from_le_bytes(low.try_into().unwrap_or_default()));
    set_ymm_hi(state, reg, u128::from_le_bytes(high.try_into().unwrap_or_default()));
}

/// The linear address of the element with this index.
fn locate<C: Cpu>(cpu: &mut C, op: &Op<C>, index: u64, size: u64) -> Res<u64> {
    let base = if op.base < 16 { cpu.state().gpr[(op.base & 15) as usize] } else { 0 };
    let offset = base.wrapping_add(index << (op.scale & 3)).wrapping_add(op.disp as i64 as u64);
    let offset = match op.address_size {
        8 => offset,
        4 => offset as u32 as u64,
        _ => offset as u16 as u64,
    };
    address::element(cpu, op.seg, offset, size, false)
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    use Code::*;
    Some(match insn.code() {
        VEX_Vpgatherdd_xmm_vm32x_xmm | VEX_Vgatherdps_xmm_vm32x_xmm => gather::<C, u32, 4, false>,
        VEX_Vpgatherdd_ymm_vm32y_ymm | VEX_Vgatherdps_ymm_vm32y_ymm => gather::<C, u32, 8, false>,
        VEX_Vpgatherdq_xmm_vm32x_xmm | VEX_Vgatherdpd_xmm_vm32x_xmm => gather::<C, u64, 2, false>,
        VEX_Vpgatherdq_ymm_vm32x_ymm | VEX_Vgatherdpd_ymm_vm32x_ymm => gather::<C, u64, 4, false>,
        VEX_Vpgatherqd_xmm_vm64x_xmm | VEX_Vgatherqps_xmm_vm64x_xmm => gather::<C, u32, 2, true>,
        VEX_Vpgatherqd_xmm_vm64y_xmm | VEX_Vgatherqps_xmm_vm64y_xmm => gather::<C, u32, 4, true>,
        VEX_Vpgatherqq_xmm_vm64x_xmm | VEX_Vgatherqpd_xmm_vm64x_xmm => gather::<C, u64, 2, true>,
        VEX_Vpgatherqq_ymm_vm64y_ymm | VEX_Vgatherqpd_ymm_vm64y_ymm => gather::<C, u64, 4, true>,
        _ => return None,
    })
}
