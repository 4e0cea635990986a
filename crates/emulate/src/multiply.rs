//! MUL, IMUL, MULX, DIV, IDIV, ADCX and ADOX.
use iced_x86::{Instruction, Mnemonic};
use x86::{CpuState, Vector};

use crate::{
    Cpu, Handler, Op, Res, Stop,
    op::{HIGH_BYTE, gpr},
    operand::{Imm, Source, Width, by_place, by_width, by_word},
};

const AL: u8 = gpr::RAX as u8;
const AH: u8 = HIGH_BYTE;
const DX: u8 = gpr::RDX as u8;

/// The register of the upper half of a double-width value: AH for bytes, else RDX.
const fn upper<W: Width>() -> u8 {
    if W::BITS == 8 { AH } else { DX }
}

/// The full product of zero-extended (or, `SIGNED`, sign-extended) factors, as upper and lower half.
#[inline(always)]
fn product<W: Width, const SIGNED: bool>(a: u64, b: u64) -> (u64, u64) {
    let all = if SIGNED {
        (W::sign_extend(a) as i64 as i128 * W::sign_extend(b) as i64 as i128) as u128
    } else {
        a as u128 * b as u128
    };
    (W::zero_extend((all >> W::BITS) as u64), W::zero_extend(all as u64))
}

/// CF and OF tell that the upper half says something; the rest, undefined, is computed from the lower half.
#[inline(always)]
fn set_flags<W: Width>(state: &mut CpuState, low: u64, overflow: bool) {
    state.flags.set_result(W::sign_extend(low), overflow, overflow, false);
}

#[inline(always)]
fn signed_overflow<W: Width>(high: u64, low: u64) -> bool {
    high != W::zero_extend((W::sign_extend(low) as i64 >> 63) as u64)
}

/// MUL and the IMUL of one operand.
fn mul<C: Cpu, W: Width, S: Source, const SIGNED: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let b = S::read::<C, W>(cpu, op, 0)?;
    let state = cpu.state_mut();
    let (high, low) = product::<W, SIGNED>(W::get(state, AL), b);
    W::set(state, AL, low);
    W::set(state, upper::<W>(), high);
    set_flags::<W>(state, low, if SIGNED { signed_overflow::<W>(high, low) } else { high != 0 });
    Ok(())
}

fn imul2<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let b = S::read::<C, W>(cpu, op, 1)?;
    let a = W::get(cpu.state(), op.regs[0]);
    imul_into::<C, W>(cpu, op, a, b)
}

fn imul3<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let a = S::read::<C, W>(cpu, op, 1)?;
    let b = Imm::read::<C, W>(cpu, op, 2)?;
    imul_into::<C, W>(cpu, op, a, b)
}

#[inline(always)]
fn imul_into<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, a: u64, b: u64) -> Res {
    let (high, low) = product::<W, true>(a, b);
    let state = cpu.state_mut();
    W::set(state, op.regs[0], low);
    set_flags::<W>(state, low, signed_overflow::<W>(high, low));
    Ok(())
}

/// MULX: the upper half wins if both destinations are one register.
fn mulx<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let b = S::read::<C, W>(cpu, op, 2)?;
    let state = cpu.state_mut();
    let (high, low) = product::<W, false>(W::get(state, DX), b);
    W::set(state, op.regs[1], low);
    W::set(state, op.regs[0], high);
    Ok(())
}

const DIVIDE_ERROR: Stop = Stop::fault(Vector::DE);

fn div<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let divisor = S::read::<C, W>(cpu, op, 0)?;
    if divisor == 0 {
        return Err(DIVIDE_ERROR);
    }
    let state = cpu.state_mut();
    let (high, low) = (W::get(state, upper::<W>()), W::get(state, AL));
    if high >= divisor {
        return Err(DIVIDE_ERROR);
    }
    let (quotient, remainder) = if W::BITS == 64 && high != 0 {
        let all = (high as u128) << 64 | low as u128;
        let quotient = (all / divisor as u128) as u64;
        (quotient, low.wrapping_sub(quotient.wrapping_mul(divisor)))
    } else {
        let all = high << (W::BITS & 63) | low;
        (all / divisor, all % divisor)
    };
    finish::<W>(state, quotient, remainder);
    Ok(())
}

fn idiv<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let divisor = W::sign_extend(S::read::<C, W>(cpu, op, 0)?) as i64;
    if divisor == 0 {
        return Err(DIVIDE_ERROR);
    }
    let state = cpu.state_mut();
    let (high, low) = (W::get(state, upper::<W>()), W::get(state, AL));
    let narrow = if W::BITS == 64 {
        (low as i64 >> 63 == high as i64).then_some(low as i64)
    } else {
        Some((W::sign_extend(high) << (W::BITS & 63) | low) as i64)
    };
    let (quotient, remainder) = match narrow.and_then(|n| Some((n.checked_div(divisor)?, n.checked_rem(divisor)?))) {
        Some((q, r)) => (q as i128, r),
        None => {
            let all = ((high as u128) << 64 | low as u128) as i128;
            let wide = divisor as i128;
            let quotient = all.checked_div(wide).ok_or(DIVIDE_ERROR)?;
            (quotient, all.wrapping_rem(wide) as i64)
        }
    };
    if W::sign_extend(quotient as u64) as i64 as i128 != quotient {
        return Err(DIVIDE_ERROR);
    }
    finish::<W>(state, quotient as u64, remainder as u64);
    Ok(())
}

#[inline(always)]
fn finish<W: Width>(state: &mut CpuState, quotient: u64, remainder: u64) {
    W::set(state, AL, quotient);
    W::set(state, upper::<W>(), remainder);
}

/// ADCX (`OVERFLOW` false) and ADOX: an addition whose carry comes from and goes to one flag.
fn add_with_flag<C: Cpu, W: Width, S: Source, const OVERFLOW: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let b = S::read::<C, W>(cpu, op, 1)?;
    let state = cpu.state_mut();
    let (cf, of) = (state.flags.cf(), state.flags.of());
    let carry = if OVERFLOW { of } else { cf };
    let sum = W::get(state, op.regs[0]) as u128 + b as u128 + carry as u128;
    let carry = sum >> W::BITS != 0;
    W::set(state, op.regs[0], sum as u64);
    if OVERFLOW {
        state.flags.set_cf_of(cf, carry);
    } else {
        state.flags.set_cf(carry);
    }
    Ok(())
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    match insn.mnemonic() {
        Mnemonic::Mul => by_width!(bytes, W => Some(by_place!(op, 0, S => mul::<C, W, S, false>))),
        Mnemonic::Imul => match insn.op_count() {
            1 => by_width!(bytes, W => Some(by_place!(op, 0, S => mul::<C, W, S, true>))),
            2 => by_word!(bytes, W => Some(by_place!(op, 1, S => imul2::<C, W, S>))),
            _ => by_word!(bytes, W => Some(by_place!(op, 1, S => imul3::<C, W, S>))),
        },
        Mnemonic::Mulx => by_word!(bytes, W => Some(by_place!(op, 2, S => mulx::<C, W, S>))),
        Mnemonic::Div => by_width!(bytes, W => Some(by_place!(op, 0, S => div::<C, W, S>))),
        Mnemonic::Idiv => by_width!(bytes, W => Some(by_place!(op, 0, S => idiv::<C, W, S>))),
        Mnemonic::Adcx => by_word!(bytes, W => Some(by_place!(op, 1, S => add_with_flag::<C, W, S, false>))),
        Mnemonic::Adox => by_word!(bytes, W => Some(by_place!(op, 1, S => add_with_flag::<C, W, S, true>))),
        _ => None,
    }
}
