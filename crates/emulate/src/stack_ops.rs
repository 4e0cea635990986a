//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER and LEAVE.
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::{CpuState, Cr4, Mode, flags};

use crate::{
    Access, Cpu, Flush, Handler, Op, Res, Stop,
    address::Any,
    op::gpr,
    operand::{Imm, Place, Reg, Source, Width, by_word},
    stack,
    stack::Stack,
};

fn push<C: Cpu, W: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = S::read::<C, W>(cpu, op, 0)?;
    stack::push(cpu, W::from_low(value))
}

/// POP to a register: POP RSP leaves the popped value.
fn pop<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = stack::top::<C, W>(cpu)?.low();
    let state = cpu.state_mut();
    stack::drop(state, W::BYTES);
    W::set(state, op.regs[0], value);
    Ok(())
}

/// POP to memory: an address with RSP as its base is formed after RSP has moved.
fn pop_memory<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = stack::top::<C, W>(cpu)?.low();
    let state = cpu.state_mut();
    let before = state.gpr[gpr::RSP];
    stack::drop(state, W::BYTES);
    let result = Any::write::<C, W>(cpu, op, 0, value);
    if result.is_err() {
        cpu.state_mut().gpr[gpr::RSP] = before;
    }
    result
}

/// PUSHA stores RSP as it was before.
fn push_all<C: Cpu, W: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
    let mut stack = Stack::current(cpu.state());
    for reg in 0..8 {
        let value = W::get(cpu.state(), reg);
        stack.push(cpu, W::from_low(value))?;
    }
    stack.commit(cpu.state_mut());
    Ok(())
}

/// POPA skips the stored RSP.
fn pop_all<C: Cpu, W: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
    let mut stack = Stack::current(cpu.state());
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = stack.pop::<C, W>(cpu)?.low();
    }
    let state = cpu.state_mut();
    stack.commit(state);
    for (reg, value) in values.into_iter().enumerate().filter(|&(reg, _)| reg != gpr::RSP) {
        W::set(state, reg as u8, value);
    }
    Ok(())
}

/// Whether PUSHF and POPF in virtual-8086 mode work on VIF instead of IF (SDM vol. 3, 20.3): IOPL below 3 and, for
/// 16-bit operands only, CR4.VME. Otherwise IOPL below 3 is #GP(0).
fn virtual_interrupts(state: &CpuState, bits: u32) -> Res<bool> {
    if state.mode != Mode::Virtual8086 || state.flags.iopl() == 3 {
        Ok(false)
    } else if bits == 16 && state.cr4 & Cr4::VME.bits() != 0 {
        Ok(true)
    } else {
        Err(Stop::GP0)
    }
}

fn push_flags<C: Cpu, W: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state();
    let mut value = state.flags.get() & !(flags::VM | flags::RF);
    if virtual_interrupts(state, W::BITS)? {
        let enabled = value & flags::VIF != 0;
        value = value & !flags::IF | flags::IOPL | if enabled { flags::IF } else { 0 };
    }
    stack::push(cpu, W::from_low(value))
}

fn pop_flags<C: Cpu, W: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state();
    let virtualised = virtual_interrupts(state, W::BITS)?;
    let value = stack::top::<C, W>(cpu)?.low();
    let state = cpu.state_mut();
    let mut mask = flags::TF | flags::DF | flags::NT;
    if W::BITS != 16 {
        mask |= flags::AC | flags::ID;
    }
    if virtualised {
        let enables = value & flags::IF != 0;
        if value & flags::TF != 0 || enables && state.flags.control(flags::VIP) {
            return Err(Stop::GP0);
        }
        state.flags.set_control(flags::VIF, if enables { flags::VIF } else { 0 });
    } else {
        if state.cpl <= state.flags.iopl() {
            mask |= flags::IF;
        }
        if state.cpl == 0 {
            mask |= flags::IOPL;
        }
    }
    stack::drop(state, W::BYTES);
    state.flags.set_status(value);
    let lifted = state.flags.control(flags::AC);
    state.flags.set_control(mask, value);
    if lifted != state.flags.control(flags::AC) {
        cpu.flush(Flush::Rights);
    }
    Ok(())
}

/// ENTER (SDM vol. 2): a frame with up to 31 pointers to the frames around it.
fn enter<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let (room, level) = (op.imm as u16 as u64, (op.imm >> 32) as u32 & 31);
    let mut stack = Stack::current(cpu.state());
    let base = cpu.state().gpr[gpr::RBP];
    stack.push(cpu, W::from_low(base))?;
    let frame = stack.pointer;
    if level > 0 {
        let mut outer = Stack { pointer: base, ..stack };
        for _ in 1..level {
            outer.skip(W::BYTES.wrapping_neg());
            let value: W = outer.peek(cpu, 0)?;
            stack.push(cpu, value)?;
        }
        stack.push(cpu, W::from_low(frame))?;
    }
    stack.skip(room.wrapping_neg());
    // The new top must be writable although nothing is written there.
    let top = stack.linear(cpu, stack.pointer & stack.mask, W::BYTES, true)?;
    cpu.probe_write(top, W::BYTES, Access::Program)?;
    let state = cpu.state_mut();
    stack.commit(state);
    W::set(state, gpr::RBP as u8, frame);
    Ok(())
}

fn leave<C: Cpu, W: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state();
    let mut stack = Stack::current(state);
    stack.pointer = stack.pointer & !stack.mask | state.gpr[gpr::RBP] & stack.mask;
    let value = stack.pop::<C, W>(cpu)?.low();
    let state = cpu.state_mut();
    stack.commit(state);
    W::set(state, gpr::RBP as u8, value);
    Ok(())
}

/// LEAVE in 64-bit mode with its usual operand size.
fn leave_long<C: Cpu>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let (pointer, frame) = (state.gpr[gpr::RSP], state.gpr[gpr::RBP]);
    state.gpr[gpr::RSP] = frame;
    match stack::top::<C, u64>(cpu) {
        Ok(value) => {
            let state = cpu.state_mut();
            stack::drop(state, 8);
            state.gpr[gpr::RBP] = value;
            Ok(())
        }
        Err(stop) => {
            cpu.state_mut().gpr[gpr::RSP] = pointer;
            Err(stop)
        }
    }
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>) -> Option<Handler<C>> {
    if matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Pop)
        && insn.op0_kind() == OpKind::Register
        && !insn.op0_register().is_gpr()
    {
        return None;
    }
    let bytes = match insn.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop => insn.stack_pointer_increment().unsigned_abs(),
        Mnemonic::Pushf | Mnemonic::Popf => 2,
        Mnemonic::Pushfd | Mnemonic::Popfd => 4,
        _ => 8,
    };
    match insn.mnemonic() {
        Mnemonic::Push if op.is_memory() => by_word!(bytes, W => Some(push::<C, W, Any>)),
        Mnemonic::Push if op.has_register(0) => by_word!(bytes, W => Some(push::<C, W, Reg>)),
        Mnemonic::Push => by_word!(bytes, W => Some(push::<C, W, Imm>)),
        Mnemonic::Pop if op.is_memory() => by_word!(bytes, W => Some(pop_memory::<C, W>)),
        Mnemonic::Pop => by_word!(bytes, W => Some(pop::<C, W>)),
        Mnemonic::Pusha => Some(push_all::<C, u16>),
        Mnemonic::Pushad => Some(push_all::<C, u32>),
        Mnemonic::Popa => Some(pop_all::<C, u16>),
        Mnemonic::Popad => Some(pop_all::<C, u32>),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => by_word!(bytes, W => Some(push_flags::<C, W>)),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => by_word!(bytes, W => Some(pop_flags::<C, W>)),
        _ => match insn.code() {
            Code::Enterw_imm16_imm8 => Some(enter::<C, u16>),
            Code::Enterd_imm16_imm8 => Some(enter::<C, u32>),
            Code::Enterq_imm16_imm8 => Some(enter::<C, u64>),
            Code::Leavew => Some(leave::<C, u16>),
            Code::Leaved => Some(leave::<C, u32>),
            Code::Leaveq => Some(leave_long),
            _ => None,
        },
    }
}
