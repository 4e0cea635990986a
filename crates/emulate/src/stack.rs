//! Pushes and pops. The stack pointer moves in a [`Stack`] while an instruction runs and is committed to RSP when
//! everything has succeeded (SDM vol. 1, 6.2).
use platform::Word;
use x86::{CpuState, Mode, Seg, Segment, paging};

use crate::{Access, Cpu, Res, Stop, address, op::gpr};

/// A stack whose pointer has not been committed.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    /// The stack pointer's value so far, all 64 bits of the register.
    pub pointer: u64,
    /// The bits of `pointer` that pushes and pops change: 0xffff, 0xffff_ffff or all.
    pub mask: u64,
    /// The stack segment; not used in 64-bit mode.
    pub segment: Segment,
    /// 64-bit mode: flat addresses that must be canonical.
    pub long: bool,
    /// Segment rights count (protected mode).
    pub rights: bool,
    /// In whose name memory is accessed.
    pub access: Access,
    /// What a bad address raises: #SS(0), or #SS(selector) for the stack of an inner level.
    pub fault: Stop,
}

impl Stack {
    /// The current stack, as PUSH and POP use it.
    #[inline]
    pub fn current(state: &CpuState) -> Self {
        let segment = state.seg[Seg::Ss as usize];
        let long = state.mode == Mode::Long64;
        Self {
            pointer: state.gpr[gpr::RSP],
            mask: mask(&segment, long),
            segment,
            long,
            rights: state.protected(),
            access: Access::Program,
            fault: Stop::SS0,
        }
    }

    /// Another stack, in protected mode: that of an inner level (`access` is System) or of an outer one (User).
    /// `long` if it is used in 64-bit mode.
    #[inline]
    pub fn other(segment: Segment, pointer: u64, long: bool, access: Access, fault: Stop) -> Self {
        Self { pointer, mask: mask(&segment, long), segment, long, rights: true, access, fault }
    }

    /// The linear address of `bytes` bytes at the stack offset `offset`.
    #[inline]
    pub fn linear<C: Cpu>(&self, cpu: &C, offset: u64, bytes: u64, write: bool) -> Res<u64> {
        if self.long {
            let bits = cpu.state().linear_bits();
            let last = offset.wrapping_add(bytes - 1);
            let ok = paging::canonical(offset, bits) && paging::canonical(last, bits);
            return if ok { self.aligned(cpu, offset, bytes) } else { Err(self.fault) };
        }
        let linear = address::in_segment(&self.segment, offset & self.mask, bytes, write, self.rights);
        self.aligned(cpu, linear.ok_or(self.fault)?, bytes)
    }

    fn aligned<C: Cpu>(&self, cpu: &C, linear: u64, bytes: u64) -> Res<u64> {
        if self.access == Access::Program { address::aligned(cpu.state(), linear, bytes) } else { Ok(linear) }
    }

    /// Pushes `value` in a slot of its own size.
    #[inline]
    pub fn push<C: Cpu, T: Word>(&mut self, cpu: &mut C, value: T) -> Res {
        let to = self.pointer.wrapping_sub(T::BYTES) & self.mask;
        let linear = self.linear(cpu, to, T::BYTES, true)?;
        cpu.store(linear, value, self.access)?;
        self.pointer = self.pointer & !self.mask | to;
        Ok(())
    }

    /// Pops a value of its own size.
    #[inline]
    pub fn pop<C: Cpu, T: Word>(&mut self, cpu: &mut C) -> Res<T> {
        let value = self.peek(cpu, 0)?;
        self.skip(T::BYTES);
        Ok(value)
    }

    /// Reads the value `bytes` bytes above the top without popping it.
    #[inline]
    pub fn peek<C: Cpu, T: Word>(&self, cpu: &mut C, bytes: u64) -> Res<T> {
        let linear = self.linear(cpu, self.pointer.wrapping_add(bytes) & self.mask, T::BYTES, false)?;
        cpu.load(linear, self.access)
    }

    /// Pushes the low `size` (2, 4 or 8) bytes of `value`.
    pub fn push_sized<C: Cpu>(&mut self, cpu: &mut C, size: u8, value: u64) -> Res {
        match size {
            2 => self.push(cpu, value as u16),
            4 => self.push(cpu, value as u32),
            _ => self.push(cpu, value),
        }
    }

    /// Pops `size` (2, 4 or 8) bytes, zero-extended.
    pub fn pop_sized<C: Cpu>(&mut self, cpu: &mut C, size: u8) -> Res<u64> {
        match size {
            2 => self.pop::<C, u16>(cpu).map(u64::from),
            4 => self.pop::<C, u32>(cpu).map(u64::from),
            _ => self.pop(cpu),
        }
    }

    /// Pops `bytes` bytes without reading them; wraps at the stack's size.
    #[inline]
    pub fn skip(&mut self, bytes: u64) {
        self.pointer = self.pointer & !self.mask | self.pointer.wrapping_add(bytes) & self.mask;
    }

    /// Writes RSP.
    #[inline]
    pub fn commit(self, state: &mut CpuState) {
        state.gpr[gpr::RSP] = self.pointer;
    }
}

/// The bits of the stack pointer in use with the stack segment `ss`.
#[inline]
pub fn mask(ss: &Segment, long: bool) -> u64 {
    if long {
        u64::MAX
    } else if ss.attr.big() {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// Pushes one value onto the current stack and commits RSP.
#[inline(always)]
pub fn push<C: Cpu, T: Word>(cpu: &mut C, value: T) -> Res {
    let state = cpu.state();
    if state.mode == Mode::Long64 {
        let to = state.gpr[gpr::RSP].wrapping_sub(T::BYTES);
        if address::plain(to, T::BYTES) {
            cpu.store(to, value, Access::Program)?;
            cpu.state_mut().gpr[gpr::RSP] = to;
            return Ok(());
        }
    }
    push_slow(cpu, value)
}

#[inline(never)]
fn push_slow<C: Cpu, T: Word>(cpu: &mut C, value: T) -> Res {
    let mut stack = Stack::current(cpu.state());
    stack.push(cpu, value)?;
    stack.commit(cpu.state_mut());
    Ok(())
}

/// Reads the value on top of the current stack; the caller moves RSP with [`drop`] afterwards.
#[inline(always)]
pub fn top<C: Cpu, T: Word>(cpu: &mut C) -> Res<T> {
    let state = cpu.state();
    if state.mode == Mode::Long64 {
        let from = state.gpr[gpr::RSP];
        if address::plain(from, T::BYTES) {
            return cpu.load(from, Access::Program);
        }
    }
    top_slow(cpu)
}

#[inline(never)]
fn top_slow<C: Cpu, T: Word>(cpu: &mut C) -> Res<T> {
    Stack::current(cpu.state()).peek(cpu, 0)
}

/// Adds `bytes` to the stack pointer, wrapped to the stack's size.
#[inline(always)]
pub fn drop(state: &mut CpuState, bytes: u64) {
    if state.mode == Mode::Long64 {
        state.gpr[gpr::RSP] = state.gpr[gpr::RSP].wrapping_add(bytes);
    } else {
        let mut stack = Stack::current(state);
        stack.skip(bytes);
        stack.commit(state);
    }
}
