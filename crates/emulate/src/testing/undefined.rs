//! What the manuals leave undefined, for comparisons with a processor.
use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};
use x86::flags;

/// Bits of an operand and a masked count, of a shift or rotation. `cl` is what CL holds.
fn shift_count(insn: &Instruction, cl: u8) -> Option<(u8, u8)> {
    use Mnemonic::*;
    if !matches!(insn.mnemonic(), Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd) {
        return None;
    }
    let by_register = insn.op_kind(insn.op_count() - 1) == OpKind::Register;
    let count = if by_register { cl } else { insn.immediate8() };
    let size = match insn.op0_kind() {
        OpKind::Memory => insn.memory_size().size() as u8,
        _ => insn.op0_register().size() as u8,
    };
    Some((size * 8, count & if size == 8 { 63 } else { 31 }))
}

/// The flags that an instruction leaves undefined when it completes, if CL held `cl`.
pub fn undefined_flags(insn: &Instruction, cl: u8) -> u64 {
    let bits = [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ];
    let mut mask = 0;
    for (theirs, ours) in bits {
        if insn.rflags_undefined() & theirs != 0 {
            mask |= ours;
        }
    }
    if let Some((bits, count)) = shift_count(insn, cl) {
        if count == 0 {
            return 0;
        }
        if count != 1 {
            mask |= flags::OF;
        }
        if !matches!(insn.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr) {
            mask |= flags::AF;
            if count >= bits && insn.mnemonic() != Mnemonic::Sar {
                mask |= flags::CF;
            }
        }
    }
    mask
}

/// Whether even the result is undefined, if CL held `cl`: a double shift of 16 bits by more.
pub fn result_undefined(insn: &Instruction, cl: u8) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
        && shift_count(insn, cl).is_some_and(|(bits, count)| count > bits)
}
