//! From a segment and an offset to a linear address: limits, rights, canonical form and alignment
//! (SDM vol. 3, 3.3, 5.3, 5.5; vol. 1, 3.3.7.1).
use x86::{CpuState, Cr0, Mode, Seg, Segment, Vector, flags, paging};

use crate::{Cpu, Op, Res, Stop};

/// How an [`Op`]'s memory operand is addressed; chosen when the instruction is decoded, so that the common
/// forms need no decisions when it is executed.
pub mod form {
    /// 64-bit mode, base register and displacement, no index, no segment base, 64-bit addresses.
    pub const BASE: u8 = 0;
    /// As [`BASE`], and a scaled index.
    pub const INDEXED: u8 = 1;
    /// As [`BASE`], relative to RIP.
    pub const RELATIVE: u8 = 2;
    /// 64-bit mode, anything else.
    pub const LONG: u8 = 3;
    /// Another mode: the segment's limit and rights count.
    pub const SEGMENTED: u8 = 4;
}

/// An addressing form that is known when a handler is compiled.
pub trait Form: 'static {
    /// The linear address of the memory operand of `op`, of `bytes` bytes, checked for a write or a read.
    fn linear<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, write: bool) -> Res<u64>;
}

/// [`form::BASE`].
#[derive(Debug)]
pub enum Base {}
/// [`form::INDEXED`].
#[derive(Debug)]
pub enum Indexed {}
/// Any form, found out when it is executed.
#[derive(Debug)]
pub enum Any {}

impl Form for Base {
    #[inline(always)]
    fn linear<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, _write: bool) -> Res<u64> {
        let linear = cpu.state().gpr[(op.base & 15) as usize].wrapping_add(op.disp as i64 as u64);
        long(cpu, op.seg, linear, bytes)
    }
}

impl Form for Indexed {
    #[inline(always)]
    fn linear<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, _write: bool) -> Res<u64> {
        let gpr = &cpu.state().gpr;
        let index = gpr[(op.index & 15) as usize] << (op.scale & 3);
        let linear = gpr[(op.base & 15) as usize].wrapping_add(index).wrapping_add(op.disp as i64 as u64);
        long(cpu, op.seg, linear, bytes)
    }
}

impl Form for Any {
    #[inline(always)]
    fn linear<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, write: bool) -> Res<u64> {
        match op.form {
            form::BASE => Base::linear(cpu, op, bytes, write),
            form::RELATIVE => {
                let linear = cpu.state().rip.wrapping_add(op.disp as i64 as u64);
                long(cpu, op.seg, linear, bytes)
            }
            _ => any(cpu, op, bytes, write),
        }
    }
}

#[inline(never)]
fn any<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, write: bool) -> Res<u64> {
    let offset = op.offset(cpu.state());
    segment_offset(cpu, op.seg, offset, bytes, write)
}

/// The linear address of the memory operand of `op`, of `bytes` bytes, checked for a write or a read.
#[inline(always)]
pub fn linear<C: Cpu>(cpu: &mut C, op: &Op<C>, bytes: u64, write: bool) -> Res<u64> {
    Any::linear(cpu, op, bytes, write)
}

/// The linear address of `bytes` bytes at `offset` in the segment register `seg`, checked for a write or a read. The
/// offset has been wrapped to the address size.
#[inline]
pub fn segment_offset<C: Cpu>(cpu: &mut C, seg: u8, offset: u64, bytes: u64, write: bool) -> Res<u64> {
    let linear = element(cpu, seg, offset, bytes, write)?;
    aligned(cpu.state(), linear, bytes)
}

/// As [`segment_offset`] for an element of a masked move or a gather, to which the alignment check does not apply.
#[inline]
pub(crate) fn element<C: Cpu>(cpu: &mut C, seg: u8, offset: u64, bytes: u64, write: bool) -> Res<u64> {
    let state = cpu.state();
    let linear = unchecked(state, seg, offset);
    if state.mode == Mode::Long64 {
        return if is_canonical(state, linear, bytes) { Ok(linear) } else { Err(limit_fault(seg)) };
    }
    in_segment(segment(state, seg), offset, bytes, write, state.protected()).ok_or_else(|| limit_fault(seg))
}

/// The linear address of `offset` in the segment register `seg`, whatever limit and rights say.
#[inline]
fn unchecked(state: &CpuState, seg: u8, offset: u64) -> u64 {
    match state.mode {
        Mode::Long64 if seg < Seg::Fs as u8 => offset,
        Mode::Long64 => segment(state, seg).base.wrapping_add(offset),
        _ => segment(state, seg).base.wrapping_add(offset) as u32 as u64,
    }
}

/// #GP(0) unless `linear`, what came of finding the memory operand of `op`, is a multiple of `alignment`, a power of two.
/// That comes before anything else that is wrong with the address.
#[inline(always)]
pub(crate) fn require_alignment<C: Cpu>(cpu: &C, op: &Op<C>, alignment: u64, linear: Res<u64>) -> Res<u64> {
    match linear {
        Ok(at) if at & (alignment - 1) == 0 => Ok(at),
        Ok(_) => Err(Stop::GP0),
        Err(stop) => Err(alignment_first(cpu, op, alignment, stop)),
    }
}

#[cold]
#[inline(never)]
fn alignment_first<C: Cpu>(cpu: &C, op: &Op<C>, alignment: u64, stop: Stop) -> Stop {
    let state = cpu.state();
    if unchecked(state, op.seg, op.offset(state)) & (alignment - 1) != 0 { Stop::GP0 } else { stop }
}

/// A segment register by the number that instructions encode; numbers above GS do not occur and read as GS.
#[inline(always)]
pub fn segment(state: &CpuState, seg: u8) -> &Segment {
    &state.seg[(seg as usize).min(5)]
}

/// What an access outside of the segment `seg`, or to a non-canonical address in it, raises: #SS(0) or #GP(0).
#[inline]
pub fn limit_fault(seg: u8) -> Stop {
    if seg == Seg::Ss as u8 { Stop::SS0 } else { Stop::GP0 }
}

/// The linear address of `bytes` bytes (at least one) at `offset` in `segment` outside of 64-bit mode; None if limit
/// or (with `rights`, in protected mode) type forbid the access.
#[inline]
pub fn in_segment(segment: &Segment, offset: u64, bytes: u64, write: bool, rights: bool) -> Option<u64> {
    let attr = segment.attr;
    if attr.unusable() {
        return None;
    }
    let code = attr.is_code();
    if rights && (if write { code || !attr.type_bit1() } else { code && !attr.type_bit1() }) {
        return None;
    }
    let last = offset.checked_add(bytes - 1)?;
    let limit = segment.limit as u64;
    let inside = if !code && attr.type_bit2() {
        let top = if attr.big() { u32::MAX as u64 } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    inside.then_some(segment.base.wrapping_add(offset) as u32 as u64)
}

/// Whether an access is canonical and aligned well enough to need no second look: false only for what
/// [`long_slow`] must judge.
#[inline(always)]
pub(crate) fn plain(linear: u64, bytes: u64) -> bool {
    // The lower bound of the upper half maps to 0; the last 64 bytes of the lower half are left to the slow path
    // because an access there may run out of it.
    linear.wrapping_add(1 << 47) < (1 << 48) - 64 && linear & (bytes.next_power_of_two() - 1) == 0
}

/// Checks an access in 64-bit mode and returns `linear`.
#[inline(always)]
fn long<C: Cpu>(cpu: &mut C, seg: u8, linear: u64, bytes: u64) -> Res<u64> {
    if !plain(linear, bytes) {
        long_slow(cpu, seg, linear, bytes)?;
    }
    Ok(linear)
}

#[cold]
#[inline(never)]
fn long_slow<C: Cpu>(cpu: &mut C, seg: u8, linear: u64, bytes: u64) -> Res {
    let bits = cpu.state().linear_bits();
    let last = linear.wrapping_add(bytes - 1);
    if !paging::canonical(linear, bits) || !paging::canonical(last, bits) {
        return Err(limit_fault(seg));
    }
    aligned(cpu.state(), linear, bytes).map(|_| ())
}

/// Checks that `bytes` bytes at the linear address `linear` are canonical in 64-bit mode (true in other modes).
#[inline]
pub fn is_canonical(state: &CpuState, linear: u64, bytes: u64) -> bool {
    let bits = state.linear_bits();
    state.mode != Mode::Long64
        || paging::canonical(linear, bits) && paging::canonical(linear.wrapping_add(bytes - 1), bits)
}

/// What the address of an operand of `bytes` bytes has to be a multiple of under the alignment check (SDM vol. 3,
/// table 6-7): x87 images consist of words, and nothing has to be aligned better than an XMM register.
fn natural(bytes: u64) -> u64 {
    match bytes {
        10 => 8,
        14 | 94 => 2,
        28 | 108 => 4,
        _ => bytes.next_power_of_two().min(16),
    }
}

/// #AC(0) for a misaligned access of a user program that asked for it; else returns `linear`.
#[inline]
pub(crate) fn aligned(state: &CpuState, linear: u64, bytes: u64) -> Res<u64> {
    if linear & (bytes.next_power_of_two() - 1) != 0
        && state.cpl == 3
        && state.flags.control(flags::AC)
        && state.cr0 & Cr0::AM.bits() != 0
        && linear & (natural(bytes) - 1) != 0
    {
        return Err(Stop::fault_code(Vector::AC, 0));
    }
    Ok(linear)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::Attr;

    fn seg(typ: u8, limit: u32, big: bool) -> Segment {
        let attr = Attr::P | Attr::S | if big { Attr::DB } else { 0 } | typ as u16;
        Segment { selector: 8, attr: Attr(attr), limit, base: 0x1000 }
    }

    #[test]
    fn limits_and_rights() {
        let data = seg(3, 0xff, true);
        assert_eq!(in_segment(&data, 0xfc, 4, true, true), Some(0x10fc));
        assert_eq!(in_segment(&data, 0xfd, 4, false, true), None);
        assert_eq!(in_segment(&data, u64::MAX, 4, false, true), None);
        let read_only = seg(1, 0xff, true);
        assert_eq!(in_segment(&read_only, 0, 1, true, true), None);
        assert_eq!(in_segment(&read_only, 0, 1, true, false), Some(0x1000));
        let execute_only = seg(9, 0xff, true);
        assert_eq!(in_segment(&execute_only, 0, 1, false, true), None);
        let code = seg(11, 0xff, true);
        assert_eq!(in_segment(&code, 0, 1, false, true), Some(0x1000));
        assert_eq!(in_segment(&code, 0, 1, true, true), None);
        let down = seg(7, 0xff, false);
        assert_eq!(in_segment(&down, 0xff, 1, true, true), None);
        assert_eq!(in_segment(&down, 0x100, 1, true, true), Some(0x1100));
        assert_eq!(in_segment(&down, 0xffff, 2, true, true), None);
        assert_eq!(in_segment(&seg(7, 0xff, true), 0xffff, 2, true, true), Some(0x10fff));
        let mut null = data;
        null.attr.0 |= Attr::UNUSABLE;
        assert_eq!(in_segment(&null, 0, 1, false, true), None);
    }
}
