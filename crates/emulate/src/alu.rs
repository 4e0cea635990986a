//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, and INC, DEC, NEG, NOT.
use iced_x86::{Instruction, Mnemonic};
use x86::{CpuState, Flags};

use crate::{
    Cpu, Handler, Op, Res,
    op::prefix,
    operand::{Imm, Locked, Place, Reg, Source, Width, by_form, by_width},
};

/// What an operation makes of its operands.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The result; bits above the width are meaningless.
    pub value: u64,
    /// The carries or borrows out of each bit position, for [`Flags::set_arithmetic`] when shifted.
    pub carries: u64,
}

/// An operation of two operands that sets the status flags.
pub trait Binary {
    /// Whether the result is written.
    const STORES: bool = true;
    /// CF, OF and AF are cleared.
    const LOGICAL: bool = false;
    /// Computes.
    fn apply<W: Width>(flags: &Flags, a: u64, b: u64) -> Outcome;
}

/// An operation of one operand.
pub trait Unary {
    /// Whether flags change.
    const FLAGS: bool = true;
    /// Whether CF keeps its value.
    const KEEPS_CF: bool = false;
    /// Computes.
    fn apply<W: Width>(a: u64) -> Outcome;
}

/// a + b + carry.
#[inline(always)]
pub fn sum(a: u64, b: u64, carry: bool) -> Outcome {
    let value = a.wrapping_add(b).wrapping_add(carry as u64);
    Outcome { value, carries: a & b | (a | b) & !value }
}

#[inline(always)]
fn difference(a: u64, b: u64, borrow: bool) -> Outcome {
    let value = a.wrapping_sub(b).wrapping_sub(borrow as u64);
    Outcome { value, carries: !a & b | (!a | b) & value }
}

macro_rules! binary {
    ($name:ident, $logical:expr, $stores:expr, |$flags:ident, $a:ident, $b:ident| $e:expr) => {
        enum $name {}
        impl Binary for $name {
            const STORES: bool = $stores;
            const LOGICAL: bool = $logical;
            #[inline(always)]
            fn apply<W: Width>($flags: &Flags, $a: u64, $b: u64) -> Outcome {
                $e
            }
        }
    };
}
binary!(Add, false, true, |_f, a, b| sum(a, b, false));
binary!(Adc, false, true, |f, a, b| sum(a, b, f.cf()));
binary!(Sub, false, true, |_f, a, b| difference(a, b, false));
binary!(Sbb, false, true, |f, a, b| difference(a, b, f.cf()));
binary!(Cmp, false, false, |_f, a, b| difference(a, b, false));
binary!(And, true, true, |_f, a, b| Outcome { value: a & b, carries: 0 });
binary!(Or, true, true, |_f, a, b| Outcome { value: a | b, carries: 0 });
binary!(Xor, true, true, |_f, a, b| Outcome { value: a ^ b, carries: 0 });
binary!(Test, true, false, |_f, a, b| Outcome { value: a & b, carries: 0 });

macro_rules! unary {
    ($name:ident, $flags:expr, $keeps_cf:expr, |$a:ident| $e:expr) => {
        enum $name {}
        impl Unary for $name {
            const FLAGS: bool = $flags;
            const KEEPS_CF: bool = $keeps_cf;
            #[inline(always)]
            fn apply<W: Width>($a: u64) -> Outcome {
                $e
            }
        }
    };
}
unary!(Inc, true, true, |a| sum(a, 1, false));
unary!(Dec, true, true, |a| difference(a, 1, false));
unary!(Neg, true, false, |a| difference(0, a, false));
unary!(Not, false, true, |a| Outcome { value: !a, carries: 0 });

/// Leaves the flags of an addition, subtraction or negation of width `W`.
#[inline(always)]
pub fn set_flags<W: Width>(state: &mut CpuState, o: Outcome) {
    let shift = 64 - W::BITS;
    state.flags.set_arithmetic(W::sign_extend(o.value), o.carries << shift, 3 + shift);
}

/// Leaves the flags of `a - b`.
#[inline(always)]
pub fn set_compare<W: Width>(state: &mut CpuState, a: u64, b: u64) {
    set_flags::<W>(state, difference(a, b, false));
}

fn binary<C: Cpu, O: Binary, W: Width, D: Place, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let b = S::read::<C, W>(cpu, op, 1)?;
    let outcome = if O::STORES {
        D::modify::<C, W, _>(cpu, op, 0, |state, a| {
            let outcome = O::apply::<W>(&state.flags, a, b);
            (outcome.value, outcome)
        })?
    } else {
        let a = D::read::<C, W>(cpu, op, 0)?;
        O::apply::<W>(&cpu.state().flags, a, b)
    };
    let state = cpu.state_mut();
    if O::LOGICAL {
        state.flags.set_logical(W::sign_extend(outcome.value));
    } else {
        set_flags::<W>(state, outcome);
    }
    Ok(())
}

fn unary<C: Cpu, O: Unary, W: Width, D: Place>(cpu: &mut C, op: &Op<C>) -> Res {
    let outcome = D::modify::<C, W, _>(cpu, op, 0, |_, a| {
        let outcome = O::apply::<W>(a);
        (outcome.value, outcome)
    })?;
    if O::FLAGS {
        let state = cpu.state_mut();
        let cf = state.flags.cf();
        set_flags::<W>(state, outcome);
        if O::KEEPS_CF {
            state.flags.set_cf(cf);
        }
    }
    Ok(())
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    match insn.mnemonic() {
        Mnemonic::Add => pick_binary::<C, Add>(op, bytes),
        Mnemonic::Or => pick_binary::<C, Or>(op, bytes),
        Mnemonic::Adc => pick_binary::<C, Adc>(op, bytes),
        Mnemonic::Sbb => pick_binary::<C, Sbb>(op, bytes),
        Mnemonic::And => pick_binary::<C, And>(op, bytes),
        Mnemonic::Sub => pick_binary::<C, Sub>(op, bytes),
        Mnemonic::Xor => pick_binary::<C, Xor>(op, bytes),
        Mnemonic::Cmp => pick_binary::<C, Cmp>(op, bytes),
        Mnemonic::Test => pick_binary::<C, Test>(op, bytes),
        Mnemonic::Inc => pick_unary::<C, Inc>(op, bytes),
        Mnemonic::Dec => pick_unary::<C, Dec>(op, bytes),
        Mnemonic::Neg => pick_unary::<C, Neg>(op, bytes),
        Mnemonic::Not => pick_unary::<C, Not>(op, bytes),
        _ => None,
    }
}

fn pick_binary<C: Cpu, O: Binary>(op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    by_width!(bytes, W => Some(shape::<C, O, W>(op)))
}

fn shape<C: Cpu, O: Binary, W: Width>(op: &Op<C>) -> Handler<C> {
    let register = op.has_register(1);
    match op.mem {
        0 if op.prefix & prefix::LOCK != 0 && register => binary::<C, O, W, Locked, Reg>,
        0 if op.prefix & prefix::LOCK != 0 => binary::<C, O, W, Locked, Imm>,
        0 if register => by_form!(op, M => binary::<C, O, W, M, Reg>),
        0 => by_form!(op, M => binary::<C, O, W, M, Imm>),
        1 => by_form!(op, M => binary::<C, O, W, Reg, M>),
        _ if register => binary::<C, O, W, Reg, Reg>,
        _ => binary::<C, O, W, Reg, Imm>,
    }
}

fn pick_unary<C: Cpu, O: Unary>(op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    by_width!(bytes, W => Some(match op.mem {
        0 if op.prefix & prefix::LOCK != 0 => unary::<C, O, W, Locked>,
        0 => by_form!(op, M => unary::<C, O, W, M>),
        _ => unary::<C, O, W, Reg>,
    }))
}
