//! Whether two outcomes are the same, as far as the manuals define them.
use emulate::testing::{result_undefined, undefined_flags};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::{Vector, flags};

use crate::{
    case::{Case, Image, Outcome, PIECE, PIECES, end},
    layout::WRITABLE,
    machine::host_is_amd,
};

const PF: u64 = Vector::PF.0 as u64;
const AC: u64 = Vector::AC.0 as u64;

/// Instructions that access memory in several parts, in an order that is the processor's choice: which of them a page fault
/// names is not compared.
fn in_parts(insn: &Instruction) -> bool {
    use Mnemonic::*;
    // Ten bytes are eight and two.
    insn.memory_size().size() == 10
        || matches!(
            insn.mnemonic(),
            Retf | Iret
                | Iretd
                | Iretq
                | Cmpsb
                | Cmpsw
                | Cmpsd
                | Cmpsq
                | Movsb
                | Movsw
                | Movsd
                | Movsq
                | Pusha
                | Pushad
                | Popa
                | Popad
                | Enter
                | Fnstenv
                | Fstenv
                | Fldenv
                | Fnsave
                | Fsave
                | Frstor
                | Fxsave
                | Fxsave64
                | Fxrstor
                | Fxrstor64
                | Xsave
                | Xsave64
                | Xsavec
                | Xsavec64
                | Xsaveopt
                | Xsaveopt64
                | Xrstor
                | Xrstor64
                | Bound
                | Lds
                | Les
                | Lfs
                | Lgs
                | Lss
                | Call
                | Jmp
        )
}

/// Whether `native` is #GP for the address of a bit string whose offset in the segment is not canonical, though the linear
/// address is. The manuals speak of the linear address, and so do AMD's processors for every other operand; for BT and its kin with
/// the bit's number in a register they look at the offset as well.
fn bit_string_offset(case: &Case, insn: &Instruction, native: &Outcome) -> bool {
    use Mnemonic::*;
    let applies = native.end == u64::from(Vector::GP.0)
        && host_is_amd()
        && case.bits == 64
        && matches!(insn.mnemonic(), Bt | Bts | Btr | Btc)
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register;
    let Some(linear) = crate::show::operand_address(case, insn).filter(|_| applies) else { return false };
    let base = match insn.memory_segment() {
        Register::FS => case.before.bases[0],
        Register::GS => case.before.bases[1],
        _ => 0,
    };
    let (register, bytes) = (insn.op1_register(), insn.memory_size().size());
    let unused = 64 - 8 * bytes as u32;
    let number = (case.before.gpr[register.full_register().number()] << unused) as i64 >> unused;
    let offset =
        linear.wrapping_sub(base).wrapping_add((number >> (8 * bytes).ilog2()).wrapping_mul(bytes as i64) as u64);
    base != 0 && (offset as i64) << 16 >> 16 != offset as i64
}

/// What an instruction leaves that cannot be compared.
#[derive(Debug, Default)]
struct Ignored {
    /// General registers, a bit each.
    gpr: u16,
    /// Flags.
    flags: u64,
    /// Bytes of the memory operand.
    memory: Option<std::ops::Range<usize>>,
}

fn ignored(insn: &Instruction) -> Ignored {
    use Mnemonic::*;
    let none = Ignored::default();
    match insn.mnemonic() {
        // Time.
        Rdtsc | Rdtscp => Ignored { gpr: 1 | 4, ..none },
        // Chance; CF says whether there was some.
        Rdrand | Rdseed => Ignored { gpr: 1 << insn.op0_register().full_register().number(), flags: flags::CF, ..none },
        // MXCSR_MASK: the host's may have a bit that is not offered to guests.
        Fxsave | Fxsave64 | Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 => {
            Ignored { memory: Some(28..32), ..none }
        }
        _ => none,
    }
}

/// The first differences between what the host (`native`) and the software CPU (`ours`) made of `case`; None if there
/// are none. `address` is where the memory operand is.
pub fn difference(case: &Case, insn: &Instruction, image: &Image, native: &Outcome, ours: &Outcome) -> Option<String> {
    let mut all = Vec::new();
    if native.end == end::DIED {
        return Some("the child process died".into());
    }
    let m = insn.mnemonic();
    let masked = matches!(m, Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu);
    if masked && matches!(native.end, 12..=14 | 17) && (ours.end == end::COMPLETED || ours.end < 18) {
        // Whether bytes can fault that the mask leaves out is the processor's choice.
        return None;
    }
    let (theirs, mine) = (&native.after, &ours.after);
    if native.end != ours.end {
        // Which of a misaligned operand and an inaccessible one is reported is the processor's choice.
        let either = case.before.flags & flags::AC != 0
            && (native.end == AC || ours.end == AC)
            && native.end < end::COMPLETED
            && ours.end < end::COMPLETED;
        // Which part of memory is looked at first is the processor's choice too.
        let parts = in_parts(insn) && [native.end, ours.end].iter().all(|end| matches!(end, 12..=14 | 17));
        if !either && !parts && !bit_string_offset(case, insn, native) {
            all.push(format!("end {:#x}, native {:#x}", ours.end, native.end));
        }
    } else if native.end < end::COMPLETED {
        // Linux does not tell programs which addresses of its half of the address space are present.
        let hidden = if native.end == PF && native.cr2 >> 47 != 0 { 1 } else { 0 };
        let parts = native.end == PF && in_parts(insn);
        if (ours.error ^ native.error) & !hidden != 0 && !parts {
            all.push(format!("error code {:#x}, native {:#x}", ours.error, native.error));
        }
        if native.end == PF && ours.cr2 != native.cr2 && !parts {
            all.push(format!("CR2 {:#x}, native {:#x}", ours.cr2, native.cr2));
        }
    }
    if mine.rip != theirs.rip {
        all.push(format!("RIP {:#x}, native {:#x}", mine.rip, theirs.rip));
    }
    let completed = native.end == end::COMPLETED;
    let cl = case.before.gpr[1] as u8;
    if completed && result_undefined(insn, cl) {
        return None;
    }
    let ignored = ignored(insn);
    let undefined = if completed { undefined_flags(insn, cl) | ignored.flags } else { 0 };
    let compared = flags::STATUS | flags::DF | flags::AC | flags::ID | flags::NT | flags::IOPL | flags::IF;
    let mask = compared & !undefined;
    if (mine.flags ^ theirs.flags) & mask != 0 {
        all.push(format!("flags {:#x}, native {:#x} (of {mask:#x})", mine.flags & mask, theirs.flags & mask));
    }
    let (registers, mask) = if case.bits == 64 { (16, u64::MAX) } else { (8, 0xffff_ffff) };
    // Where POPA faults, processors may have loaded a part of the registers.
    let partial = !completed && matches!(m, Mnemonic::Popa | Mnemonic::Popad);
    for i in (0..registers).filter(|i| ignored.gpr >> i & 1 == 0 && !partial) {
        // Code of 32 bits does not see more of the stack pointer that IRETQ has given it.
        let mask = if i == 4 && theirs.selectors[1] != crate::layout::CS64 { 0xffff_ffff } else { mask };
        if (mine.gpr[i] ^ theirs.gpr[i]) & mask != 0 {
            all.push(format!("gpr{i} {:#x}, native {:#x}", mine.gpr[i] & mask, theirs.gpr[i] & mask));
        }
    }
    for (i, name) in ["ES", "CS", "SS", "DS", "FS", "GS"].iter().enumerate() {
        // A return from the host's kernel, at any time, may clear what is left in a null selector.
        let visible = |selector: u16| if selector < 4 { 0 } else { selector };
        if visible(mine.selectors[i]) != visible(theirs.selectors[i]) {
            all.push(format!("{name} {:#x}, native {:#x}", mine.selectors[i], theirs.selectors[i]));
        }
    }
    for (i, name) in ["FS", "GS"].iter().enumerate() {
        // What a null selector leaves in the base differs between processors, and nobody sees it outside of 64-bit mode.
        let null = case.bits != 64 && mine.selectors[4 + i] < 4;
        if mine.bases[i] != theirs.bases[i] && !null {
            all.push(format!("{name}.base {:#x}, native {:#x}", mine.bases[i], theirs.bases[i]));
        }
    }
    vector_state(insn, native, ours, &mut all);
    memory(case, insn, image, native, ours, &ignored, &mut all);
    if all.is_empty() { None } else { Some(all.join("; ")) }
}

fn word(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn vector_state(insn: &Instruction, native: &Outcome, ours: &Outcome, all: &mut Vec<String>) {
    let (x, y) = (&ours.after.xsave, &native.after.xsave);
    // A component in its initial configuration may be left out of the native image.
    let present = y[512];
    let mxcsr = |image: &[u8]| u32::from(word(image, 24)) | u32::from(word(image, 26)) << 16;
    // Beside an unmasked overflow or underflow, the host flags an inexact result only if the significand was rounded; the
    // software CPU always does.
    let imprecise = native.end == Vector::XM.0 as u64 && mxcsr(y) & !(mxcsr(y) >> 7) & 0x18 != 0;
    // These stop at the first of several steps that raises an unmasked exception; the software CPU does them all.
    let steps = native.end == Vector::XM.0 as u64
        && matches!(insn.mnemonic(), Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd);
    let compared = if steps {
        !0x3f
    } else if imprecise {
        !0x20
    } else {
        !0u32
    };
    if (mxcsr(x) ^ mxcsr(y)) & compared != 0 {
        all.push(format!("MXCSR {:#x}, native {:#x}", mxcsr(x), mxcsr(y)));
    }
    let (fcw, fsw, ftw) = if present & 1 != 0 { (word(y, 0), word(y, 2), y[4]) } else { (0x37f, 0, 0) };
    let name = format!("{:?}", insn.mnemonic());
    let compares = name.starts_with("Fcmov") || name.contains("comi") && name.starts_with('F');
    // C1: cleared by the manuals, left alone by AMD's processors and ours.
    let mask = if compares && !host_is_amd() { !0x200 } else { !0 };
    if (word(x, 0), word(x, 2) & mask, x[4]) != (fcw, fsw & mask, ftw) {
        all.push(format!(
            "FCW {:#x} FSW {:#x} FTW {:#x}, native {fcw:#x} {fsw:#x} {ftw:#x}",
            word(x, 0),
            word(x, 2),
            x[4]
        ));
    }
    let zero = [0; 16];
    let pick = |bit: u8, at: usize, len: usize| if present & bit != 0 { &y[at..at + len] } else { &zero[..len] };
    for i in 0..8 {
        let (mine, theirs) = (&x[32 + 16 * i..42 + 16 * i], pick(1, 32 + 16 * i, 10));
        if mine != theirs {
            all.push(format!("ST{i} {}, native {}", hex(mine), hex(theirs)));
        }
    }
    for i in 0..16 {
        let (mine, theirs) = (&x[160 + 16 * i..176 + 16 * i], pick(2, 160 + 16 * i, 16));
        if mine != theirs {
            all.push(format!("XMM{i} {}, native {}", hex(mine), hex(theirs)));
        }
        let (mine, theirs) = (&x[576 + 16 * i..592 + 16 * i], pick(4, 576 + 16 * i, 16));
        if mine != theirs {
            all.push(format!("YMM{i}H {}, native {}", hex(mine), hex(theirs)));
        }
    }
}

/// Bytes as one number.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

/// The changed pieces of an outcome as a list of bytes.
pub fn changes(image: &Image, outcome: &Outcome) -> Vec<(usize, u8)> {
    let mut list = Vec::new();
    for i in 0..(outcome.changed as usize).min(PIECES) {
        let at = outcome.places[i] as usize * PIECE;
        for (j, &byte) in outcome.pieces[i].iter().enumerate() {
            if image.0[at + j] != byte {
                list.push((at + j, byte));
            }
        }
    }
    list
}

fn memory(
    case: &Case,
    insn: &Instruction,
    image: &Image,
    native: &Outcome,
    ours: &Outcome,
    ignored: &Ignored,
    all: &mut Vec<String>,
) {
    let used = (native.changed as usize).min(PIECES);
    if native.changed == ours.changed
        && native.places[..used] == ours.places[..used]
        && native.pieces[..used] == ours.pieces[..used]
    {
        return;
    }
    // These write in several steps, and where a fault leaves what is below the stack is nobody's business.
    let steps = matches!(insn.mnemonic(), Mnemonic::Pusha | Mnemonic::Pushad | Mnemonic::Enter);
    if steps && native.end < end::COMPLETED {
        return;
    }
    let operand = crate::show::operand_address(case, insn).map(|linear| linear.wrapping_sub(crate::layout::DATA));
    let counts = |(at, _): &(usize, u8)| {
        let from_operand = operand.map(|operand| (*at as u64).wrapping_sub(operand) as usize);
        !matches!((&ignored.memory, from_operand), (Some(range), Some(at)) if range.contains(&at))
    };
    let (mut mine, mut theirs) = (changes(image, ours), changes(image, native));
    mine.retain(counts);
    theirs.retain(counts);
    if mine == theirs {
        return;
    }
    let first = mine
        .iter()
        .zip(&theirs)
        .find(|(a, b)| a != b)
        .map(|(a, b)| a.0.min(b.0))
        .or_else(|| mine.get(theirs.len()).or_else(|| theirs.get(mine.len())).map(|change| change.0))
        .unwrap_or(0);
    let view = |list: &[(usize, u8)]| {
        let mut bytes = image.0[first..(first + 16).min(WRITABLE as usize)].to_vec();
        for &(at, byte) in list {
            if let Some(slot) = at.checked_sub(first).and_then(|i| bytes.get_mut(i)) {
                *slot = byte;
            }
        }
        bytes
    };
    all.push(format!(
        "memory at +{first:#x}: {:02x?}, native {:02x?} ({} and {} bytes changed)",
        view(&mine),
        view(&theirs),
        mine.len(),
        theirs.len()
    ));
}
