//! Plain words for a guest that cannot go on.

use crate::kvm::Vcpu;
use crate::memory::GuestRam;
use kvm_bindings::{kvm_segment, kvm_sregs};
use std::fmt::Write;
use vm_memory::{Bytes, GuestAddress};

/// What `KVM_EXIT_INTERNAL_ERROR` means.
pub fn internal_error(suberror: u32, data: &[u64]) -> String {
    let mut text = match suberror {
        1 => "it could not emulate an instruction".to_owned(),
        2 => "a second exception arose while one was being delivered".to_owned(),
        3 => "it failed to deliver an event to the guest".to_owned(),
        4 => "the processor left the guest for an unknown reason".to_owned(),
        other => format!("internal error {other}"),
    };
    // For failed emulation: flags; if their lowest bit is set, a length and up to 15 bytes.
    if let (1, [flags, first, second, ..]) = (suberror, data)
        && flags & 1 != 0
    {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&second.to_le_bytes());
        let len = usize::from(bytes[0]).min(15);
        text.push_str(", its bytes are");
        for byte in &bytes[1..=len] {
            let _ = write!(text, " {byte:02x}");
        }
    } else if !data.is_empty() {
        let _ = write!(text, ", with data {data:x?}");
    }
    text
}

/// The registers of a vCPU and the code it is at, as lines of text.
pub fn registers(vcpu: &Vcpu, ram: &GuestRam) -> String {
    let (regs, sregs) = match (vcpu.regs(), vcpu.sregs()) {
        (Ok(regs), Ok(sregs)) => (regs, sregs),
        (Err(error), _) | (_, Err(error)) => return format!("  registers unknown: {error}"),
    };
    let mut text = String::new();
    let general = [
        ("rip", regs.rip),
        ("rflags", regs.rflags),
        ("rsp", regs.rsp),
        ("rbp", regs.rbp),
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("cr8", sregs.cr8),
        ("efer", sregs.efer),
    ];
    for line in general.chunks(4) {
        for (name, value) in line {
            let _ = write!(text, "  {name:<6} {value:016x}");
        }
        text.push('\n');
    }
    segments(&mut text, &sregs);
    code(&mut text, vcpu, ram, sregs.cs.base.wrapping_add(regs.rip));
    text.truncate(text.trim_end().len());
    text
}

fn segments(text: &mut String, sregs: &kvm_sregs) {
    let all: [(&str, &kvm_segment); 8] = [
        ("cs", &sregs.cs),
        ("ss", &sregs.ss),
        ("ds", &sregs.ds),
        ("es", &sregs.es),
        ("fs", &sregs.fs),
        ("gs", &sregs.gs),
        ("tr", &sregs.tr),
        ("ldtr", &sregs.ldt),
    ];
    for (name, s) in all {
        let _ = writeln!(
            text,
            "  {name:<6} {:04x} base {:016x} limit {:08x} type {:x} dpl {}{}{}{}",
            s.selector,
            s.base,
            s.limit,
            s.type_,
            s.dpl,
            if s.l != 0 {
                " 64-bit"
            } else if s.db != 0 {
                " 32-bit"
            } else {
                ""
            },
            if s.present == 0 { " not present" } else { "" },
            if s.unusable != 0 { " unusable" } else { "" },
        );
    }
    for (name, t) in [("gdtr", &sregs.gdt), ("idtr", &sregs.idt)] {
        let _ = writeln!(text, "  {name:<6}      base {:016x} limit {:08x}", t.base, t.limit);
    }
}

/// The bytes at the instruction pointer, as far as they can be found on its page.
fn code(text: &mut String, vcpu: &Vcpu, ram: &GuestRam, gva: u64) {
    let Ok(Some(gpa)) = vcpu.translate(gva) else { return };
    let mut bytes = [0; 16];
    let len = bytes.len().min((0x1000 - (gpa & 0xfff)) as usize);
    if ram.read_slice(&mut bytes[..len], GuestAddress(gpa)).is_ok() {
        let _ = write!(text, "  code  ");
        for byte in &bytes[..len] {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_emulation_shows_the_instruction() {
        let text = internal_error(1, &[1, u64::from_le_bytes([3, 0x0f, 0x0b, 0x90, 0, 0, 0, 0]), 0]);
        assert_eq!(text, "it could not emulate an instruction, its bytes are 0f 0b 90");
        let text = internal_error(1, &[1, 0xffff_ffff_ffff_ffff, u64::MAX]);
        assert!(text.ends_with(&" ff".repeat(15)));
        assert_eq!(internal_error(3, &[]), "it failed to deliver an event to the guest");
    }
}
