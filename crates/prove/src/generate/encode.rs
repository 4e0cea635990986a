//! Instructions: operands at random, encoded, and decoded again to see that they are what was wanted.
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, MemorySize, Mnemonic, OpCodeOperandKind as K, OpKind, Register,
};

use super::{Random, Shape, form};
use crate::{
    layout::{BASED_CS32, BASED_DS32, CODE, CODE_BYTES, CS16, CS32, CS64, DATA, DOWN16, DOWN32, DS16, FLAT, selector},
    machine::{host_is_amd, segment},
};

/// Segments that code runs with.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Bits of the code segment.
    pub bits: u32,
    /// ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 8],
    /// FS.base and GS.base, in 64-bit mode.
    pub bases: [u64; 2],
}

impl Setting {
    fn new(bits: u32, based: bool, random: &mut Random) -> Self {
        let (cs, ss, ds) = match bits {
            64 => (CS64, FLAT, FLAT),
            32 if based => (BASED_CS32, random.of(&[BASED_DS32, DOWN32]), BASED_DS32),
            32 => (CS32, FLAT, FLAT),
            _ => (CS16, random.of(&[DS16, DOWN16]), DS16),
        };
        let mut setting = Self { bits, selectors: [ds, cs, ss, ds, 0, 0, 0, 0], bases: [0; 2] };
        if bits == 64 {
            for base in &mut setting.bases {
                let far = random.bits();
                *base = match random.below(6) {
                    0 => 0,
                    1 => far & 0xf_ffff,
                    2 => DATA,
                    3 => far & 0x7fff_ffff_ffff,
                    4 => far | 0xffff_8000_0000_0000,
                    _ => far as u32 as u64,
                };
            }
        } else {
            // Reachable data mostly, and now and then segments that forbid something.
            for i in 4..6 {
                let other = random.of(&[0, FLAT, selector(0), selector(3), selector(4), DOWN32, DOWN16, selector(10)]);
                setting.selectors[i] = if random.one_in(4) { other } else { ds };
            }
        }
        setting
    }

    /// The base of the segment register `seg`.
    pub fn base(&self, seg: usize) -> u64 {
        match (self.bits, seg) {
            (64, 4 | 5) => self.bases[seg - 4],
            (64, _) => 0,
            _ => segment(self.selectors[seg]).base,
        }
    }

    /// The code segment's base.
    pub fn code_base(&self) -> u64 {
        self.base(1)
    }
}

/// An instruction with its place and its segments.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// As it was decoded.
    pub insn: Instruction,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where it begins, in its code segment.
    pub rip: u64,
    /// Segments.
    pub setting: Setting,
    /// The shape that it was made with.
    pub shape: Shape,
    /// Size of its memory operand in bytes, at least 1.
    pub size: u64,
}

/// Bytes that a memory operand of `insn` has.
fn operand_size(insn: &Instruction) -> u64 {
    use Mnemonic::*;
    match insn.mnemonic() {
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 => 512,
        Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 | Xrstor | Xrstor64 => 832,
        _ => (insn.memory_size().size() as u64).max(1),
    }
}

/// An instruction of the form `code` and the given shape, if luck wants it.
pub fn encode(code: Code, bits: u32, shape: Shape, random: &mut Random) -> Option<Encoded> {
    let short = bits == 32 && shape == Shape::AddressSize;
    let based = bits == 32 && (short || random.one_in(3));
    let setting = Setting::new(bits, based, random);
    let start = if random.one_in(8) { 0x1000 - random.below(12) } else { 0x400 + random.below(0x800) };
    let rip = CODE - setting.code_base() + start;
    let mut insn = Instruction::new();
    insn.set_code(code);
    operands(&mut insn, shape, rip, &setting, random)?;
    prefixes(&mut insn, shape, bits, random);
    let mut encoder = Encoder::new(bits);
    encoder.set_vex_wig(random.below(2) as u32);
    encoder.set_vex_lig(random.below(2) as u32);
    encoder.set_prevent_vex2(random.one_in(4));
    // A high byte register does not go with REX, and so on: such choices are dropped.
    encoder.encode(&insn, rip).ok()?;
    let bytes = encoder.take_buffer();
    let insn = decode(&bytes, bits, rip)?;
    if insn.code() != code || insn.len() != bytes.len() || bytes.len() > 15 {
        return None;
    }
    if start as usize + bytes.len() + 16 > CODE_BYTES {
        return None;
    }
    let size = operand_size(&insn);
    let stack = [insn.memory_base(), insn.memory_index()].iter().any(|r| r.full_register() == Register::RSP);
    if insn.is_call_far_indirect() && stack {
        // Whether the call pushes with the stack pointer of the old or the new mode is told by no manual.
        return None;
    }
    let image = matches!(insn.mnemonic(), Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsavec | Mnemonic::Xsavec64)
        || matches!(insn.mnemonic(), Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 | Mnemonic::Xrstor | Mnemonic::Xrstor64);
    let mask = |r: Register| r.is_gpr() && matches!(r.full_register(), Register::RAX | Register::RDX);
    if image && (mask(insn.memory_base()) || mask(insn.memory_index())) {
        // EDX:EAX say which components: of those that the host has more.
        return None;
    }
    if shape == Shape::Crossing && size < 2 && insn.memory_size() == MemorySize::Unknown && !form::is_stack(code) {
        return None;
    }
    Some(Encoded { insn, bytes, rip, setting, shape, size })
}

/// Decodes as the software CPU does.
pub fn decode(bytes: &[u8], bits: u32, rip: u64) -> Option<Instruction> {
    let vendor = if host_is_amd() { DecoderOptions::AMD } else { 0 };
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::FORCE_RESERVED_NOP | vendor);
    let insn = decoder.decode();
    (!insn.is_invalid()).then_some(insn)
}

fn prefixes(insn: &mut Instruction, shape: Shape, bits: u32, random: &mut Random) {
    use Register::*;
    let info = insn.code().op_code();
    if insn.is_string_instruction() && info.can_use_rep_prefix() {
        match random.below(3) {
            0 => insn.set_has_rep_prefix(true),
            1 if info.can_use_repne_prefix() => insn.set_has_repne_prefix(true),
            _ => {}
        }
    }
    if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && random.one_in(2) {
        insn.set_has_lock_prefix(true);
    }
    if shape == Shape::Segment {
        let choice = if bits == 64 {
            random.of(&[FS, GS, FS, GS, FS, GS, ES, SS])
        } else {
            random.of(&[FS, GS, FS, GS, ES, CS, SS, DS])
        };
        insn.set_segment_prefix(choice);
    }
}

fn general(random: &mut Random, size: usize, bits: u32) -> Register {
    let count = if bits == 64 { 16 } else { 8 };
    let number = random.below(count) as u32;
    match size {
        // AL to BH, and in 64-bit mode also SPL to R15L.
        1 => Register::AL + random.below(if bits == 64 { 20 } else { 8 }) as u32,
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

fn operands(insn: &mut Instruction, shape: Shape, rip: u64, setting: &Setting, random: &mut Random) -> Option<()> {
    let bits = setting.bits;
    let info = insn.code().op_code();
    let in_memory = shape != Shape::Register;
    let mut immediates = 0;
    for i in 0..info.op_count() {
        // Few registers, so that operands coincide now and then.
        let many = if bits == 64 { 16 } else { 8 };
        let number = if random.one_in(2) { random.below(4) } else { random.below(many) } as u32;
        let vector = |class: Register, count: u32| Some(class + number % count);
        let kind = info.op_kind(i);
        let fixed = match kind {
            K::al => Some(Register::AL),
            K::cl => Some(Register::CL),
            K::ax => Some(Register::AX),
            K::eax => Some(Register::EAX),
            K::rax => Some(Register::RAX),
            K::dx => Some(Register::DX),
            K::es => Some(Register::ES),
            K::cs => Some(Register::CS),
            K::ss => Some(Register::SS),
            K::ds => Some(Register::DS),
            K::fs => Some(Register::FS),
            K::gs => Some(Register::GS),
            K::st0 => Some(Register::ST0),
            K::sti_opcode => vector(Register::ST0, 8),
            K::seg_reg => Some(random.of(&[Register::ES, Register::SS, Register::DS, Register::FS, Register::GS])),
            K::cr_reg => Some(random.of(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4])),
            K::dr_reg => Some(Register::DR0 + random.below(8) as u32),
            K::mm_reg | K::mm_rm => vector(Register::MM0, 8),
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => vector(Register::XMM0, 16),
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => vector(Register::YMM0, 16),
            K::mm_or_mem if !in_memory => vector(Register::MM0, 8),
            K::xmm_or_mem if !in_memory => vector(Register::XMM0, 16),
            K::ymm_or_mem if !in_memory => vector(Register::YMM0, 16),
            K::r8_reg | K::r8_opcode => Some(general(random, 1, bits)),
            K::r8_or_mem if !in_memory => Some(general(random, 1, bits)),
            K::r16_reg | K::r16_opcode | K::r16_reg_mem | K::r16_rm => Some(general(random, 2, bits)),
            K::r16_or_mem if !in_memory => Some(general(random, 2, bits)),
            K::r32_reg | K::r32_opcode | K::r32_vvvv | K::r32_rm | K::r32_reg_mem => Some(general(random, 4, bits)),
            K::r32_or_mem if !in_memory => Some(general(random, 4, bits)),
            K::r64_reg | K::r64_opcode | K::r64_vvvv | K::r64_rm | K::r64_reg_mem => Some(general(random, 8, bits)),
            K::r64_or_mem if !in_memory => Some(general(random, 8, bits)),
            _ => None,
        };
        if let Some(register) = fixed {
            insn.try_set_op_kind(i, OpKind::Register).ok()?;
            insn.try_set_op_register(i, register).ok()?;
            continue;
        }
        match kind {
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::mem => {
                insn.try_set_op_kind(i, OpKind::Memory).ok()?;
                memory(insn, shape, setting, random);
            }
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                insn.try_set_op_kind(i, OpKind::Memory).ok()?;
                let class =
                    if matches!(kind, K::mem_vsib32x | K::mem_vsib64x) { Register::XMM0 } else { Register::YMM0 };
                vsib(insn, class + number, shape, setting, random);
            }
            K::mem_offs => {
                insn.try_set_op_kind(i, OpKind::Memory).ok()?;
                let size = match (bits, shape) {
                    (64, Shape::AddressSize) => 4,
                    (64, _) => 8,
                    (32, Shape::AddressSize) => 2,
                    (32, _) | (16, Shape::AddressSize) => 4,
                    _ => 2,
                };
                insn.set_memory_displ_size(size);
                let at = target(shape, 8, random);
                let segment = if shape == Shape::Segment { random.of(&[4, 5]) } else { 3 };
                let mask = u64::MAX >> (64 - 8 * size);
                insn.set_memory_displacement64(at.wrapping_sub(setting.base(segment)) & mask);
            }
            _ => {
                implicit(insn, i, kind, shape, immediates, rip, setting, random)?;
                immediates += !matches!(kind, K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al) as u32;
            }
        }
    }
    Some(())
}

/// A linear address for a memory operand of `size` bytes.
pub fn target(shape: Shape, size: u64, random: &mut Random) -> u64 {
    let edge = random.below(64);
    let at = if shape == Shape::Crossing {
        let boundary = if random.one_in(16) { crate::layout::WRITABLE } else { 0x1000 };
        let before = if size > 1 { 1 + random.below(size - 1) } else { 1 };
        // State images have to be aligned, and cross all the same.
        let before = if size >= 512 { before & !63 } else { before };
        boundary.saturating_sub(before)
    } else if edge < 4 {
        let boundary = random.of(&[0u64, 0x1000, 0x2000, 0x3000]);
        return (DATA + boundary).wrapping_sub(size / 2).wrapping_add(random.below(2 * size)).wrapping_sub(size / 2);
    } else {
        let room = 0xe00 - size;
        let page = 0x1000 * random.below(2);
        let at = page + 0x100 + random.below(room);
        // Where it is aligned well, everything can be executed.
        let align = random.of(&[1, 16, 32, 64, 64]);
        at & !(align - 1)
    };
    DATA + at
}

fn vsib(insn: &mut Instruction, index: Register, shape: Shape, setting: &Setting, random: &mut Random) {
    let short = if setting.bits == 64 { shape == Shape::AddressSize } else { true };
    let class = if short { Register::EAX } else { Register::RAX };
    let many = if setting.bits == 64 { 16 } else { 8 };
    insn.set_memory_index(index);
    insn.set_memory_index_scale(1 << random.below(4));
    if shape == Shape::IndexOnly {
        insn.set_memory_base(Register::None);
        insn.set_memory_displ_size(if setting.bits == 64 { 8 } else { 4 });
        insn.set_memory_displacement64(target(shape, 32, random).wrapping_sub(setting.base(3)));
    } else {
        insn.set_memory_base(class + random.below(many) as u32);
        displacement(insn, if short { 4 } else { 8 }, random);
    }
}

/// A displacement beside a base register.
fn displacement(insn: &mut Instruction, address_size: u32, random: &mut Random) {
    let wide = random.bits() as i32 as i64;
    let value = match random.below(4) {
        0 => (wide as i8) as i64,
        1 => wide >> 20,
        _ => wide,
    };
    let value = if address_size == 2 { (value as i16) as i64 } else { value };
    let small = (-128..128).contains(&value);
    insn.set_memory_displ_size(if small { 1 } else { address_size });
    let mask = u64::MAX >> (64 - 8 * address_size);
    insn.set_memory_displacement64(value as u64 & mask);
}

fn memory(insn: &mut Instruction, shape: Shape, setting: &Setting, random: &mut Random) {
    use Register::*;
    let bits = setting.bits;
    let address_size = match (bits, shape) {
        (64, Shape::AddressSize) | (16, Shape::AddressSize) => 4,
        (64, _) => 8,
        (32, Shape::AddressSize) => 2,
        (32, _) => 4,
        _ => 2,
    };
    // The shapes that say nothing of base and index have any.
    let inner = match shape {
        Shape::Segment | Shape::AddressSize | Shape::Crossing => {
            random.of(&[Shape::Base, Shape::Displacement, Shape::Index, Shape::Index, Shape::Absolute])
        }
        other => other,
    };
    let size = operand_size(insn).max(insn.memory_size().size() as u64);
    let displaced = |insn: &mut Instruction, random: &mut Random| displacement(insn, address_size, random);
    insn.set_memory_index_scale(1);
    let class = match address_size {
        8 => RAX,
        4 => EAX,
        _ => AX,
    };
    let many = if bits == 64 { 16 } else { 8 };
    match inner {
        Shape::Absolute | Shape::Relative => {
            let seg = if shape == Shape::Segment { random.of(&[4, 5]) } else { 3 };
            let at = target(shape, size, random);
            let offset = at.wrapping_sub(setting.base(seg));
            if inner == Shape::Relative {
                insn.set_memory_base(RIP);
                insn.set_memory_displ_size(8);
                insn.set_memory_displacement64(at);
                return;
            }
            insn.set_memory_displ_size(if address_size == 8 { 8 } else { address_size });
            let mask = u64::MAX >> (64 - 8 * address_size);
            // In 64-bit mode 32 bits have to do.
            let offset = if bits == 64 { offset as i32 as i64 as u64 } else { offset };
            insn.set_memory_displacement64(offset & mask);
        }
        _ if address_size == 2 => {
            let (base, index) = match inner {
                Shape::Index => random.of(&[(BX, SI), (BX, DI), (BP, SI), (BP, DI)]),
                Shape::Base => random.of(&[(SI, None), (DI, None), (BX, None)]),
                _ => random.of(&[(SI, None), (DI, None), (BX, None), (BP, None)]),
            };
            insn.set_memory_base(base);
            insn.set_memory_index(index);
            if inner == Shape::Displacement || random.one_in(2) && inner == Shape::Index {
                displaced(insn, random);
            }
        }
        Shape::Base => {
            // [rBP] and [r13] have a displacement, which may be zero.
            insn.set_memory_base(class + random.below(many) as u32);
        }
        Shape::Displacement => {
            insn.set_memory_base(class + random.below(many) as u32);
            displaced(insn, random);
        }
        Shape::Index => {
            let base = random.below(many) as u32;
            let mut index = random.below(many) as u32;
            if index == 4 || index == base {
                index = (base + 1) % many as u32;
            }
            if index == 4 {
                index = 5;
            }
            insn.set_memory_base(class + base);
            insn.set_memory_index(class + index);
            insn.set_memory_index_scale(1 << random.below(4));
            if random.one_in(2) {
                displaced(insn, random);
            }
        }
        _ => {
            let mut index = random.below(many) as u32;
            if index == 4 {
                index = 6;
            }
            insn.set_memory_index(class + index);
            insn.set_memory_index_scale(random.of(&[2, 4, 8]));
            let at = target(shape, size, random).wrapping_sub(setting.base(3));
            insn.set_memory_displ_size(if address_size == 8 { 8 } else { 4 });
            // The index is small: see `state`.
            let mask = u64::MAX >> (64 - 8 * address_size);
            insn.set_memory_displacement64(at & mask);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn implicit(
    insn: &mut Instruction,
    i: u32,
    kind: K,
    shape: Shape,
    immediates: u32,
    rip: u64,
    setting: &Setting,
    random: &mut Random,
) -> Option<()> {
    let bits = setting.bits;
    let value = random.value();
    // Targets stay in the code, on both sides of the instruction but not on it: it would loop.
    let branch = random.of(&[rip - 0x60, rip + 0x20]) + random.below(0x40);
    let other = shape == Shape::AddressSize;
    let by_address = |long: OpKind, normal: OpKind, short: OpKind| match (bits, other) {
        (64, false) => long,
        (64, true) | (32, false) | (16, true) => normal,
        _ => short,
    };
    let kind = match kind {
        K::seg_rSI => by_address(OpKind::MemorySegRSI, OpKind::MemorySegESI, OpKind::MemorySegSI),
        K::es_rDI => by_address(OpKind::MemoryESRDI, OpKind::MemoryESEDI, OpKind::MemoryESDI),
        K::seg_rDI => by_address(OpKind::MemorySegRDI, OpKind::MemorySegEDI, OpKind::MemorySegDI),
        K::seg_rBX_al => {
            insn.set_memory_base(match (bits, other) {
                (64, false) => Register::RBX,
                (64, true) | (32, false) | (16, true) => Register::EBX,
                _ => Register::BX,
            });
            insn.set_memory_index(Register::AL);
            insn.set_memory_index_scale(1);
            OpKind::Memory
        }
        K::imm8 | K::imm8_const_1 if immediates == 0 => OpKind::Immediate8,
        K::imm8 => OpKind::Immediate8_2nd,
        K::imm8sex16 => OpKind::Immediate8to16,
        K::imm8sex32 => OpKind::Immediate8to32,
        K::imm8sex64 => OpKind::Immediate8to64,
        K::imm16 => OpKind::Immediate16,
        K::imm32 => OpKind::Immediate32,
        K::imm32sex64 => OpKind::Immediate32to64,
        K::imm64 => OpKind::Immediate64,
        K::br16_1 | K::br16_2 => OpKind::NearBranch16,
        K::br32_1 | K::br32_4 => OpKind::NearBranch32,
        K::br64_1 | K::br64_4 => OpKind::NearBranch64,
        K::farbr2_2 => OpKind::FarBranch16,
        K::farbr4_2 => OpKind::FarBranch32,
        _ => return None,
    };
    insn.try_set_op_kind(i, kind).ok()?;
    match kind {
        OpKind::Immediate8 if info_is_one(insn, i) => insn.set_immediate8(1),
        // INT 80h is Linux's.
        OpKind::Immediate8 if insn.mnemonic() == Mnemonic::Int => {
            insn.set_immediate8(if value as u8 == 0x80 { 0x81 } else { value as u8 });
        }
        OpKind::Immediate8 => insn.set_immediate8(value as u8),
        OpKind::Immediate8_2nd if insn.mnemonic() == Mnemonic::Enter => insn.set_immediate8_2nd(value as u8 & 7),
        OpKind::Immediate8_2nd => insn.set_immediate8_2nd(value as u8),
        OpKind::Immediate8to16 => insn.set_immediate8to16(value as i8 as i16),
        OpKind::Immediate8to32 => insn.set_immediate8to32(value as i8 as i32),
        OpKind::Immediate8to64 => insn.set_immediate8to64(value as i8 as i64),
        // What is above a little more stack is looked at in the processor's own order.
        OpKind::Immediate16 if insn.mnemonic() == Mnemonic::Retf => insn.set_immediate16(value as u16 & 0x3f),
        OpKind::Immediate16 => insn.set_immediate16(value as u16),
        OpKind::Immediate32 => insn.set_immediate32(value as u32),
        OpKind::Immediate32to64 => insn.set_immediate32to64(value as i32 as i64),
        OpKind::Immediate64 => insn.set_immediate64(value),
        OpKind::NearBranch16 => insn.set_near_branch16(branch as u16),
        OpKind::NearBranch32 => insn.set_near_branch32(branch as u32),
        OpKind::NearBranch64 => insn.set_near_branch64(branch),
        OpKind::FarBranch16 | OpKind::FarBranch32 => {
            let (selector, offset) = super::special::far_target(setting.selectors[1], random);
            insn.set_far_branch_selector(selector);
            if kind == OpKind::FarBranch16 {
                insn.set_far_branch16(offset as u16);
            } else {
                insn.set_far_branch32(offset as u32);
            }
        }
        _ => {}
    }
    Some(())
}

fn info_is_one(insn: &Instruction, i: u32) -> bool {
    insn.code().op_code().op_kind(i) == K::imm8_const_1
}
