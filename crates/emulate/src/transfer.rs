//! Moves: MOV, MOVNTI, MOVZX, MOVSX, MOVSXD, MOVBE, BSWAP, LEA, XLAT, CMOVcc, SETcc, and the sign extensions of RAX.
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::Mode;

use crate::{
    Access, Cpu, Handler, Op, Res, address,
    condition::{by_condition, condition, holds},
    op::gpr,
    operand::{Imm, Place, Reg, Source, Width, by_form, by_place, by_width, by_word},
};

fn mov<C: Cpu, W: Width, D: Place, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = S::read::<C, W>(cpu, op, 1)?;
    D::write::<C, W>(cpu, op, 0, value)
}

/// MOV between the accumulator and a full-size absolute offset.
fn mov_from_offset<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let at = address::segment_offset(cpu, op.seg, op.imm, W::BYTES, false)?;
    let value = cpu.load::<W>(at, Access::Program)?.low();
    W::set(cpu.state_mut(), gpr::RAX as u8, value);
    Ok(())
}

fn mov_to_offset<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let at = address::segment_offset(cpu, op.seg, op.imm, W::BYTES, true)?;
    let value = W::from_low(cpu.state().gpr[gpr::RAX]);
    cpu.store(at, value, Access::Program)
}

fn movzx<C: Cpu, D: Width, F: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = S::read::<C, F>(cpu, op, 1)?;
    D::set(cpu.state_mut(), op.regs[0], value);
    Ok(())
}

fn movsx<C: Cpu, D: Width, F: Width, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = S::read::<C, F>(cpu, op, 1)?;
    D::set(cpu.state_mut(), op.regs[0], F::sign_extend(value));
    Ok(())
}

fn swapped<W: Width>(value: u64) -> u64 {
    value.swap_bytes() >> (64 - W::BITS)
}

fn movbe<C: Cpu, W: Width, D: Place, S: Source>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = S::read::<C, W>(cpu, op, 1)?;
    D::write::<C, W>(cpu, op, 0, swapped::<W>(value))
}

/// BSWAP. Of a 16-bit register it leaves 0, as processors do where the manual says "undefined".
fn bswap<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let value = if W::BITS == 16 { 0 } else { swapped::<W>(W::get(state, op.regs[0])) };
    W::set(state, op.regs[0], value);
    Ok(())
}

fn lea<C: Cpu, W: Width>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let offset = op.offset(state);
    W::set(state, op.regs[0], offset);
    Ok(())
}

/// LEA of 64 bits with a base register and perhaps an index, the frequent forms.
fn lea_long<C: Cpu, const INDEX: bool>(cpu: &mut C, op: &Op<C>) -> Res {
    let gpr = &mut cpu.state_mut().gpr;
    let mut offset = gpr[(op.base & 15) as usize].wrapping_add(op.disp as i64 as u64);
    if INDEX {
        offset = offset.wrapping_add(gpr[(op.index & 15) as usize] << (op.scale & 3));
    }
    gpr[(op.regs[0] & 15) as usize] = offset;
    Ok(())
}

fn xlat<C: Cpu>(cpu: &mut C, op: &Op<C>) -> Res {
    let state = cpu.state();
    let offset = state.gpr[gpr::RBX].wrapping_add(state.gpr[gpr::RAX] & 0xff);
    let at = address::segment_offset(cpu, op.seg, op.wrap(offset), 1, false)?;
    let value = cpu.load::<u8>(at, Access::Program)?;
    u8::set(cpu.state_mut(), gpr::RAX as u8, value as u64);
    Ok(())
}

/// CMOVcc reads its source whether or not the condition holds, and a 32-bit one clears the upper half in any case.
fn cmov<C: Cpu, W: Width, S: Source, const CC: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = S::read::<C, W>(cpu, op, 1)?;
    let state = cpu.state_mut();
    let old = W::get(state, op.regs[0]);
    let value = if holds::<CC>(&state.flags) { value } else { old };
    W::set(state, op.regs[0], value);
    Ok(())
}

fn set<C: Cpu, D: Place, const CC: u8>(cpu: &mut C, op: &Op<C>) -> Res {
    let value = holds::<CC>(&cpu.state().flags) as u64;
    D::write::<C, u8>(cpu, op, 0, value)
}

/// CBW, CWDE, CDQE: the accumulator from its lower half.
fn extend<C: Cpu, W: Width, H: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let value = H::sign_extend(state.gpr[gpr::RAX]);
    W::set(state, gpr::RAX as u8, value);
    Ok(())
}

/// CWD, CDQ, CQO: RDX filled with the accumulator's sign.
fn sign<C: Cpu, W: Width>(cpu: &mut C, _op: &Op<C>) -> Res {
    let state = cpu.state_mut();
    let value = (W::sign_extend(state.gpr[gpr::RAX]) as i64 >> 63) as u64;
    W::set(state, gpr::RDX as u8, value);
    Ok(())
}

/// Decides how `op` is executed, if it is of this family.
pub(crate) fn lookup<C: Cpu>(insn: &Instruction, op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    match insn.mnemonic() {
        Mnemonic::Mov => pick_mov(insn, op, bytes),
        Mnemonic::Movzx => match source_bytes(insn, op) {
            1 => by_word!(bytes, D => Some(pick_movzx::<C, D, u8>(op))),
            _ => by_word!(bytes, D => Some(pick_movzx::<C, D, u16>(op))),
        },
        Mnemonic::Movsx | Mnemonic::Movsxd => match source_bytes(insn, op) {
            1 => by_word!(bytes, D => Some(pick_movsx::<C, D, u8>(op))),
            2 => by_word!(bytes, D => Some(pick_movsx::<C, D, u16>(op))),
            _ => by_word!(bytes, D => Some(pick_movsx::<C, D, u32>(op))),
        },
        Mnemonic::Movnti => by_word!(bytes, W => Some(by_form!(op, M => mov::<C, W, M, Reg>))),
        Mnemonic::Movbe => by_word!(bytes, W => Some(match op.mem {
            0 => by_form!(op, M => movbe::<C, W, M, Reg>),
            _ => by_form!(op, M => movbe::<C, W, Reg, M>),
        })),
        Mnemonic::Bswap => by_word!(bytes, W => Some(bswap::<C, W>)),
        Mnemonic::Lea if op.mode == Mode::Long64 && bytes == 8 && op.address_size == 8 && op.base < 16 => {
            Some(if op.index < 16 { lea_long::<C, true> } else { lea_long::<C, false> })
        }
        Mnemonic::Lea => by_word!(bytes, W => Some(lea::<C, W>)),
        Mnemonic::Xlatb => Some(xlat),
        Mnemonic::Cbw => Some(extend::<C, u16, u8>),
        Mnemonic::Cwde => Some(extend::<C, u32, u16>),
        Mnemonic::Cdqe => Some(extend::<C, u64, u32>),
        Mnemonic::Cwd => Some(sign::<C, u16>),
        Mnemonic::Cdq => Some(sign::<C, u32>),
        Mnemonic::Cqo => Some(sign::<C, u64>),
        m if is_set(m) => Some(by_condition!(condition(insn), CC => by_place!(op, 0, D => set::<C, D, CC>))),
        m if is_cmov(m) => by_word!(bytes, W => Some(
            by_condition!(condition(insn), CC => by_place!(op, 1, S => cmov::<C, W, S, CC>))
        )),
        _ => None,
    }
}

fn is_set(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Seto | Setno
            | Setb
            | Setae
            | Sete
            | Setne
            | Setbe
            | Seta
            | Sets
            | Setns
            | Setp
            | Setnp
            | Setl
            | Setge
            | Setle
            | Setg
    )
}

fn is_cmov(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Cmovo
            | Cmovno
            | Cmovb
            | Cmovae
            | Cmove
            | Cmovne
            | Cmovbe
            | Cmova
            | Cmovs
            | Cmovns
            | Cmovp
            | Cmovnp
            | Cmovl
            | Cmovge
            | Cmovle
            | Cmovg
    )
}

fn source_bytes<C>(insn: &Instruction, op: &Op<C>) -> u8 {
    if op.mem == 1 { op.mem_size } else { insn.op1_register().size() as u8 }
}

fn pick_mov<C: Cpu>(insn: &Instruction, op: &Op<C>, bytes: u8) -> Option<Handler<C>> {
    use Code::*;
    match insn.code() {
        Mov_AL_moffs8 | Mov_AX_moffs16 | Mov_EAX_moffs32 | Mov_RAX_moffs64 => {
            by_width!(bytes, W => Some(mov_from_offset::<C, W>))
        }
        Mov_moffs8_AL | Mov_moffs16_AX | Mov_moffs32_EAX | Mov_moffs64_RAX => {
            by_width!(bytes, W => Some(mov_to_offset::<C, W>))
        }
        _ => {
            // Segment, control and debug registers are somebody else's.
            for i in 0..2 {
                if insn.op_kind(i) == OpKind::Register && !insn.op_register(i).is_gpr() {
                    return None;
                }
            }
            by_width!(bytes, W => Some(match op.mem {
                0 if op.has_register(1) => by_form!(op, M => mov::<C, W, M, Reg>),
                0 => by_form!(op, M => mov::<C, W, M, Imm>),
                1 => by_form!(op, M => mov::<C, W, Reg, M>),
                _ if op.has_register(1) => mov::<C, W, Reg, Reg>,
                _ => mov::<C, W, Reg, Imm>,
            }))
        }
    }
}

fn pick_movzx<C: Cpu, D: Width, F: Width>(op: &Op<C>) -> Handler<C> {
    if op.mem == 1 { by_form!(op, M => movzx::<C, D, F, M>) } else { movzx::<C, D, F, Reg> }
}

fn pick_movsx<C: Cpu, D: Width, F: Width>(op: &Op<C>) -> Handler<C> {
    if op.mem == 1 { by_form!(op, M => movsx::<C, D, F, M>) } else { movsx::<C, D, F, Reg> }
}
