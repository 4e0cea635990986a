//! Bitwise logic on whole SSE and AVX registers: hot (clearing a register), and simpler here than elsewhere.
use iced_x86::{Code, Instruction};
use x86::Features;

use super::check::{Isa, Sse, Vex};
use super::moves::{SSE, SSE2, has_memory, load256, put, wide};
use super::registers::{set_xmm, set_ymm_hi, xmm, ymm_hi};
use crate::{Access, Cpu, Handler, Op, Res};

const AVX2: u64 = Features::AVX2.bits();
const AND: u8 = 0;
const ANDN: u8 = 1;
const OR: u8 = 2;
const XOR: u8 = 3;

#[inline(always)]
fn apply<const OP: u8>(a: u128, b: u128) -> u128 {
    match OP {
        AND => a & b,
        ANDN => !a & b,
        OR => a | b,
        _ => a ^ b,
    }
}

fn logic<C: Cpu, I: Isa, const OP: u8, const MEM: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let b = if MEM {
        let linear = wide(cpu, op, 16, false, !I::VEX)?;
        cpu.load(linear, Access::Program)?
    } else {
        xmm(cpu.state(), op.regs[1 + I::VEX as usize])
    };
    let a = xmm(cpu.state(), op.regs[I::VEX as usize]);
    put::<C, I>(cpu, op.regs[0], apply::<OP>(a, b));
    Ok(())
}

fn logic_ymm<C: Cpu, I: Isa, const OP: u8, const MEM: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    I::check(cpu)?;
    let b = if MEM {
        let linear = wide(cpu, op, 32, false, false)?;
        load256(cpu, linear)?
    } else {
        [xmm(cpu.state(), op.regs[2]), ymm_hi(cpu.state(), op.regs[2])]
    };
    let state = cpu.state_mut();
    let a = [xmm(state, op.regs[1]), ymm_hi(state, op.regs[1])];
    set_xmm(state, op.regs[0], apply::<OP>(a[0], b[0]));
    set_ymm_hi(state, op.regs[0], apply::<OP>(a[1], b[1]));
    Ok(())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    let mem = has_memory(insn);
    macro_rules! pick {
        ($f:ident, $isa:ty, $op:expr) => {
            if mem { $f::<C, $isa, { $op }, true> } else { $f::<C, $isa, { $op }, false> }
        };
    }
    use Code::*;
    Some(match insn.code() {
        Andps_xmm_xmmm128 => pick!(logic, Sse<SSE>, AND),
        Andnps_xmm_xmmm128 => pick!(logic, Sse<SSE>, ANDN),
        Orps_xmm_xmmm128 => pick!(logic, Sse<SSE>, OR),
        Xorps_xmm_xmmm128 => pick!(logic, Sse<SSE>, XOR),
        Andpd_xmm_xmmm128 | Pand_xmm_xmmm128 => pick!(logic, Sse<SSE2>, AND),
        Andnpd_xmm_xmmm128 | Pandn_xmm_xmmm128 => pick!(logic, Sse<SSE2>, ANDN),
        Orpd_xmm_xmmm128 | Por_xmm_xmmm128 => pick!(logic, Sse<SSE2>, OR),
        Xorpd_xmm_xmmm128 | Pxor_xmm_xmmm128 => pick!(logic, Sse<SSE2>, XOR),
        VEX_Vandps_xmm_xmm_xmmm128 | VEX_Vandpd_xmm_xmm_xmmm128 | VEX_Vpand_xmm_xmm_xmmm128 => {
            pick!(logic, Vex<0>, AND)
        }
        VEX_Vandnps_xmm_xmm_xmmm128 | VEX_Vandnpd_xmm_xmm_xmmm128 | VEX_Vpandn_xmm_xmm_xmmm128 => {
            pick!(logic, Vex<0>, ANDN)
        }
        VEX_Vorps_xmm_xmm_xmmm128 | VEX_Vorpd_xmm_xmm_xmmm128 | VEX_Vpor_xmm_xmm_xmmm128 => pick!(logic, Vex<0>, OR),
        VEX_Vxorps_xmm_xmm_xmmm128 | VEX_Vxorpd_xmm_xmm_xmmm128 | VEX_Vpxor_xmm_xmm_xmmm128 => {
            pick!(logic, Vex<0>, XOR)
        }
        VEX_Vandps_ymm_ymm_ymmm256 | VEX_Vandpd_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<0>, AND),
        VEX_Vandnps_ymm_ymm_ymmm256 | VEX_Vandnpd_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<0>, ANDN),
        VEX_Vorps_ymm_ymm_ymmm256 | VEX_Vorpd_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<0>, OR),
        VEX_Vxorps_ymm_ymm_ymmm256 | VEX_Vxorpd_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<0>, XOR),
        VEX_Vpand_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<AVX2>, AND),
        VEX_Vpandn_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<AVX2>, ANDN),
        VEX_Vpor_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<AVX2>, OR),
        VEX_Vpxor_ymm_ymm_ymmm256 => pick!(logic_ymm, Vex<AVX2>, XOR),
        _ => return None,
    })
}
