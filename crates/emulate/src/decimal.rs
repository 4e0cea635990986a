//! Decimal arithmetic of the 8086: DAA, DAS, AAA, AAS, AAM, AAD (SDM vol. 2). Not in 64-bit mode.
use iced_x86::{Instruction, Mnemonic};
use x86::{CpuState, Vector};

use crate::{
    Cpu, Handler, Op, Res, Stop,
    op::{HIGH_BYTE, gpr},
    operand::Width,
};

const AL: u8 = gpr::RAX as u8;
const AH: u8 = HIGH_BYTE;

fn set_al(state: &mut CpuState, al: u64, cf: bool, af: bool) {
    u8::set(state, AL, al);
    state.flags.set_result(u8::sign_extend(al), cf, false, af);
}

/// DAA and, with `SUBTRACT`, DAS.
fn packed<C: Cpu, const SUBTRACT: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let old = u8::get(state, AL);
    let (old_cf, af) = (state.flags.cf(), old & 15 > 9 || state.flags.af());
    let high = old > 0x99 || old_cf;
    let correction = if af { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let al = if SUBTRACT { old.wrapping_sub(correction) } else { old + correction };
    // Subtracting 6 may borrow out of AL although 0x60 is not subtracted.
    let cf = high || SUBTRACT && af && old < 6;
    set_al(state, al, cf, af);
    Ok(())
}

/// AAA and, with `SUBTRACT`, AAS.
fn unpacked<C: Cpu, const SUBTRACT: bool>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let ax = u16::get(state, AL);
    let adjust = ax & 15 > 9 || state.flags.af();
    let ax = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    u16::set(state, AL, ax & 0xff0f);
    set_al(state, ax & 15, adjust, adjust);
    Ok(())
}

fn aam<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    let base = op.imm & 0xff;
    if base == 0 {
        return Err(Stop::fault(Vector::DE));
    }
    let state = cpu.state_mut();
    let al = u8::get(state, AL);
    u8::set(state, AH, al / base);
    set_al(state, al % base, false, false);
    Ok(())
}

fn aad<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let al = u8::get(state, AL) + u8::get(state, AH) * (op.imm & 0xff);
    u8::set(state, AH, 0);
    set_al(state, al, false, false);
    Ok(())
}

/// Decides how the instruction is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    match insn.mnemonic() {
        Mnemonic::Daa => Some(packed::<C, false>),
        Mnemonic::Das => Some(packed::<C, true>),
        Mnemonic::Aaa => Some(unpacked::<C, false>),
        Mnemonic::Aas => Some(unpacked::<C, true>),
        Mnemonic::Aam => Some(aam),
        Mnemonic::Aad => Some(aad),
        _ => None,
    }
}
