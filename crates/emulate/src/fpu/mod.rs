//! x87, MMX, SSE and AVX: what has to be checked before they run, and those that only move state.
//!
//! Every handler makes the architectural checks in the manuals' order (SDM vol. 2, 2.4 and 2.7; vol. 3, 13): the
//! instruction exists for this guest, CR0, CR4 and XCR0 allow it, no x87 exception is pending, the memory operand
//! can be addressed and is aligned. Instructions that move state, load and store control registers or save and
//! restore everything are then carried out here, on [`x86::Fpu`]; they are also the ones that reach device memory.
//! Arithmetic goes to [`Cpu::vector`], to which a host's own vector unit is the best implementation.
//!
//! Choices where the manuals leave one, or processors differ:
//! - An unmasked x87 exception is #MF whatever CR0.NE says: there is no FERR# pin, as in a VMX guest.
//! - The x87's instruction and data pointers are the guest's own and always saved and restored, pending exception or
//!   not, as Intel's processors do. Outside of 64-bit mode they carry the selector in bits 47:32, which is where the
//!   32-bit images have it; the 64-bit images then show it too.
//! - FOP is kept for each instruction that changes the pointers, as AMD's processors do.
//! - XINUSE is found by comparing with the initial state. XSAVEOPT has no modified optimisation.
//! - A gather that faults has not changed its registers.
//! - VEX instructions that the guest is not offered (EVEX, AMX, XOP, FMA4, 3DNow! too) are #UD.
use iced_x86::{Code, Instruction};

use crate::{Cpu, Handler};

mod avx;
mod check;
mod control;
mod environment;
mod fxsave;
mod gather;
mod logic;
mod masked;
mod mmx;
mod moves;
mod native;
mod pointers;
pub mod registers;
mod stack;
mod xsave;

#[cfg(test)]
mod tests;

pub use xsave::in_use;

/// The function that executes `insn`, if it belongs to this family.
pub fn lookup<C: Cpu>(insn: &Instruction) -> Option<Handler<C>> {
    moves::lookup(insn)
        .or_else(|| logic::lookup(insn))
        .or_else(|| avx::lookup(insn))
        .or_else(|| mmx::lookup(insn))
        .or_else(|| masked::lookup(insn))
        .or_else(|| gather::lookup(insn))
        .or_else(|| control::lookup(insn))
        .or_else(|| environment::lookup(insn))
        .or_else(|| fxsave::lookup(insn))
        .or_else(|| xsave::lookup(insn))
        .or_else(|| stack::lookup(insn))
        .or_else(|| native::lookup(insn))
}

/// What FOP shows for `insn`, encoded by `bytes`: the low three bits of the first opcode byte and the second
/// (SDM vol. 1, 8.1.9). None if it is not an x87 instruction.
pub(crate) fn x87_opcode(insn: &Instruction, bytes: &[u8]) -> Option<u16> {
    if !is_x87(insn.code()) {
        return None;
    }
    // No prefix has the value of an escape opcode.
    let at = bytes.iter().position(|b| (0xd8..=0xdf).contains(b))?;
    let second = *bytes.get(at + 1)?;
    Some(((bytes[at] & 7) as u16) << 8 | second as u16)
}

/// Whether `code` has an escape opcode, D8 to DF.
fn is_x87(code: Code) -> bool {
    (Code::Fadd_m32fp as u16..=Code::Fcomip_st0_sti as u16).contains(&(code as u16))
}
