//! Operands: their widths, and the places where they are read and written. A handler is compiled once for every
//! width and kind of place that its instruction comes with, and the decoder picks the one that fits.
use platform::Word;
use x86::CpuState;

use crate::{
    Access, Cpu, Op, Res, Stop,
    address::{Any, Base, Form, Indexed},
};

/// An operand width: u8, u16, u32 or u64. Values travel as u64; bits above the width may hold anything unless a
/// function says otherwise.
pub trait Width: Word {
    /// Its size in bits.
    const BITS: u32;

    /// The low bits of `value`, zero-extended.
    #[inline(always)]
    fn zero_extend(value: u64) -> u64 {
        Self::from_low(value).low()
    }
    /// The low bits of `value`, sign-extended.
    #[inline(always)]
    fn sign_extend(value: u64) -> u64 {
        ((value << (64 - Self::BITS)) as i64 >> (64 - Self::BITS)) as u64
    }
    /// The most significant bit of the low bits of `value`.
    #[inline(always)]
    fn sign(value: u64) -> bool {
        value >> (Self::BITS - 1) & 1 != 0
    }
    /// The general register `reg`, zero-extended.
    fn get(state: &CpuState, reg: u8) -> u64;
    /// Writes the general register `reg`; 32 bits clear the upper half, 8 and 16 bits keep the rest.
    fn set(state: &mut CpuState, reg: u8, value: u64);
}

impl Width for u8 {
    const BITS: u32 = 8;
    #[inline(always)]
    fn get(state: &CpuState, reg: u8) -> u64 {
        // Registers 16 to 19 are bits 8 to 15 of 0 to 3.
        state.gpr[(reg & 15) as usize] >> ((reg & 16) >> 1) & 0xff
    }
    #[inline(always)]
    fn set(state: &mut CpuState, reg: u8, value: u64) {
        let shift = (reg & 16) >> 1;
        let slot = &mut state.gpr[(reg & 15) as usize];
        *slot = *slot & !(0xff << shift) | (value & 0xff) << shift;
    }
}

impl Width for u16 {
    const BITS: u32 = 16;
    #[inline(always)]
    fn get(state: &CpuState, reg: u8) -> u64 {
        state.gpr[(reg & 15) as usize] & 0xffff
    }
    #[inline(always)]
    fn set(state: &mut CpuState, reg: u8, value: u64) {
        let slot = &mut state.gpr[(reg & 15) as usize];
        *slot = *slot & !0xffff | value & 0xffff;
    }
}

impl Width for u32 {
    const BITS: u32 = 32;
    #[inline(always)]
    fn get(state: &CpuState, reg: u8) -> u64 {
        state.gpr[(reg & 15) as usize] & 0xffff_ffff
    }
    #[inline(always)]
    fn set(state: &mut CpuState, reg: u8, value: u64) {
        state.gpr[(reg & 15) as usize] = value & 0xffff_ffff;
    }
}

impl Width for u64 {
    const BITS: u32 = 64;
    #[inline(always)]
    fn get(state: &CpuState, reg: u8) -> u64 {
        state.gpr[(reg & 15) as usize]
    }
    #[inline(always)]
    fn set(state: &mut CpuState, reg: u8, value: u64) {
        state.gpr[(reg & 15) as usize] = value;
    }
}

/// Where an operand is read.
pub trait Source {
    /// Operand number `slot` of `op`, zero-extended (immediates are not).
    fn read<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, slot: usize) -> Res<u64>;
}

/// Where an operand is read and written.
pub trait Place: Source {
    /// Writes operand number `slot`.
    fn write<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, slot: usize, value: u64) -> Res;
    /// Reads operand number `slot` (zero-extended), writes the first that `f` makes of it, and returns the
    /// second. `f` may be called more than once.
    fn modify<C: Cpu, W: Width, T>(
        cpu: &mut C,
        op: &Op<C>,
        slot: usize,
        f: impl Fn(&CpuState, u64) -> (u64, T),
    ) -> Res<T>;
}

/// A general register.
#[derive(Debug)]
pub enum Reg {}
/// The immediate.
#[derive(Debug)]
pub enum Imm {}
/// Memory of any form, modified by a locked operation.
#[derive(Debug)]
pub enum Locked {}

impl Source for Imm {
    #[inline(always)]
    fn read<C: Cpu, W: Width>(_cpu: &mut C, op: &Op<C>, _slot: usize) -> Res<u64> {
        Ok(op.imm)
    }
}

impl Source for Reg {
    #[inline(always)]
    fn read<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, slot: usize) -> Res<u64> {
        Ok(W::get(cpu.state(), op.regs[slot]))
    }
}

impl Place for Reg {
    #[inline(always)]
    fn write<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, slot: usize, value: u64) -> Res {
        W::set(cpu.state_mut(), op.regs[slot], value);
        Ok(())
    }
    #[inline(always)]
    fn modify<C: Cpu, W: Width, T>(
        cpu: &mut C,
        op: &Op<C>,
        slot: usize,
        f: impl Fn(&CpuState, u64) -> (u64, T),
    ) -> Res<T> {
        let state = cpu.state_mut();
        let (value, rest) = f(state, W::get(state, op.regs[slot]));
        W::set(state, op.regs[slot], value);
        Ok(rest)
    }
}

macro_rules! memory {
    ($($form:ty),*) => {$(
        impl Source for $form {
            #[inline(always)]
            fn read<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, _slot: usize) -> Res<u64> {
                let at = <$form>::linear(cpu, op, W::BYTES, false)?;
                Ok(cpu.load::<W>(at, Access::Program)?.low())
            }
        }
        impl Place for $form {
            #[inline(always)]
            fn write<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, _slot: usize, value: u64) -> Res {
                let at = <$form>::linear(cpu, op, W::BYTES, true)?;
                cpu.store(at, W::from_low(value), Access::Program)
            }
            #[inline(always)]
            fn modify<C: Cpu, W: Width, T>(
                cpu: &mut C,
                op: &Op<C>,
                _slot: usize,
                f: impl Fn(&CpuState, u64) -> (u64, T),
            ) -> Res<T> {
                let at = <$form>::linear(cpu, op, W::BYTES, true)?;
                let old = cpu.load_for_write::<W>(at, Access::Program)?.low();
                let (value, rest) = f(cpu.state(), old);
                cpu.store(at, W::from_low(value), Access::Program)?;
                Ok(rest)
            }
        }
    )*};
}
memory!(Base, Indexed, Any);

impl Source for Locked {
    #[inline(always)]
    fn read<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, slot: usize) -> Res<u64> {
        Any::read::<C, W>(cpu, op, slot)
    }
}

impl Place for Locked {
    #[inline(always)]
    fn write<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>, slot: usize, value: u64) -> Res {
        Any::write::<C, W>(cpu, op, slot, value)
    }
    #[inline(always)]
    fn modify<C: Cpu, W: Width, T>(
        cpu: &mut C,
        op: &Op<C>,
        _slot: usize,
        f: impl Fn(&CpuState, u64) -> (u64, T),
    ) -> Res<T> {
        let at = Any::linear(cpu, op, W::BYTES, true)?;
        locked::<C, W, T>(cpu, at, |state, old| {
            let (value, rest) = f(state, old.low());
            (W::from_low(value), rest)
        })
    }
}

/// How often a locked operation that lost its race is tried again before the loop outside gets a chance to look around.
const RACES: u32 = 8;

/// The atomic read-modify-write of the word at `linear`: writes the first that `f` makes of it, returns the second.
#[inline(always)]
pub fn locked<C: Cpu, W: Word, T>(cpu: &mut C, linear: u64, f: impl Fn(&CpuState, W) -> (W, T)) -> Res<T> {
    let mut old = cpu.load_for_write::<W>(linear, Access::Program)?;
    for _ in 0..RACES {
        let (new, rest) = f(cpu.state(), old);
        let now = cpu.compare_exchange(linear, old, new, Access::Program)?;
        if now == old {
            return Ok(rest);
        }
        old = now;
    }
    Err(Stop::RESTART)
}

/// Evaluates `$e` with `$W` the unsigned type of `$bytes` bytes (None for other sizes).
macro_rules! by_width {
    ($bytes:expr, $W:ident => $e:expr) => {
        match $bytes {
            1 => {
                type $W = u8;
                $e
            }
            2 => {
                type $W = u16;
                $e
            }
            4 => {
                type $W = u32;
                $e
            }
            8 => {
                type $W = u64;
                $e
            }
            _ => None,
        }
    };
}

/// As [`by_width`] for instructions without a byte form.
macro_rules! by_word {
    ($bytes:expr, $W:ident => $e:expr) => {
        match $bytes {
            2 => {
                type $W = u16;
                $e
            }
            4 => {
                type $W = u32;
                $e
            }
            8 => {
                type $W = u64;
                $e
            }
            _ => None,
        }
    };
}

/// Evaluates `$e` with `$M` the kind of memory operand that `$op` has.
macro_rules! by_form {
    ($op:expr, $M:ident => $e:expr) => {
        match $op.form {
            $crate::address::form::BASE => {
                type $M = $crate::address::Base;
                $e
            }
            $crate::address::form::INDEXED => {
                type $M = $crate::address::Indexed;
                $e
            }
            _ => {
                type $M = $crate::address::Any;
                $e
            }
        }
    };
}

/// Evaluates `$e` with `$P` the register or the kind of memory that operand `$slot` of `$op` is; less code than
/// [`by_form`], for instructions that are not frequent.
macro_rules! by_place {
    ($op:expr, $slot:expr, $P:ident => $e:expr) => {
        if $op.mem == $slot {
            type $P = $crate::address::Any;
            $e
        } else {
            type $P = $crate::operand::Reg;
            $e
        }
    };
}

pub(crate) use {by_form, by_place, by_width, by_word};
