//! What single instructions need to do something worth comparing: targets of branches, images to be loaded, selectors,
//! operands that are equal, quotients that fit.
use iced_x86::{Mnemonic, OpKind, Register};
use x86::flags;

use super::{
    Encoded, Random, form,
    state::{offset, set_low},
};
use crate::{
    case::{Case, Image, PATCH},
    layout::{BASED_CS32, BASED_DS32, CODE, CS16, CS32, CS64, DOWN16, DS16, FLAT, WRITABLE, selector},
};

/// Where targets of branches begin, from the start of the code: behind the instruction itself and the jump out that follows it,
/// which may reach over the middle.
const TARGETS: u64 = 0x1040;

/// A selector and an offset for a far branch from the code segment `from`.
pub fn far_target(from: u16, random: &mut Random) -> (u16, u64) {
    let offset = TARGETS + random.below(0xf00);
    let to = random.of(&[CS64, CS32, CS16, BASED_CS32, CS16, BASED_CS32, CS32, FLAT, 0, 3, 0x10, selector(9), 0x7fff]);
    // Whether a call to 64-bit code pushes with the old base of the stack or with none is told by no manual.
    let to = if to == CS64 && from & 4 != 0 { CS32 } else { to };
    let base = if to & 4 != 0 { 0 } else { CODE };
    (to, base + offset)
}

/// A selector to be loaded into a segment register or to be asked about.
fn data_selector(random: &mut Random) -> u16 {
    if random.one_in(16) {
        // Nothing is behind the end of either table: the host's own descriptors are there.
        return random.of(&[0xffff, 0x7ff4, 0x0800, 0xfff8, 4 | 15 << 3, 7 | 100 << 3]);
    }
    if random.one_in(3) {
        return random.of(&[FLAT, 0x28, 0x2a, CS32, CS64, 0, 1, 2, 3, 0x10, 0x18, 0x08]);
    }
    let rpl = if random.one_in(4) { random.below(4) as u16 } else { 3 };
    selector(random.below(11) as usize) & !3 | rpl
}

fn patch(case: &mut Case, at: u64, bytes: &[u8]) {
    let Some(at) = offset(at) else { return };
    let len = bytes.len().min(PATCH).min((WRITABLE as usize).saturating_sub(at));
    case.patch_at = at as u32;
    case.patch_len = len as u32;
    case.patch[..len].copy_from_slice(&bytes[..len]);
}

/// The linear address of the top of the stack.
fn stack_top(case: &Case, encoded: &Encoded) -> u64 {
    let rsp = case.before.gpr[4];
    let wide = match encoded.setting.bits {
        64 => u64::MAX,
        _ if crate::machine::segment(case.before.selectors[2]).attr.big() => 0xffff_ffff,
        _ => 0xffff,
    };
    (rsp & wide).wrapping_add(encoded.setting.base(2))
}

/// Makes `case` worth executing; `address` is where its first memory operand is.
pub fn prepare(case: &mut Case, encoded: &Encoded, address: Option<u64>, image: &Image, random: &mut Random) {
    use Mnemonic::*;
    let insn = &encoded.insn;
    let m = insn.mnemonic();
    let gpr = &mut case.before.gpr;
    match m {
        Div | Idiv if random.one_in(2) => {
            // A dividend that is no longer than the divisor.
            if encoded.size == 1 || insn.op0_register().is_gpr8() {
                gpr[0] = gpr[0] & !0xff00 | if random.one_in(2) { 0 } else { (gpr[0] as i8 as u16 & 0xff00) as u64 };
            } else {
                gpr[2] = if random.one_in(2) { 0 } else { random.of(&[(gpr[0] as i64 >> 63) as u64, !0, 1]) };
            }
        }
        Bt | Bts | Btr | Btc if insn.op1_kind() == OpKind::Register && insn.op0_kind() == OpKind::Memory => {
            let r = insn.op1_register().full_register().number();
            let bases = [insn.memory_base(), insn.memory_index()];
            if bases.iter().all(|b| !b.is_gpr() || b.full_register().number() != r) && !random.one_in(8) {
                gpr[r] = (random.below(0x1000) as i64 - 0x800) as u64;
            }
        }
        Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz if random.one_in(2) => gpr[1] = random.below(3),
        Pcmpestri | Pcmpestrm | Vpcmpestri | Vpcmpestrm | Pcmpestri64 | Pcmpestrm64 | Vpcmpestri64 | Vpcmpestrm64 => {
            for r in [0, 2] {
                if random.one_in(2) {
                    gpr[r] = (random.below(40) as i64 - 20) as u64;
                }
            }
        }
        Cmpxchg | Cmpxchg8b | Cmpxchg16b => equal(case, encoded, address, image, random),
        Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 | Xrstor | Xrstor64 => {
            // The host has state components that guests do not have.
            gpr[0] = gpr[0] & !0xffff_ffff | if random.one_in(2) { 7 } else { random.below(8) };
            gpr[2] &= !0xffff_ffff;
            if matches!(m, Xrstor | Xrstor64)
                && let Some(at) = address
            {
                let image = extended(random);
                patch(case, at, &image);
            }
        }
        Fxrstor | Fxrstor64 => {
            if let Some(at) = address {
                let image = legacy(random);
                patch(case, at, &image);
            }
        }
        Ldmxcsr | Vldmxcsr => {
            if let Some(at) = address {
                let value = mxcsr(random);
                patch(case, at, &value.to_le_bytes());
            }
        }
        Lds | Les | Lfs | Lgs | Lss => {
            if let Some(at) = address {
                let mut bytes = random.bits().to_le_bytes().to_vec();
                let size = encoded.size as usize - 2;
                bytes.extend([0; 8]);
                bytes[size..size + 2].copy_from_slice(&data_selector(random).to_le_bytes());
                patch(case, at, &bytes[..size + 2]);
            }
        }
        Lar | Lsl | Verr | Verw | Arpl => {
            let source = insn.op_count() - 1;
            let selector = data_selector(random);
            let memory = [insn.memory_base(), insn.memory_index()];
            for i in [0, source] {
                let register = insn.op_register(i).full_register();
                if insn.op_kind(i) == OpKind::Register && memory.iter().all(|r| r.full_register() != register) {
                    set_low(&mut gpr[register.number()], 2, selector as u64);
                }
            }
            if let Some(at) = address {
                patch(case, at, &selector.to_le_bytes());
            }
        }
        Mov if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() => {
            let selector = data_selector(random);
            if insn.op1_kind() == OpKind::Register {
                set_low(&mut gpr[insn.op1_register().full_register().number()], 2, selector as u64);
            } else if let Some(at) = address {
                patch(case, at, &selector.to_le_bytes());
            }
        }
        Pop if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() => {
            let at = stack_top(case, encoded);
            let mut bytes = random.bits().to_le_bytes();
            bytes[..2].copy_from_slice(&data_selector(random).to_le_bytes());
            patch(case, at, &bytes);
        }
        Popf | Popfd | Popfq => {
            // Not the trap flag, which ends the next instruction.
            let at = stack_top(case, encoded);
            let value = random.bits() & !flags::TF;
            patch(case, at, &value.to_le_bytes());
        }
        Enter | Leave => {
            let at = super::encode::target(encoded.shape, 8, random).wrapping_sub(encoded.setting.base(2));
            gpr[5] = if random.one_in(8) { gpr[5] } else { at };
        }
        Bound => {
            if let Some(at) = address
                && random.one_in(2)
            {
                let value = random.below(0x100) as i64 - 0x80;
                let half = encoded.size as usize / 2;
                let mut bytes = (value - random.below(20) as i64).to_le_bytes()[..half].to_vec();
                bytes.extend_from_slice(&(value + random.below(20) as i64).to_le_bytes()[..half]);
                if insn.op0_register().full_register() != insn.memory_base().full_register() {
                    gpr[insn.op0_register().full_register().number()] = value as u64;
                }
                patch(case, at, &bytes);
            }
        }
        Int3 => case.lands = 0,
        Int if insn.immediate8() == 3 => case.lands = 0,
        _ if insn.is_string_instruction() => strings(case, encoded, address, random),
        _ if form::is_flow(insn.code()) => flow(case, encoded, address, random),
        _ => {}
    }
}

fn mxcsr(random: &mut Random) -> u32 {
    // Bit 17 exists on AMD's processors, but is not offered to guests.
    if random.one_in(16) { random.bits() as u32 & !(1 << 17) } else { random.bits() as u32 & 0xffff }
}

/// Memory that is what the instruction compares it with.
fn equal(case: &mut Case, encoded: &Encoded, address: Option<u64>, image: &Image, random: &mut Random) {
    let insn = &encoded.insn;
    if random.one_in(2) {
        return;
    }
    if insn.op0_kind() == OpKind::Register {
        case.before.gpr[0] = case.before.gpr[insn.op0_register().full_register().number()];
        return;
    }
    let Some(at) = address.and_then(offset) else { return };
    let uses = |r: usize| {
        [insn.memory_base(), insn.memory_index()].iter().any(|b| b.is_gpr() && b.full_register().number() == r)
    };
    let mut bytes = [0; 16];
    let end = (at + 16).min(image.0.len());
    bytes[..end - at].copy_from_slice(&image.0[at..end]);
    let value = u128::from_le_bytes(bytes);
    let (low, high) = match insn.mnemonic() {
        Mnemonic::Cmpxchg => (value as u64, case.before.gpr[2]),
        Mnemonic::Cmpxchg8b => (value as u32 as u64, (value >> 32) as u32 as u64),
        _ => (value as u64, (value >> 64) as u64),
    };
    if !uses(0) {
        case.before.gpr[0] = low;
    }
    if !uses(2) {
        case.before.gpr[2] = high;
    }
}

/// Equal strings, mostly, for those that compare.
fn strings(case: &mut Case, encoded: &Encoded, address: Option<u64>, random: &mut Random) {
    let m = format!("{:?}", encoded.insn.mnemonic());
    if !(m.starts_with("Cmps") || m.starts_with("Scas")) || random.one_in(2) {
        return;
    }
    let Some(at) = address else { return };
    let byte = random.bits() as u8;
    case.before.gpr[0] = u64::from_le_bytes([byte; 8]);
    let mut bytes = [byte; 768];
    for _ in 0..random.below(8) {
        bytes[random.below(768) as usize] = random.bits() as u8;
    }
    patch(case, at.wrapping_sub(384).max(crate::layout::DATA), &bytes);
    if m.starts_with("Cmps") && random.one_in(2) && encoded.insn.memory_segment() == Register::DS {
        // The other string into the same stretch.
        case.before.gpr[7] = case.before.gpr[6].wrapping_add(random.below(64)).wrapping_sub(32);
    }
}

/// Where branches, calls and returns lead.
fn flow(case: &mut Case, encoded: &Encoded, address: Option<u64>, random: &mut Random) {
    use Mnemonic::*;
    let insn = &encoded.insn;
    let bits = encoded.setting.bits;
    let near = CODE - encoded.setting.code_base() + TARGETS + random.below(0xf00);
    let far = far_target(encoded.setting.selectors[1], random);
    let top = stack_top(case, encoded);
    match insn.mnemonic() {
        Jmp | Call if insn.op0_kind() == OpKind::Register => {
            let r = insn.op0_register().full_register().number();
            let wide = insn.op0_register().size() as u32;
            if r != 4 || insn.mnemonic() == Jmp {
                set_low(&mut case.before.gpr[r], wide, near);
            } else {
                // The stack is called; what lies there must end at once.
                let target = case.before.gpr[4] & u64::MAX >> (64 - 8 * wide);
                patch(case, target.wrapping_add(encoded.setting.code_base()), &[0xcc]);
            }
        }
        Jmp | Call if insn.op0_kind() == OpKind::Memory => {
            let Some(at) = address else { return };
            let mut bytes = [0; 10];
            if insn.is_jmp_far_indirect() || insn.is_call_far_indirect() {
                let size = encoded.size as usize - 2;
                bytes[..size].copy_from_slice(&far.1.to_le_bytes()[..size]);
                bytes[size..size + 2].copy_from_slice(&far.0.to_le_bytes());
                patch(case, at, &bytes[..size + 2]);
            } else {
                patch(case, at, &near.to_le_bytes()[..encoded.size as usize]);
            }
        }
        Ret => patch(case, top, &near.to_le_bytes()),
        Retf | Iret | Iretd | Iretq => {
            let size = insn.code().op_code().operand_size() as usize / 8;
            let size = if size == 0 { bits as usize / 8 } else { size };
            let mut bytes = [0u8; 40];
            let flags = random.bits() & !flags::TF;
            let ss =
                if random.one_in(4) { data_selector(random) } else { random.of(&[FLAT, DS16, DOWN16, BASED_DS32]) };
            let words = if insn.mnemonic() == Retf {
                [far.1, far.0 as u64, random.bits(), random.bits(), 0]
            } else {
                [far.1, far.0 as u64, flags, random.bits() & 0x7fff_ffff_ffff, ss as u64]
            };
            for (i, word) in words.iter().enumerate() {
                bytes[i * size..(i + 1) * size].copy_from_slice(&word.to_le_bytes()[..size]);
            }
            patch(case, top, &bytes[..5 * size]);
        }
        _ => {}
    }
}

/// What FXRSTOR loads.
fn legacy(random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..32).flat_map(|_| random.vector().to_le_bytes()).collect();
    for i in 0..8 {
        bytes[32 + 16 * i..48 + 16 * i].copy_from_slice(&random.f80().to_le_bytes());
    }
    bytes[..24].copy_from_slice(&[0; 24]);
    bytes[..5].copy_from_slice(&random.bits().to_le_bytes()[..5]);
    bytes[24..28].copy_from_slice(&mxcsr(random).to_le_bytes());
    bytes
}

/// What XRSTOR loads.
fn extended(random: &mut Random) -> Vec<u8> {
    let mut bytes = legacy(random);
    bytes.extend((0..20).flat_map(|_| random.vector().to_le_bytes()));
    bytes[512..576].fill(0);
    bytes[512] = random.below(8) as u8;
    if random.one_in(2) {
        // The compacted form.
        bytes[520] = random.below(8) as u8 | if random.one_in(4) { 0 } else { bytes[512] };
        bytes[527] = 0x80;
    }
    if random.one_in(16) {
        // A bit that has to be clear; not one of a component that only the host has.
        let at = 512 + random.below(64) as usize;
        bytes[at] |= random.of(&[1, 8, 0x10]);
    }
    bytes
}
