//! Cases and outcomes as text.
use std::fmt::Write;

use iced_x86::{Formatter, Instruction, IntelFormatter, Register};

use crate::{
    case::{Case, Image, Outcome, Registers, end},
    compare::{changes, hex},
    generate::Setting,
};

/// The disassembled instruction.
pub fn text(insn: &Instruction) -> String {
    let mut out = String::new();
    IntelFormatter::new().format(insn, &mut out);
    out
}

/// The linear address of the memory operand, if there is one.
pub fn operand_address(case: &Case, insn: &Instruction) -> Option<u64> {
    let setting = Setting { bits: case.bits, selectors: case.before.selectors, bases: case.before.bases };
    let operand = (0..insn.op_count()).find(|&i| {
        use iced_x86::OpKind::*;
        matches!(
            insn.op_kind(i),
            Memory
                | MemorySegSI
                | MemorySegESI
                | MemorySegRSI
                | MemorySegDI
                | MemorySegEDI
                | MemorySegRDI
                | MemoryESDI
                | MemoryESEDI
                | MemoryESRDI
        )
    })?;
    insn.virtual_address(operand, 0, |register, _, _| {
        Some(match register {
            Register::ES | Register::CS | Register::SS | Register::DS | Register::FS | Register::GS => {
                setting.base(register as usize - Register::ES as usize)
            }
            r if r.is_gpr() => {
                let value = case.before.gpr[r.full_register().number()];
                value & u64::MAX >> (64 - 8 * r.size())
            }
            _ => 0,
        })
    })
}

/// How an outcome ended.
pub fn ending(outcome: &Outcome) -> String {
    match outcome.end {
        end::COMPLETED => "completed".into(),
        end::DIED => "the process died".into(),
        end::LEFT => "left the guest".into(),
        vector => format!("exception {vector}, error code {:#x}, CR2 {:#x}", outcome.error, outcome.cr2),
    }
}

/// The registers; those of `other` that are the same are left out, and those that are zero.
fn registers(out: &mut String, of: &Registers, other: Option<&Registers>) {
    const NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let shown = |is: u64, was: Option<u64>| if other.is_some() { was != Some(is) } else { is != 0 };
    let mut words: Vec<(String, u64, Option<u64>)> = Vec::new();
    for (i, name) in NAMES.iter().enumerate() {
        words.push((name.to_string(), of.gpr[i], other.map(|o| o.gpr[i])));
    }
    words.push(("rip".into(), of.rip, other.map(|o| o.rip)));
    words.push(("rflags".into(), of.flags, other.map(|o| o.flags)));
    for (i, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        words.push((name.to_string(), of.selectors[i] as u64, other.map(|o| o.selectors[i] as u64)));
    }
    for (i, name) in ["fs.base", "gs.base"].iter().enumerate() {
        words.push((name.to_string(), of.bases[i], other.map(|o| o.bases[i])));
    }
    for (name, is, was) in words {
        if shown(is, was) {
            let _ = write!(out, " {name}={is:x}");
        }
    }
    let pieces = [("fcw", 0, 2), ("fsw", 2, 2), ("ftw", 4, 1), ("mxcsr", 24, 4)]
        .into_iter()
        .map(|(name, at, len)| (name.to_string(), at, len))
        .chain((0..8).map(|i| (format!("st{i}"), 32 + 16 * i, 10)))
        .chain((0..16).map(|i| (format!("xmm{i}"), 160 + 16 * i, 16)))
        .chain((0..16).map(|i| (format!("ymm{i}h"), 576 + 16 * i, 16)));
    for (name, at, len) in pieces {
        let is = &of.xsave[at..at + len];
        let same = match other {
            Some(other) => other.xsave[at..at + len] == *is,
            None => is.iter().all(|&byte| byte == 0),
        };
        if !same {
            let _ = write!(out, " {name}={}", hex(is));
        }
    }
}

/// Everything about a case and what came of it on both sides.
pub fn report(case: &Case, insn: &Instruction, image: &Image, native: &Outcome, ours: &Outcome) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "  {:?}, {}-bit code: {}", insn.code(), case.bits, text(insn));
    let _ = writeln!(out, "  bytes {:02x?} at {:#x}", case.bytes(), case.before.rip);
    let _ = write!(out, "  before:");
    registers(&mut out, &case.before, None);
    let _ = writeln!(out);
    if let Some(at) = operand_address(case, insn) {
        let from = at.wrapping_sub(crate::layout::DATA);
        if let Some(bytes) = usize::try_from(from)
            .ok()
            .and_then(|from| memory(case, image).get(from..from.saturating_add(32)).map(<[u8]>::to_vec))
        {
            let _ = writeln!(out, "  memory at {at:#x}: {bytes:02x?}");
        }
    }
    for (who, outcome) in [("native", native), ("software CPU", ours)] {
        let _ = write!(out, "  {who}: {};", ending(outcome));
        registers(&mut out, &outcome.after, Some(&case.before));
        let _ = writeln!(out);
        let list = changes(image, outcome);
        if !list.is_empty() {
            let shown: Vec<String> = list.iter().take(64).map(|(at, byte)| format!("+{at:x}:{byte:02x}")).collect();
            let _ = writeln!(out, "    memory: {}", shown.join(" "));
        }
    }
    out
}

/// The data as the instruction finds them.
fn memory(case: &Case, image: &Image) -> Vec<u8> {
    let mut bytes = image.0.to_vec();
    let (at, len) = (case.patch_at as usize, case.patch_len as usize);
    bytes[at..at + len].copy_from_slice(&case.patch[..len]);
    bytes
}
