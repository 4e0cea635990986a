//! AVX instructions on all registers at once: VZEROUPPER and VZEROALL.
use iced_x86::{Code, Instruction};
use x86::Mode;

use super::check::{Isa, Vex};
use crate::{Cpu, Handler, Op, Res};

/// How many vector registers the current mode has.
fn count<C: Cpu>(cpu: &C) -> usize {
    if cpu.state().mode == Mode::Long64 { 16 } else { 8 }
}

fn zero_upper<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    <Vex<0> as Isa>::check(cpu)?;
    let n = count(cpu);
    cpu.state_mut().fpu.ymm_hi[..n].fill([0; 16]);
    Ok(())
}

fn zero_all<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    <Vex<0> as Isa>::check(cpu)?;
    let n = count(cpu);
    let fpu = &mut cpu.state_mut().fpu;
    fpu.ymm_hi[..n].fill([0; 16]);
    fpu.legacy.xmm[..n].fill([0; 16]);
    Ok(())
}

pub(super) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    match insn.code() {
        Code::VEX_Vzeroupper => Some(zero_upper),
        Code::VEX_Vzeroall => Some(zero_all),
        _ => None,
    }
}
