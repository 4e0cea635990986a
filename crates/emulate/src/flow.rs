//! Near jumps, calls, returns and loops.
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::{Mode, Seg, paging};

use crate::{
    Cpu, Handler, Op, Res, Stop,
    address::{Any, Base},
    condition::{by_condition, condition, holds},
    op::gpr,
    operand::{Reg, Source, Width},
    stack,
};

/// What RIP is cut to, and what is checked before it is loaded: 64-bit mode, or code with 32 or 16 bits of operand size
/// (SDM vol. 2, JMP).
trait Target {
    /// Loads RIP with `target`, or #GP(0) if it is outside of the code segment or not canonical.
    fn jump<C: Cpu>(cpu: &mut C, target: u64) -> Res {
        let target = Self::check(cpu, target)?;
        cpu.state_mut().rip = target;
        Ok(())
    }
    /// `target` cut to size, or #GP(0).
    fn check<C: Cpu>(cpu: &C, target: u64) -> Res<u64>;
    /// The size of return addresses.
    type Size: Width;
}

enum Long {}
enum Legacy32 {}
enum Legacy16 {}

impl Target for Long {
    type Size = u64;
    #[inline(always)]
    fn check<C: Cpu>(cpu: &C, target: u64) -> Res<u64> {
        if paging::canonical(target, 48) || paging::canonical(target, cpu.state().linear_bits()) {
            Ok(target)
        } else {
            Err(Stop::GP0)
        }
    }
}

impl Target for Legacy32 {
    type Size = u32;
    #[inline(always)]
    fn check<C: Cpu>(cpu: &C, target: u64) -> Res<u64> {
        let target = target as u32;
        if target <= cpu.state().seg[Seg::Cs as usize].limit { Ok(target as u64) } else { Err(Stop::GP0) }
    }
}

impl Target for Legacy16 {
    type Size = u16;
    /// Also the 16-bit branches that AMD processors know in 64-bit mode, where there is no limit.
    #[inline(always)]
    fn check<C: Cpu>(cpu: &C, target: u64) -> Res<u64> {
        let target = target as u16 as u64;
        let state = cpu.state();
        if state.mode == Mode::Long64 || target <= state.seg[Seg::Cs as usize].limit as u64 {
            Ok(target)
        } else {
            Err(Stop::GP0)
        }
    }
}

#[inline(always)]
fn relative<C: Cpu, T: Target>(cpu: &mut C, op: &Op<C>) -> Res {
    let target = cpu.state().rip.wrapping_add(op.imm);
    T::jump(cpu, target)
}

fn jcc<C: Cpu, T: Target, const CC: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    if holds::<CC>(&cpu.state().flags) { relative::<C, T>(cpu, op) } else { Ok(()) }
}

fn jmp<C: Cpu, T: Target>(cpu: &mut C, op: &Op<C>) -> Res {
    relative::<C, T>(cpu, op)
}

fn jmp_indirect<C: Cpu, T: Target, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let target = S::read::<C, T::Size>(cpu, op, 0)?;
    T::jump(cpu, target)
}

fn call<C: Cpu, T: Target>(cpu: &mut C, op: &Op<C>) -> Res {
    let next = cpu.state().rip;
    let target = T::check(cpu, next.wrapping_add(op.imm))?;
    stack::push(cpu, <T::Size as platform::Word>::from_low(next))?;
    cpu.state_mut().rip = target;
    Ok(())
}

fn call_indirect<C: Cpu, T: Target, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let next = cpu.state().rip;
    let target = S::read::<C, T::Size>(cpu, op, 0)?;
    let target = T::check(cpu, target)?;
    stack::push(cpu, <T::Size as platform::Word>::from_low(next))?;
    cpu.state_mut().rip = target;
    Ok(())
}

fn ret<C: Cpu, T: Target>(cpu: &mut C, op: &Op<C>) -> Res {
    let target = platform::Word::low(stack::top::<C, T::Size>(cpu)?);
    let target = T::check(cpu, target)?;
    let state = cpu.state_mut();
    state.rip = target;
    stack::drop(state, <T::Size as platform::Word>::BYTES + op.imm as u16 as u64);
    Ok(())
}

/// LOOP (`KIND` 0), LOOPE (1), LOOPNE (2) and JRCXZ (3); the address size chooses the width of the counter.
fn count<C: Cpu, T: Target, A: Width, const KIND: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state();
    let counter = A::get(state, gpr::RCX as u8);
    if KIND == 3 {
        return if counter == 0 { relative::<C, T>(cpu, op) } else { Ok(()) };
    }
    let counter = A::zero_extend(counter.wrapping_sub(1));
    let zf = state.flags.zf();
    if counter != 0 && (KIND == 0 || (KIND == 1) == zf) {
        relative::<C, T>(cpu, op)?;
    }
    A::set(cpu.state_mut(), gpr::RCX as u8, counter);
    Ok(())
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>) -> Option<Handler<C>> {
    let size = match insn.mnemonic() {
        Mnemonic::Ret => match insn.code() {
            Code::Retnq | Code::Retnq_imm16 => 8,
            Code::Retnd | Code::Retnd_imm16 => 4,
            _ => 2,
        },
        Mnemonic::Call | Mnemonic::Jmp => match insn.op0_kind() {
            OpKind::FarBranch16 | OpKind::FarBranch32 => return None,
            OpKind::Memory if insn.is_call_far_indirect() || insn.is_jmp_far_indirect() => return None,
            OpKind::Memory => op.mem_size as u32,
            OpKind::Register => insn.op0_register().size() as u32,
            kind => branch_size(kind)?,
        },
        _ => branch_size(insn.op0_kind())?,
    };
    match size {
        8 => pick::<C, Long>(insn, op),
        4 => pick::<C, Legacy32>(insn, op),
        _ => pick::<C, Legacy16>(insn, op),
    }
}

fn branch_size(kind: OpKind) -> Option<u32> {
    match kind {
        OpKind::NearBranch16 => Some(2),
        OpKind::NearBranch32 => Some(4),
        OpKind::NearBranch64 => Some(8),
        _ => None,
    }
}

fn pick<C: Cpu, T: Target>(insn: &Instruction, op: &Op<C>) -> Option<Handler<C>> {
    let form = op.form;
    Some(match insn.mnemonic() {
        Mnemonic::Jmp if op.has_register(0) => jmp_indirect::<C, T, Reg>,
        Mnemonic::Jmp if op.is_memory() => jmp_indirect::<C, T, Any>,
        Mnemonic::Jmp => jmp::<C, T>,
        Mnemonic::Call if op.has_register(0) => call_indirect::<C, T, Reg>,
        Mnemonic::Call if op.is_memory() && form == crate::address::form::BASE => call_indirect::<C, T, Base>,
        Mnemonic::Call if op.is_memory() => call_indirect::<C, T, Any>,
        Mnemonic::Call => call::<C, T>,
        Mnemonic::Ret => ret::<C, T>,
        Mnemonic::Loop => return pick_count::<C, T, 0>(op),
        Mnemonic::Loope => return pick_count::<C, T, 1>(op),
        Mnemonic::Loopne => return pick_count::<C, T, 2>(op),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => return pick_count::<C, T, 3>(op),
        _ if insn.is_jcc_short_or_near() => by_condition!(condition(insn), CC => jcc::<C, T, CC>),
        _ => return None,
    })
}

fn pick_count<C: Cpu, T: Target, const KIND: u8>(op: &Op<C>) -> Option<Handler<C>> {
    Some(match op.address_size {
        2 => count::<C, T, u16, KIND>,
        4 => count::<C, T, u32, KIND>,
        _ => count::<C, T, u64, KIND>,
    })
}
