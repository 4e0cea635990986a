//! From bytes to [`Op`]. iced-x86 decodes; this file turns its instruction into our compact form and asks
//! the families for the function that executes it.
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, EncodingKind, Instruction, OpKind, Register};
use x86::{Features, Mode, Seg};

use crate::{
    Cpu, Op, Res, Stop,
    address::form,
    families,
    fetch::MAX_LEN,
    op::{HIGH_BYTE, NO_REG, RIP, class, prefix},
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

/// Makes the decoder's tables, which the first decoding makes otherwise. A kernel does so before there is a guest: the memory
/// is asked for without a chance to fail, and who comes second meanwhile spins.
pub fn prepare() {
    let mut instruction = Instruction::default();
    Decoder::new(64, &[0x90], 0).decode_out(&mut instruction);
}

/// Decodes the instruction at the start of `bytes` (up to 15) for a processor in `mode` that offers `features`.
pub fn decode<C: Cpu>(bytes: &[u8], mode: Mode, features: Features) -> Result<Op<C>, DecodeError> {
    let mut decoder = Decoder::with_ip(mode.bitness(), bytes, 0, options(features));
    let mut insn = Instruction::default();
    decoder.decode_out(&mut insn);
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes => return Err(DecodeError::More),
        _ if too_long(bytes, mode, features) => return Err(DecodeError::TooLong),
        _ => return Err(DecodeError::Invalid),
    }
    if !exists(&insn, mode, features) {
        return Err(DecodeError::Invalid);
    }
    let mut op = compact::<C>(&insn, mode, bytes);
    if let Some(opcode) = crate::fpu::x87_opcode(&insn, bytes) {
        op.imm = opcode as u64;
    }
    if features.contains(Features::AMD) && op.code == Code::Movsxd_r16_rm16 && op.is_memory() {
        // AMD's processors read 32 bits, of which this pointless form uses 16.
        op.mem_size = 4;
    }
    op.run = match families::lookup::<C>(&insn, &op) {
        Some(run) if families::offered(&insn, features) => Some(run),
        Some(_) => None,
        None => crate::system::lookup(&insn).or_else(|| {
            op.vector = true;
            crate::fpu::lookup(&insn)
        }),
    }
    .ok_or(DecodeError::Invalid)?;
    Ok(op)
}

/// Whether bytes that are no instruction are more than 15: the decoder does not tell these two apart.
#[cold]
fn too_long(bytes: &[u8], mode: Mode, features: Features) -> bool {
    let Some(start) = bytes.get(..MAX_LEN - 1) else { return false };
    let mut decoder = Decoder::with_ip(mode.bitness(), start, 0, options(features));
    decoder.decode_out(&mut Instruction::default());
    bytes.len() >= MAX_LEN && decoder.last_error() == DecoderError::NoMoreBytes
}

/// Processors without BMI1 or LZCNT execute TZCNT as BSF and LZCNT as BSR. AMD's and Intel's treat the operand-size
/// prefix of near branches in 64-bit mode differently. The NOPs at 0F 18 to 0F 1F stay NOPs whatever later
/// extensions made of them, because none of these (CET, MPX) is offered.
fn options(features: Features) -> u32 {
    let mut options = DecoderOptions::FORCE_RESERVED_NOP;
    if features.contains(Features::AMD) {
        options |= DecoderOptions::AMD;
    }
    if !features.contains(Features::BMI1) {
        options |= DecoderOptions::NO_MPFX_0FBC;
    }
    if !features.contains(Features::LZCNT) {
        options |= DecoderOptions::NO_MPFX_0FBD;
    }
    options
}

/// VEX and its kin do not exist in real and virtual-8086 mode. AMD's processors have no prefetching of registers.
fn exists(insn: &Instruction, mode: Mode, features: Features) -> bool {
    use Code::{Reservednop_rm16_r16_0F0D, Reservednop_rm32_r32_0F0D, Reservednop_rm64_r64_0F0D};
    if features.contains(Features::AMD)
        && matches!(insn.code(), Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D)
        && insn.op0_kind() == OpKind::Register
    {
        return false;
    }
    !matches!(mode, Mode::Real | Mode::Virtual8086) || insn.code().encoding() == EncodingKind::Legacy
}

/// Operand and address size in bytes, as mode and prefixes give them.
fn sizes(mode: Mode, bytes: &[u8]) -> (u8, u8) {
    let (mut operand, mut address, mut rex_w) = (false, false, false);
    for &byte in bytes {
        match byte {
            0x66 => operand = true,
            0x67 => address = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => {}
            0x40..=0x4f if mode == Mode::Long64 => {
                rex_w = byte & 8 != 0;
                break;
            }
            _ => break,
        }
    }
    match (mode.bitness(), operand, address) {
        (64, o, a) => (if rex_w { 8 } else { 4 >> o as u8 }, 8 >> a as u8),
        (32, o, a) => (4 >> o as u8, 4 >> a as u8),
        (_, o, a) => (2 << o as u8, 2 << a as u8),
    }
}

/// What stands in [`Op::run`] until the families have been asked.
fn undefined<C: Cpu>(_cpu: &mut C, _op: &Op<C>) -> Res {
    Err(Stop::UD)
}

fn compact<C: Cpu>(insn: &Instruction, mode: Mode, bytes: &[u8]) -> Op<C> {
    let len = insn.len() as u64;
    let (operand_size, address_size) = sizes(mode, bytes);
    let mut op = Op {
        run: undefined::<C>,
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
        address_size,
        operand_size,
        prefix: 0,
        form: form::SEGMENTED,
        mode,
        vector: false,
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
                    *slot = operand_number(insn.op_register(i));
                }
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = insn.near_branch_target().wrapping_sub(len);
            }
            OpKind::FarBranch16 => op.imm = insn.far_branch16() as u64 | (insn.far_branch_selector() as u64) << 32,
            OpKind::FarBranch32 => op.imm = insn.far_branch32() as u64 | (insn.far_branch_selector() as u64) << 32,
            OpKind::Memory => memory(insn, i, &mut op),
            OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI => {
                op.seg = if mode == Mode::Long64 { long_segment(insn) } else { register_number(insn.memory_segment()) };
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
    if r.is_gpr8() {
        // In iced's order AL to BL, AH to BH, SPL to R15L.
        match r as u8 - Register::AL as u8 {
            low @ 0..4 => low,
            high @ 4..8 => HIGH_BYTE + high - 4,
            new => new - 4,
        }
    } else {
        r.number() as u8
    }
}

/// As [`register_number`]; vector registers have their class added.
fn operand_number(r: Register) -> u8 {
    let class = match r {
        _ if r.is_xmm() => class::XMM,
        _ if r.is_ymm() => class::YMM,
        _ if r.is_mm() => class::MM,
        _ if r.is_st() => class::ST,
        _ => 0,
    };
    register_number(r) | class
}
