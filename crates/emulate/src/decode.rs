//! From bytes to [`Op`]. iced-x86 decodes; this file turns its instruction into our compact form and asks
//! the families for the function that executes it.
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use x86::{Features, Mode, Seg};

use crate::{
    Cpu, Handler, Op,
    address::form,
    op::{HIGH_BYTE, NO_REG, RIP, prefix},
};

/// Why bytes are not an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction goes on behind the last byte.
    More,
    /// No such instruction: #UD.
    Invalid,
    /// Longer than 15 bytes: #GP(0).
    TooLong,
}

/// Decodes the instruction at the start of `bytes` (up to 15) for a processor in `mode`.
pub fn decode<C: Cpu>(bytes: &[u8], mode: Mode, _features: Features) -> Result<Op<C>, DecodeError> {
    let mut decoder = Decoder::with_ip(mode.bitness(), bytes, 0, DecoderOptions::AMD);
    let mut insn = Instruction::default();
    decoder.decode_out(&mut insn);
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes if bytes.len() >= 15 => return Err(DecodeError::TooLong),
        DecoderError::NoMoreBytes => return Err(DecodeError::More),
        _ => return Err(DecodeError::Invalid),
    }
    let handler = lookup::<C>(&insn).ok_or(DecodeError::Invalid)?;
    Ok(compact(&insn, mode, handler))
}

fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    crate::system::lookup(insn).or_else(|| crate::fpu::lookup(insn))
}

fn compact<C>(insn: &Instruction, mode: Mode, run: Handler<C>) -> Op<C> {
    let len = insn.len() as u64;
    let mut op = Op {
        run,
        imm: 0,
        disp: 0,
        code: insn.code(),
        len: len as u8,
        regs: [NO_REG; 4],
        mem: NO_REG,
        base: NO_REG,
        index: NO_REG,
        scale: 0,
        seg: Seg::Ds as u8,
        mem_size: 0,
        address_size: (mode.bitness() / 8) as u8,
        operand_size: (mode.bitness() / 8).min(4) as u8,
        prefix: 0,
        form: form::SEGMENTED,
        mode,
    };
    if insn.has_lock_prefix() {
        op.prefix |= prefix::LOCK;
    }
    if insn.has_rep_prefix() {
        op.prefix |= prefix::REP;
    }
    if insn.has_repne_prefix() {
        op.prefix |= prefix::REPNE;
    }
    let mut immediates = 0;
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register => {
                if let Some(slot) = op.regs.get_mut(i as usize) {
                    *slot = register_number(insn.op_register(i));
                }
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = insn.near_branch_target().wrapping_sub(len);
            }
            OpKind::FarBranch16 => op.imm = insn.far_branch16() as u64 | (insn.far_branch_selector() as u64) << 32,
            OpKind::FarBranch32 => op.imm = insn.far_branch32() as u64 | (insn.far_branch_selector() as u64) << 32,
            OpKind::Memory => memory(insn, i, &mut op),
            kind @ (OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI) => {
                op.address_size = match kind {
                    OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => 2,
                    OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => 4,
                    _ => 8,
                };
                op.seg = register_number(insn.memory_segment());
                op.mem_size = insn.memory_size().size() as u8;
            }
            _ => {
                let value = insn.immediate(i);
                op.imm |= if immediates == 0 { value } else { value << 32 };
                immediates += 1;
            }
        }
    }
    op
}

fn memory<C>(insn: &Instruction, position: u32, op: &mut Op<C>) {
    op.mem = position as u8;
    op.seg = register_number(insn.memory_segment());
    op.mem_size = insn.memory_size().size().min(255) as u8;
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    let (base, index) = (insn.memory_base(), insn.memory_index());
    op.address_size = address_size(insn);
    op.index = if index == Register::None { NO_REG } else { register_number(index) };
    let disp = insn.memory_displacement64();
    if insn.is_ip_rel_memory_operand() {
        op.base = RIP;
        op.disp = disp.wrapping_sub(insn.len() as u64) as i32;
    } else {
        op.base = if base == Register::None { NO_REG } else { register_number(base) };
        op.disp = disp as i32;
        if is_moffs(insn.code()) {
            op.imm = disp;
        }
    }
    if op.mode == Mode::Long64 {
        op.seg = long_segment(insn);
        let plain = op.seg < Seg::Fs as u8 && op.address_size == 8 && !is_moffs(insn.code());
        op.form = match (op.base, op.index) {
            _ if !plain => form::LONG,
            (RIP, _) => form::RELATIVE,
            (NO_REG, _) => form::LONG,
            (_, NO_REG) => form::BASE,
            _ => form::INDEXED,
        };
    }
}

/// The segment of a memory operand in 64-bit mode, where only FS and GS prefixes count.
fn long_segment(insn: &Instruction) -> u8 {
    let prefix = insn.segment_prefix();
    let seg = match (prefix, insn.memory_base()) {
        (Register::FS, _) => Seg::Fs,
        (Register::GS, _) => Seg::Gs,
        (_, Register::RSP | Register::ESP | Register::RBP | Register::EBP) => Seg::Ss,
        _ => Seg::Ds,
    };
    seg as u8
}

fn is_moffs(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    )
}

fn address_size(insn: &Instruction) -> u8 {
    for register in [insn.memory_base(), insn.memory_index()] {
        match register {
            Register::None => {}
            Register::RIP => return 8,
            Register::EIP => return 4,
            r if r.is_gpr64() => return 8,
            r if r.is_gpr32() => return 4,
            r if r.is_gpr16() => return 2,
            _ => {}
        }
    }
    match insn.memory_displ_size() {
        2 => 2,
        8 => 8,
        _ => 4,
    }
}

/// The number that instructions encode a register by; the high bytes AH, CH, DH, BH get [`HIGH_BYTE`] added.
fn register_number(r: Register) -> u8 {
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => HIGH_BYTE + (r as u8 - Register::AH as u8),
        _ => r.number() as u8,
    }
}
