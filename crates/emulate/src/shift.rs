//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD and their flagless relatives of BMI2.
use iced_x86::{Instruction, Mnemonic};
use x86::Flags;

use crate::{
    Cpu, Handler, Op, Res,
    address::Any,
    op::gpr,
    operand::{Imm, Place, Reg, Source, Width, by_place, by_width, by_word},
};

/// What a shift makes of its operand.
#[derive(Clone, Copy)]
struct Shifted {
    value: u64,
    cf: bool,
    /// Defined for counts of one only; computed in the same way for all.
    of: bool,
}

trait Shift {
    /// Rotates change CF and OF only.
    const ROTATES: bool = false;
    /// `a` is zero-extended, `count` is 1 to 63.
    fn apply<W: Width>(flags: &Flags, a: u64, count: u32) -> Shifted;
}

enum Shl {}
impl Shift for Shl {
    #[inline(always)]
    fn apply<W: Width>(_flags: &Flags, a: u64, count: u32) -> Shifted {
        let value = a << count;
        // The last bit out: counts above the width (possible for 8 and 16 bits) shift out zeros.
        let cf = count <= W::BITS && a >> (W::BITS.wrapping_sub(count) & 63) & 1 != 0;
        Shifted { value, cf, of: W::sign(value) != cf }
    }
}

enum Shr {}
impl Shift for Shr {
    #[inline(always)]
    fn apply<W: Width>(_flags: &Flags, a: u64, count: u32) -> Shifted {
        Shifted { value: a >> count, cf: a >> (count - 1) & 1 != 0, of: W::sign(a >> (count - 1)) }
    }
}

enum Sar {}
impl Shift for Sar {
    #[inline(always)]
    fn apply<W: Width>(_flags: &Flags, a: u64, count: u32) -> Shifted {
        let a = W::sign_extend(a) as i64;
        Shifted { value: (a >> count) as u64, cf: a >> (count - 1) & 1 != 0, of: false }
    }
}

enum Rol {}
impl Shift for Rol {
    const ROTATES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(_flags: &Flags, a: u64, count: u32) -> Shifted {
        let value = rotate_left::<W>(a, count);
        let cf = value & 1 != 0;
        Shifted { value, cf, of: W::sign(value) != cf }
    }
}

enum Ror {}
impl Shift for Ror {
    const ROTATES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(_flags: &Flags, a: u64, count: u32) -> Shifted {
        let value = rotate_left::<W>(a, W::BITS.wrapping_sub(count));
        Shifted { value, cf: W::sign(value), of: W::sign(value) != W::sign(value << 1) }
    }
}

/// `a` (zero-extended) rotated within its width, whatever the count; the result is zero-extended.
#[inline(always)]
fn rotate_left<W: Width>(a: u64, count: u32) -> u64 {
    let count = count & (W::BITS - 1);
    W::zero_extend(a << count | a >> ((W::BITS - count) & 63) & if count == 0 { 0 } else { u64::MAX })
}

/// Rotates the width's bits, with CF above them, left by `count`.
#[inline(always)]
fn rotate_carry<W: Width>(a: u64, cf: bool, count: u32) -> (u64, bool) {
    let all = (cf as u128) << W::BITS | a as u128;
    let bits = W::BITS + 1;
    let count = count % bits;
    let all = all << count | all >> ((bits - count) % bits);
    (W::zero_extend(all as u64), all >> W::BITS & 1 != 0)
}

enum Rcl {}
impl Shift for Rcl {
    const ROTATES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(flags: &Flags, a: u64, count: u32) -> Shifted {
        let (value, cf) = rotate_carry::<W>(a, flags.cf(), count);
        Shifted { value, cf, of: W::sign(value) != cf }
    }
}

enum Rcr {}
impl Shift for Rcr {
    const ROTATES: bool = true;
    #[inline(always)]
    fn apply<W: Width>(flags: &Flags, a: u64, count: u32) -> Shifted {
        let bits = W::BITS + 1;
        let (value, cf) = rotate_carry::<W>(a, flags.cf(), bits - count % bits);
        Shifted { value, cf, of: W::sign(value) != W::sign(value << 1) }
    }
}

#[inline(always)]
fn masked<W: Width>(count: u64) -> u32 {
    count as u32 & if W::BITS == 64 { 63 } else { 31 }
}

fn shift<C: Cpu, O: Shift, W: Width, D: Place, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let count = masked::<W>(S::read::<C, u8>(cpu, op, 1)?);
    let shifted = D::modify::<C, W, _>(cpu, op, 0, |state, a| {
        if count == 0 {
            return (a, None);
        }
        let shifted = O::apply::<W>(&state.flags, a, count);
        (shifted.value, Some(shifted))
    })?;
    if let Some(Shifted { value, cf, of }) = shifted {
        let flags = &mut cpu.state_mut().flags;
        if O::ROTATES {
            flags.set_cf_of(cf, of);
        } else {
            flags.set_result(W::sign_extend(value), cf, of, false);
        }
    }
    Ok(())
}

/// SHLD (`LEFT`) and SHRD. A 16-bit operand shifted by more than 16 is undefined; here the bits that follow the
/// second operand are the first operand's again.
fn double<C: Cpu, W: Width, D: Place, S: Source, const LEFT: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let count = masked::<W>(S::read::<C, u8>(cpu, op, 2)?);
    let other = Reg::read::<C, W>(cpu, op, 1)?;
    let shifted = D::modify::<C, W, _>(cpu, op, 0, |_, a| {
        if count == 0 {
            return (a, None);
        }
        let (value, cf) = if LEFT {
            let all = (a as u128) << W::BITS | other as u128;
            let value = if count > W::BITS {
                (other << W::BITS | a) >> (2 * W::BITS - count)
            } else {
                (all >> (W::BITS - count)) as u64
            };
            let cf = if count > W::BITS { other >> (2 * W::BITS - count) } else { a >> (W::BITS - count) };
            (value, cf)
        } else {
            let all = (other as u128) << W::BITS | a as u128;
            let all = if count > W::BITS { all | (a as u128) << (2 * W::BITS) } else { all };
            ((all >> count) as u64, (all >> (count - 1)) as u64)
        };
        let of = W::sign(value) != W::sign(a);
        (value, Some(Shifted { value, cf: cf & 1 != 0, of }))
    })?;
    if let Some(Shifted { value, cf, of }) = shifted {
        cpu.state_mut().flags.set_result(W::sign_extend(value), cf, of, false);
    }
    Ok(())
}

/// SHLX (`KIND` 0), SHRX (1), SARX (2): no flags; the count is the third operand.
fn flagless<C: Cpu, W: Width, S: Source, const KIND: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let a = S::read::<C, W>(cpu, op, 1)?;
    let state = cpu.state_mut();
    let count = W::get(state, op.regs[2]) as u32 & (W::BITS - 1);
    let value = match KIND {
        0 => a << count,
        1 => a >> count,
        _ => (W::sign_extend(a) as i64 >> count) as u64,
    };
    W::set(state, op.regs[0], value);
    Ok(())
}

fn rorx<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let a = S::read::<C, W>(cpu, op, 1)?;
    W::set(cpu.state_mut(), op.regs[0], rotate_left::<W>(a, W::BITS.wrapping_sub(op.imm as u32)));
    Ok(())
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => pick::<C, Shl>(op, bytes),
        Mnemonic::Shr => pick::<C, Shr>(op, bytes),
        Mnemonic::Sar => pick::<C, Sar>(op, bytes),
        Mnemonic::Rol => pick::<C, Rol>(op, bytes),
        Mnemonic::Ror => pick::<C, Ror>(op, bytes),
        Mnemonic::Rcl => pick::<C, Rcl>(op, bytes),
        Mnemonic::Rcr => pick::<C, Rcr>(op, bytes),
        Mnemonic::Shld => by_word!(bytes, W => Some(pick_double::<C, W, true>(op))),
        Mnemonic::Shrd => by_word!(bytes, W => Some(pick_double::<C, W, false>(op))),
        Mnemonic::Shlx => by_word!(bytes, W => Some(by_place!(op, 1, S => flagless::<C, W, S, 0>))),
        Mnemonic::Shrx => by_word!(bytes, W => Some(by_place!(op, 1, S => flagless::<C, W, S, 1>))),
        Mnemonic::Sarx => by_word!(bytes, W => Some(by_place!(op, 1, S => flagless::<C, W, S, 2>))),
        Mnemonic::Rorx => by_word!(bytes, W => Some(by_place!(op, 1, S => rorx::<C, W, S>))),
        _ => None,
    }
}

fn pick<C: Cpu, O: Shift>(op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    let by_cl = op.regs[1] == gpr::RCX as u8;
    by_width!(bytes, W => Some(match (op.mem, by_cl) {
        (0, true) => shift::<C, O, W, Any, Reg>,
        (0, false) => shift::<C, O, W, Any, Imm>,
        (_, true) => shift::<C, O, W, Reg, Reg>,
        (_, false) => shift::<C, O, W, Reg, Imm>,
    }))
}

fn pick_double<C: Cpu, W: Width, const LEFT: bool>(op: &Op<C>) -> Handler<C> {
    match (op.mem, op.has_register(2)) {
        (0, true) => double::<C, W, Any, Reg, LEFT>,
        (0, false) => double::<C, W, Any, Imm, LEFT>,
        (_, true) => double::<C, W, Reg, Reg, LEFT>,
        (_, false) => double::<C, W, Reg, Imm, LEFT>,
    }
}
