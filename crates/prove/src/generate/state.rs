//! The state that an instruction starts from: random registers, with those that are addresses made to point into the
//! data, and with what the instruction at hand needs to do more than to fault.
use iced_x86::{Instruction, OpCodeOperandKind as K, OpKind, Register};
use x86::flags;

use super::{Encoded, Random, Shape, encode::target, form, special};
use crate::{
    case::{Case, Image},
    layout::{BASED_CS32, CS16, CS32, DATA, DATA_BYTES},
};

/// Random data.
pub fn image(random: &mut Random) -> Image {
    let mut image = Image([0; DATA_BYTES]);
    for chunk in image.0[..crate::layout::WRITABLE as usize].chunks_exact_mut(16) {
        let value = match random.below(4) {
            0 => random.f80(),
            1 => random.value() as u128 | (random.value() as u128) << 64,
            _ => random.vector(),
        };
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    for (i, byte) in image.0[crate::layout::WRITABLE as usize..].iter_mut().enumerate() {
        // The page that cannot be written is the same in all batches.
        // No byte of it is odd: POPF must not find the trap flag there.
        *byte = ((i * 37) >> 3) as u8 & !1;
    }
    image
}

/// Makes the case of `encoded` with a random state.
pub fn state(encoded: &Encoded, image: &Image, random: &mut Random) -> Case {
    let insn = &encoded.insn;
    let setting = &encoded.setting;
    let mut case = Case { bits: setting.bits, len: encoded.bytes.len() as u32, ..Case::default() };
    case.code[..encoded.bytes.len()].copy_from_slice(&encoded.bytes);
    case.bases = (setting.bits == 64) as u32;
    // The jump behind the instruction is only on the host: not where the code is data too.
    let segment = setting.selectors[segment_number(insn.memory_segment())];
    let reads_code = setting.bits != 64 && matches!(segment, CS16 | CS32 | BASED_CS32);
    case.traps = (form::is_flow(insn.code()) || reads_code) as u32;
    case.before.selectors = setting.selectors;
    case.before.bases = setting.bases;
    case.before.rip = encoded.rip;
    case.before.gpr = std::array::from_fn(|_| random.value());
    case.before.flags = random.bits() & (flags::STATUS | flags::DF) | flags::FIXED | flags::IF;
    if random.one_in(16) {
        case.before.flags |= flags::AC;
    }
    if random.one_in(8) {
        case.before.flags |= random.bits() & (flags::NT | flags::ID);
    }
    fpu(&mut case, random);
    stack(&mut case, encoded, random);
    let address = address(&mut case, encoded, random);
    special::prepare(&mut case, encoded, address, image, random);
    if setting.bits != 64 {
        case.before.gpr.iter_mut().for_each(|r| *r &= 0xffff_ffff);
        case.before.gpr[8..].fill(0);
    }
    case
}

/// Sets the bits of a register that an address of `size` bytes takes from it.
pub fn set_low(register: &mut u64, size: u32, value: u64) {
    let mask = u64::MAX >> (64 - 8 * size);
    *register = *register & !mask | value & mask;
}

fn stack(case: &mut Case, encoded: &Encoded, random: &mut Random) {
    let setting = &encoded.setting;
    let size = if form::is_stack(encoded.insn.code()) { (setting.bits / 8) as u64 } else { 16 };
    let shape = if form::is_stack(encoded.insn.code()) { encoded.shape } else { Shape::Base };
    let at = target(shape, size, random).wrapping_sub(setting.base(2));
    let far = encoded.insn.is_call_far() || encoded.insn.is_call_far_indirect();
    let at = if far && setting.bits == 16 {
        // Where such a call meets the end of the segment, the host does not come back from it.
        (DATA + 0x900 + (at & 0xff0)).wrapping_sub(setting.base(2))
    } else {
        at
    };
    let push = encoded.insn.stack_pointer_increment() < 0 && shape == Shape::Crossing;
    let at = if push { at.wrapping_add(size) } else { at };
    // Aligned mostly: an alignment check would keep everything from running.
    let at = if shape == Shape::Crossing || random.one_in(4) { at } else { at & !15 };
    let wide = match setting.bits {
        64 => 8,
        _ if crate::machine::segment(setting.selectors[2]).attr.big() => 4,
        _ => 2,
    };
    set_low(&mut case.before.gpr[4], wide, at);
}

/// The number of a general register.
fn number(register: Register) -> usize {
    register.full_register().number()
}

/// Bytes of an address that the instruction forms.
fn address_bytes(insn: &Instruction, bits: u32) -> u32 {
    for register in [insn.memory_base(), insn.memory_index()] {
        if register.is_gpr() && register != Register::AL {
            return register.size() as u32;
        }
    }
    bits / 8
}

/// Makes the memory operands point somewhere; returns the linear address of the first.
fn address(case: &mut Case, encoded: &Encoded, random: &mut Random) -> Option<u64> {
    let insn = &encoded.insn;
    let mut first = None;
    for i in 0..insn.op_count() {
        let at = match insn.op_kind(i) {
            OpKind::Memory => operand(case, encoded, random),
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => {
                string(case, encoded, insn.op_kind(i), 6, segment_number(insn.memory_segment()), random)
            }
            OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI => {
                string(case, encoded, insn.op_kind(i), 7, segment_number(insn.memory_segment()), random)
            }
            OpKind::MemoryESRDI | OpKind::MemoryESEDI | OpKind::MemoryESDI => {
                string(case, encoded, insn.op_kind(i), 7, 0, random)
            }
            _ => continue,
        };
        first = first.or(at);
    }
    first
}

pub(super) fn segment_number(register: Register) -> usize {
    (register as usize).wrapping_sub(Register::ES as usize).min(5)
}

fn string(
    case: &mut Case,
    encoded: &Encoded,
    kind: OpKind,
    register: usize,
    segment: usize,
    random: &mut Random,
) -> Option<u64> {
    let size = match kind {
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => 8,
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => 4,
        _ => 2,
    };
    let at = target(encoded.shape, encoded.size.max(1), random);
    set_low(&mut case.before.gpr[register], size, at.wrapping_sub(encoded.setting.base(segment)));
    if encoded.insn.is_string_instruction() {
        set_low(&mut case.before.gpr[1], size, random.below(12) * random.below(4));
    }
    Some(at)
}

/// The operand that a ModRM byte or a displacement addresses.
fn operand(case: &mut Case, encoded: &Encoded, random: &mut Random) -> Option<u64> {
    let insn = &encoded.insn;
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let segment = segment_number(insn.memory_segment());
    let bytes = address_bytes(insn, encoded.setting.bits);
    let segment_base = encoded.setting.base(segment);
    let scale = insn.memory_index_scale() as u64;
    if matches!(index, Register::None) && matches!(base, Register::None)
        || base == Register::RIP
        || base == Register::EIP
    {
        return Some(insn.memory_displacement64().wrapping_add(segment_base));
    }
    if index.is_vector_register() {
        elements(case, insn, random);
    }
    if base == Register::None {
        // A few elements of the scale behind the displacement.
        let small = if encoded.shape == Shape::Crossing { 0 } else { random.below(8) };
        if index.is_gpr() {
            set_low(&mut case.before.gpr[number(index)], bytes, small);
        }
        return Some(insn.memory_displacement64().wrapping_add(small * scale).wrapping_add(segment_base));
    }
    if random.one_in(64) && encoded.setting.bits != 16 {
        // Wherever it leads: but not to where the two differ, the host's upper half and its landing page.
        let wild = random.bits() & 0xffff_7fff_ffff_f3ff & if bytes == 4 { 0xbfff_ffff } else { !0 };
        case.before.gpr[number(base)] = if wild >> 47 == 0x1_ffff { wild >> 20 } else { wild };
        return None;
    }
    let mut size = encoded.size;
    if insn.mnemonic() == iced_x86::Mnemonic::Xlatb {
        size = 1;
    }
    let at = target(if encoded.shape == Shape::Crossing { Shape::Crossing } else { Shape::Base }, size, random);
    let mut rest = insn.memory_displacement64();
    if index.is_gpr() {
        if random.one_in(2) {
            set_low(&mut case.before.gpr[number(index)], bytes, random.below(64));
        }
        let mask = if index == Register::AL { 0xff } else { u64::MAX };
        rest = rest.wrapping_add((case.before.gpr[number(index)] & mask).wrapping_mul(scale));
    }
    set_low(&mut case.before.gpr[number(base)], bytes, at.wrapping_sub(segment_base).wrapping_sub(rest));
    if bytes == 4 && random.one_in(8) && encoded.setting.bits == 64 {
        case.before.gpr[number(base)] &= 0xffff_ffff;
    }
    Some(at)
}

/// The indices of a gather.
fn elements(case: &mut Case, insn: &Instruction, random: &mut Random) {
    let n = insn.memory_index().number();
    let narrow =
        (0..insn.op_count()).any(|i| matches!(insn.code().op_code().op_kind(i), K::mem_vsib32x | K::mem_vsib32y));
    for at in [160 + 16 * n, 576 + 16 * n] {
        for lane in 0..if narrow { 4 } else { 2 } {
            let value = random.below(200) as i64 - 100;
            let bytes = value.to_le_bytes();
            let size = if narrow { 4 } else { 8 };
            case.before.xsave[at + lane * size..at + (lane + 1) * size].copy_from_slice(&bytes[..size]);
        }
    }
}

fn put(case: &mut Case, at: usize, bytes: &[u8]) {
    case.before.xsave[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Random x87, SSE and AVX state.
fn fpu(case: &mut Case, random: &mut Random) {
    let mxcsr = match random.below(3) {
        0 => 0x1f80,
        1 => 0x1f80 | random.bits() as u32 & 0xe07f,
        _ => random.bits() as u32 & 0xffff,
    };
    let fcw = match random.below(3) {
        0 => 0x37f,
        1 => 0x7f | random.bits() as u16 & 0x1f00,
        _ => 0x40 | random.bits() as u16 & 0x1f3f,
    };
    let mut fsw = random.bits() as u16 & 0x7f00;
    if random.one_in(2) {
        fsw |= random.bits() as u16 & 0x7f;
    }
    // An unmasked exception that is pending keeps nearly everything from running: seldom.
    if !random.one_in(16) {
        fsw &= !0x3f | fcw;
    }
    if fsw & !fcw & 0x3f != 0 {
        fsw |= 0x8080;
    }
    let ftw = match random.below(3) {
        0 => 0xff,
        1 => random.bits() as u8 | random.bits() as u8,
        _ => random.bits() as u8,
    };
    put(case, 0, &fcw.to_le_bytes());
    put(case, 2, &fsw.to_le_bytes());
    put(case, 4, &[ftw]);
    put(case, 24, &mxcsr.to_le_bytes());
    put(case, 28, &0xffffu32.to_le_bytes());
    for i in 0..8 {
        let value = random.f80();
        put(case, 32 + 16 * i, &value.to_le_bytes());
    }
    let registers = if case.bits == 64 { 16 } else { 8 };
    for i in 0..registers {
        let (low, high) = (random.vector(), random.vector());
        put(case, 160 + 16 * i, &low.to_le_bytes());
        put(case, 576 + 16 * i, &high.to_le_bytes());
    }
    put(case, 512, &[7]);
}

/// Where in the data a linear address is.
pub fn offset(linear: u64) -> Option<usize> {
    let at = linear.wrapping_sub(DATA);
    (at < DATA_BYTES as u64).then_some(at as usize)
}
