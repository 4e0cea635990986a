//! Moves of selected elements: MASKMOVQ, MASKMOVDQU, VMASKMOV and VPMASKMOV. Elements that the mask leaves out are
//! neither accessed nor able to fault.
use iced_x86::{Code, Instruction};
use platform::Word;
use x86::{Features, Mode};

use super::check::{self, Isa, Sse, Vex};
use super::registers::{enter_mmx, mm, set_xmm, set_ymm_hi, xmm, ymm_hi};
use crate::{Access, Cpu, Handler, Op, Res, address};

const SSE: u64 = Features::SSE.bits();
const SSE2: u64 = Features::SSE2.bits();
const AVX2: u64 = Features::AVX2.bits();

/// Writes those of the low `count` bytes of `data` to DS:rDI whose mask byte has its top bit set.
fn scatter_bytes<C: Cpu>(cpu: &mut C, op: &Op<C>, data: u128, mask: u128, count: u64) -> Res {
    let rdi = cpu.state().gpr[7];
    let offset = match op.address_size {
        8 => rdi,
        4 => rdi as u32 as u64,
        _ => rdi as u16 as u64,
    };
    let linear = address::element(cpu, op.seg, offset, count, true)?;
    let at = |cpu: &C, i: u64| {
        let sum = linear.wrapping_add(i);
        if cpu.state().mode == Mode::Long64 { sum } else { sum as u32 as u64 }
    };
    let chosen = |i: u64| mask >> (8 * i + 7) & 1 != 0;
    for i in (0..count).filter(|&i| chosen(i)) {
        let to = at(cpu, i);
        cpu.probe_write(to, 1, Access::Program)?;
    }
    for i in (0..count).filter(|&i| chosen(i)) {
        let to = at(cpu, i);
        cpu.store(to, (data >> (8 * i)) as u8, Access::Program)?;
    }
    Ok(())
}

fn maskmovdqu<C: Cpu, I: Isa>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let (data, mask) = (xmm(cpu.state(), op.regs[1]), xmm(cpu.state(), op.regs[2]));
    scatter_bytes(cpu, op, data, mask, 16)
}

fn maskmovq<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    check::mmx::<C, SSE>(cpu)?;
    let (data, mask) = (mm(cpu.state(), op.regs[1]), mm(cpu.state(), op.regs[2]));
    scatter_bytes(cpu, op, data as u128, mask as u128, 8)?;
    enter_mmx(cpu.state_mut());
    Ok(())
}

/// Element `i` of the 32 bytes `from`.
#[inline(always)]
fn element<W: Word>(from: [u128; 2], i: u64) -> u64 {
    let bit = i * W::BYTES * 8;
    W::from_low((from[(bit >= 128) as usize] >> (bit & 127)) as u64).low()
}

#[inline(always)]
fn selected<W: Word>(mask: [u128; 2], i: u64) -> bool {
    element::<W>(mask, i) >> (8 * W::BYTES - 1) & 1 != 0
}

fn whole<C: Cpu>(cpu: &C, reg: u8) -> [u128; 2] {
    [xmm(cpu.state(), reg), ymm_hi(cpu.state(), reg)]
}

/// `WIDTH` bytes of elements of type `W`: mask in operand 1, memory in operand 2.
fn load<C: Cpu, I: Isa, W: Word, const WIDTH: u64>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let mask = whole(cpu, op.regs[1]);
    let mut result = [0u128; 2];
    for i in (0..WIDTH / W::BYTES).filter(|&i| selected::<W>(mask, i)) {
        let linear = locate(cpu, op, i * W::BYTES, W::BYTES, false)?;
        let value = cpu.load::<W>(linear, Access::Program)?.low();
        let bit = i * W::BYTES * 8;
        result[(bit >= 128) as usize] |= (value as u128) << (bit & 127);
    }
    let state = cpu.state_mut();
    set_xmm(state, op.regs[0], result[0]);
    set_ymm_hi(state, op.regs[0], result[1]);
    Ok(())
}

/// `WIDTH` bytes of elements of type `W`: memory in operand 0, mask in operand 1, data in operand 2.
fn store<C: Cpu, I: Isa, W: Word, const WIDTH: u64>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let (mask, data) = (whole(cpu, op.regs[1]), whole(cpu, op.regs[2]));
    for i in (0..WIDTH / W::BYTES).filter(|&i| selected::<W>(mask, i)) {
        let linear = locate(cpu, op, i * W::BYTES, W::BYTES, true)?;
        cpu.probe_write(linear, W::BYTES, Access::Program)?;
    }
    for i in (0..WIDTH / W::BYTES).filter(|&i| selected::<W>(mask, i)) {
        let linear = locate(cpu, op, i * W::BYTES, W::BYTES, true)?;
        cpu.store(linear, W::from_low(element::<W>(data, i)), Access::Program)?;
    }
    Ok(())
}

/// The linear address of `size` bytes, `at` bytes into the memory operand.
fn locate<C: Cpu>(cpu: &mut C, op: &Op<C>, at: u64, size: u64, write: bool) -> Res<u64> {
    let offset = op.offset(cpu.state()).wrapping_add(at);
    let offset = match op.address_size {
        8 => offset,
        4 => offset as u32 as u64,
        _ => offset as u16 as u64,
    };
    address::element(cpu, op.seg, offset, size, write)
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    use Code::*;
    Some(match insn.code() {
        Maskmovq_rDI_mm_mm => maskmovq,
        Maskmovdqu_rDI_xmm_xmm => maskmovdqu::<C, Sse<SSE2>>,
        VEX_Vmaskmovdqu_rDI_xmm_xmm => maskmovdqu::<C, Vex<0>>,
        VEX_Vmaskmovps_xmm_xmm_m128 => load::<C, Vex<0>, u32, 16>,
        VEX_Vmaskmovps_ymm_ymm_m256 => load::<C, Vex<0>, u32, 32>,
        VEX_Vmaskmovpd_xmm_xmm_m128 => load::<C, Vex<0>, u64, 16>,
        VEX_Vmaskmovpd_ymm_ymm_m256 => load::<C, Vex<0>, u64, 32>,
        VEX_Vpmaskmovd_xmm_xmm_m128 => load::<C, Vex<AVX2>, u32, 16>,
        VEX_Vpmaskmovd_ymm_ymm_m256 => load::<C, Vex<AVX2>, u32, 32>,
        VEX_Vpmaskmovq_xmm_xmm_m128 => load::<C, Vex<AVX2>, u64, 16>,
        VEX_Vpmaskmovq_ymm_ymm_m256 => load::<C, Vex<AVX2>, u64, 32>,
        VEX_Vmaskmovps_m128_xmm_xmm => store::<C, Vex<0>, u32, 16>,
        VEX_Vmaskmovps_m256_ymm_ymm => store::<C, Vex<0>, u32, 32>,
        VEX_Vmaskmovpd_m128_xmm_xmm => store::<C, Vex<0>, u64, 16>,
        VEX_Vmaskmovpd_m256_ymm_ymm => store::<C, Vex<0>, u64, 32>,
        VEX_Vpmaskmovd_m128_xmm_xmm => store::<C, Vex<AVX2>, u32, 16>,
        VEX_Vpmaskmovd_m256_ymm_ymm => store::<C, Vex<AVX2>, u32, 32>,
        VEX_Vpmaskmovq_m128_xmm_xmm => store::<C, Vex<AVX2>, u64, 16>,
        VEX_Vpmaskmovq_m256_ymm_ymm => store::<C, Vex<AVX2>, u64, 32>,
        _ => return None,
    })
}
