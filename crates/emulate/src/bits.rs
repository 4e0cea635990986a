//! Bits of a word: BT and its kin, scans and counts, BMI1 and BMI2, CRC32.
use iced_x86::{Instruction, Mnemonic};

use crate::{
    Access, Cpu, Handler, Op, Res, address,
    address::Any,
    op::prefix,
    operand::{Imm, Locked, Place, Reg, Source, Width, by_place, by_width, by_word, locked},
};

const TEST: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

#[inline(always)]
fn changed<const KIND: u8>(value: u64, bit: u32) -> u64 {
    match KIND {
        SET => value | 1 << bit,
        RESET => value & !(1 << bit),
        COMPLEMENT => value ^ 1 << bit,
        _ => value,
    }
}

/// BT, BTS, BTR, BTC of a register, or of memory with an immediate bit number.
fn bit<C: Cpu, W: Width, D: Place, S: Source, const KIND: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let bit = S::read::<C, W>(cpu, op, 1)? as u32 & (W::BITS - 1);
    let value = if KIND == TEST {
        D::read::<C, W>(cpu, op, 0)?
    } else {
        D::modify::<C, W, _>(cpu, op, 0, |_, a| (changed::<KIND>(a, bit), a))?
    };
    cpu.state_mut().flags.set_cf(value >> bit & 1 != 0);
    Ok(())
}

/// The same of a bit string in memory: the bit number, signed, may lead far away from the operand's address.
fn bit_string<C: Cpu, W: Width, const KIND: u8, const LOCK: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state();
    let number = W::sign_extend(W::get(state, op.regs[1])) as i64;
    let bit = number as u32 & (W::BITS - 1);
    let words = number >> W::BITS.trailing_zeros();
    let offset = op.offset(state).wrapping_add((words * W::BYTES as i64) as u64);
    let at = address::segment_offset(cpu, op.seg, op.wrap(offset), W::BYTES, KIND != TEST)?;
    let value = if KIND == TEST {
        cpu.load::<W>(at, Access::Program)?.low()
    } else if LOCK {
        locked::<C, W, _>(cpu, at, |_, old| (W::from_low(changed::<KIND>(old.low(), bit)), old.low()))?
    } else {
        let old = cpu.load_for_write::<W>(at, Access::Program)?.low();
        cpu.store(at, W::from_low(changed::<KIND>(old, bit)), Access::Program)?;
        old
    };
    cpu.state_mut().flags.set_cf(value >> bit & 1 != 0);
    Ok(())
}

/// BSF and, with `REVERSE`, BSR. A source of zero leaves the destination alone, all 64 bits of it.
fn scan<C: Cpu, W: Width, S: Source, const REVERSE: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let a = S::read::<C, W>(cpu, op, 1)?;
    let state = cpu.state_mut();
    if a != 0 {
        let bit = if REVERSE { 63 - a.leading_zeros() } else { a.trailing_zeros() };
        W::set(state, op.regs[0], bit as u64);
    }
    state.flags.merge_status(x86::flags::ZF, if a == 0 { x86::flags::ZF } else { 0 });
    Ok(())
}

/// LZCNT (`KIND` 0), TZCNT (1), POPCNT (2).
fn count<C: Cpu, W: Width, S: Source, const KIND: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let a = S::read::<C, W>(cpu, op, 1)?;
    let state = cpu.state_mut();
    let count = match KIND {
        0 => a.leading_zeros() - (64 - W::BITS),
        1 => a.trailing_zeros().min(W::BITS),
        _ => a.count_ones(),
    };
    W::set(state, op.regs[0], count as u64);
    if KIND == 2 {
        state.flags.set_status(if a == 0 { x86::flags::ZF } else { 0 });
    } else {
        state.flags.set_result(count as u64, a == 0, false, false);
    }
    Ok(())
}

/// A BMI operation of one source `a` and the register operand `b` that may go with it; returns the result and CF.
trait Bmi {
    /// Which operands are the r/m and the register source.
    const PLACE: usize;
    const REGISTER: Option<usize>;
    fn apply<W: Width>(a: u64, b: u64) -> (u64, bool);
}

macro_rules! bmi {
    ($name:ident, $place:expr, $register:expr, $W:ident, |$a:ident, $b:ident| $e:expr) => {
        enum $name {}
        impl Bmi for $name {
            const PLACE: usize = $place;
            const REGISTER: Option<usize> = $register;
            #[inline(always)]
            fn apply<$W: Width>($a: u64, $b: u64) -> (u64, bool) {
                $e
            }
        }
    };
}
bmi!(Andn, 2, Some(1), W, |a, b| (a & !b, false));
bmi!(Blsi, 1, None, W, |a, _b| (a & a.wrapping_neg(), a != 0));
bmi!(Blsr, 1, None, W, |a, _b| (a & a.wrapping_sub(1), a == 0));
bmi!(Blsmsk, 1, None, W, |a, _b| (a ^ a.wrapping_sub(1), a == 0));
bmi!(Bextr, 1, Some(2), W, |a, b| {
    let (start, len) = (b as u8 as u32, (b >> 8) as u8 as u32);
    (low_bits(a.checked_shr(start).unwrap_or(0), len), false)
});
bmi!(Bzhi, 1, Some(2), W, |a, b| (low_bits(a, b as u8 as u32), b as u8 as u32 >= W::BITS));

fn low_bits(a: u64, len: u32) -> u64 {
    if len >= 64 { a } else { a & ((1 << len) - 1) }
}

fn bmi<C: Cpu, O: Bmi, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let a = S::read::<C, W>(cpu, op, O::PLACE)?;
    let state = cpu.state_mut();
    let b = O::REGISTER.map_or(0, |slot| W::get(state, op.regs[slot]));
    let (value, cf) = O::apply::<W>(a, b);
    W::set(state, op.regs[0], value);
    state.flags.set_result(W::sign_extend(value), cf, false, false);
    Ok(())
}

/// PDEP and, with `EXTRACT`, PEXT.
fn gather<C: Cpu, W: Width, S: Source, const EXTRACT: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let mut mask = S::read::<C, W>(cpu, op, 2)?;
    let state = cpu.state_mut();
    let source = W::get(state, op.regs[1]);
    let (mut value, mut bit) = (0, 1u64);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        let (from, to) = if EXTRACT { (lowest, bit) } else { (bit, lowest) };
        if source & from != 0 {
            value |= to;
        }
        mask ^= lowest;
        bit <<= 1;
    }
    W::set(state, op.regs[0], value);
    Ok(())
}

/// CRC-32C of one byte, reflected.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn crc32<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = S::read::<C, W>(cpu, op, 1)?;
    let state = cpu.state_mut();
    let mut crc = u32::get(state, op.regs[0]) as u32;
    for byte in &value.to_le_bytes()[..W::BYTES as usize] {
        crc = crc >> 8 ^ CRC[((crc as u8) ^ byte) as usize];
    }
    u32::set(state, op.regs[0], crc as u64);
    Ok(())
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    match insn.mnemonic() {
        Mnemonic::Bt => by_word!(bytes, W => Some(pick_bit::<C, W, TEST>(op))),
        Mnemonic::Bts => by_word!(bytes, W => Some(pick_bit::<C, W, SET>(op))),
        Mnemonic::Btr => by_word!(bytes, W => Some(pick_bit::<C, W, RESET>(op))),
        Mnemonic::Btc => by_word!(bytes, W => Some(pick_bit::<C, W, COMPLEMENT>(op))),
        Mnemonic::Bsf => by_word!(bytes, W => Some(by_place!(op, 1, S => scan::<C, W, S, false>))),
        Mnemonic::Bsr => by_word!(bytes, W => Some(by_place!(op, 1, S => scan::<C, W, S, true>))),
        Mnemonic::Lzcnt => by_word!(bytes, W => Some(by_place!(op, 1, S => count::<C, W, S, 0>))),
        Mnemonic::Tzcnt => by_word!(bytes, W => Some(by_place!(op, 1, S => count::<C, W, S, 1>))),
        Mnemonic::Popcnt => by_word!(bytes, W => Some(by_place!(op, 1, S => count::<C, W, S, 2>))),
        Mnemonic::Andn => pick_bmi::<C, Andn>(op, bytes),
        Mnemonic::Blsi => pick_bmi::<C, Blsi>(op, bytes),
        Mnemonic::Blsr => pick_bmi::<C, Blsr>(op, bytes),
        Mnemonic::Blsmsk => pick_bmi::<C, Blsmsk>(op, bytes),
        Mnemonic::Bextr if !op.has_register(2) => None,
        Mnemonic::Bextr => pick_bmi::<C, Bextr>(op, bytes),
        Mnemonic::Bzhi => pick_bmi::<C, Bzhi>(op, bytes),
        Mnemonic::Pdep => by_word!(bytes, W => Some(by_place!(op, 2, S => gather::<C, W, S, false>))),
        Mnemonic::Pext => by_word!(bytes, W => Some(by_place!(op, 2, S => gather::<C, W, S, true>))),
        Mnemonic::Crc32 => {
            let source = if op.mem == 1 { op.mem_size } else { insn.op1_register().size() as u8 };
            by_width!(source, W => Some(by_place!(op, 1, S => crc32::<C, W, S>)))
        }
        _ => None,
    }
}

fn pick_bit<C: Cpu, W: Width, const KIND: u8>(op: &Op<C>) -> Handler<C> {
    let lock = op.prefix & prefix::LOCK != 0;
    match (op.mem, op.has_register(1)) {
        (0, true) if lock => bit_string::<C, W, KIND, true>,
        (0, true) => bit_string::<C, W, KIND, false>,
        (0, false) if lock => bit::<C, W, Locked, Imm, KIND>,
        (0, false) => bit::<C, W, Any, Imm, KIND>,
        (_, true) => bit::<C, W, Reg, Reg, KIND>,
        (_, false) => bit::<C, W, Reg, Imm, KIND>,
    }
}

fn pick_bmi<C: Cpu, O: Bmi>(op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    by_word!(bytes, W => Some(by_place!(op, O::PLACE as u8, S => bmi::<C, O, W, S>)))
}
