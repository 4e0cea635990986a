//! The interrupt handlers of the standard guest: each records what it sees and then does what the word at [`RESUME`]
//! says. A record holds what the processor pushed, and CR2.
//!
//! The log is a count (u64 at [`LOG`]), the resume word (u64 at [`RESUME`]), a scratch word, and records of eight u64
//! from [`RECORDS`] on: vector, error code, RIP, CS, RFLAGS, RSP, SS, CR2. Without a change of privilege a 32-bit or
//! real-mode processor pushes no stack pointer: RSP and SS are 0 then.
use iced_x86::{IcedError, code_asm::*};

use super::{
    image::Image,
    layout::{COMMON, IDT, IVT, LOG, STACK, STUBS, sel},
    segments::gate,
};

/// What a handler does after it has recorded: 0 stops with HLT, all registers but RSP as they were; 1 returns with
/// IRET; an address goes on there, at level 0 with a fresh stack.
pub const RESUME: u64 = LOG + 8;
const SCRATCH: u64 = LOG + 16;
/// First record.
pub const RECORDS: u64 = LOG + 64;
/// Records that fit; the handler stops when there are more.
pub const CAPACITY: u64 = 63;

/// Whether the processor pushes an error code for `vector` (SDM vol. 3, table 6-1).
pub fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Writes stubs, common code and the table for a guest whose handlers run with `bits` (16: real mode).
pub fn install(image: &mut Image, bits: u32) {
    for vector in 0..=255u8 {
        let at = STUBS + 16 * u64::from(vector);
        let mut stub = Vec::new();
        if bits == 16 {
            stub.extend([0x68, vector, 0]); // push imm16
            let next = at + 6;
            stub.push(0xe9); // jmp rel16
            stub.extend(((COMMON - next) as u16).to_le_bytes());
            image.write32(IVT + 4 * u64::from(vector), at as u32);
        } else {
            if !has_error_code(vector) {
                stub.extend([0x6a, 0]); // push 0
            }
            stub.extend([0x68, vector, 0, 0, 0]); // push imm32
            let next = at + stub.len() as u64 + 5;
            stub.push(0xe9); // jmp rel32
            stub.extend(((COMMON - next) as u32).to_le_bytes());
            let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
            set_gate(image, bits, vector, sel_of(bits), at, 0x8e | dpl << 5, 0);
        }
        image.write(at, &stub);
    }
    let mut a = CodeAssembler::new(bits).expect("16, 32 or 64 bits");
    match bits {
        16 => common16(&mut a),
        32 => common32(&mut a),
        _ => common64(&mut a),
    }
    .expect("the handler can be encoded");
    image.write(COMMON, &a.assemble(COMMON).expect("the handler can be encoded"));
}

fn sel_of(bits: u32) -> u16 {
    if bits == 32 { sel::CODE32 } else { sel::CODE }
}

/// Writes one gate of the table. `access` is P, DPL and type; `ist` counts in 64-bit tables only.
pub fn set_gate(image: &mut Image, bits: u32, vector: u8, selector: u16, offset: u64, access: u8, ist: u8) {
    let low = gate(selector, offset, access, ist);
    if bits == 64 {
        let at = IDT + 16 * u64::from(vector);
        image.write64(at, low);
        image.write64(at + 8, offset >> 32);
    } else {
        image.write64(IDT + 8 * u64::from(vector), low);
    }
}

const MASK: i32 = 64;

fn common64(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut stop, mut back, mut halt) = (a.create_label(), a.create_label(), a.create_label());
    for r in [rax, rbx, rcx] {
        a.push(r)?;
    }
    a.mov(ebx, LOG as u32)?;
    a.mov(rax, qword_ptr(rbx))?;
    a.cmp(rax, CAPACITY as i32)?;
    a.jae(stop)?;
    a.inc(qword_ptr(rbx))?;
    a.shl(rax, 6)?;
    a.lea(rcx, qword_ptr(rbx + rax + MASK))?;
    for word in 0..7 {
        a.mov(rax, qword_ptr(rsp + 24 + 8 * word))?;
        a.mov(qword_ptr(rcx + 8 * word), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rcx + 56), rax)?;
    a.mov(rax, qword_ptr(rbx + 8))?;
    a.test(rax, rax)?;
    a.je(stop)?;
    a.cmp(rax, 1)?;
    a.je(back)?;
    a.mov(qword_ptr(rbx + 16), rax)?;
    for r in [rcx, rbx, rax] {
        a.pop(r)?;
    }
    a.mov(esp, STACK as u32)?;
    a.jmp(qword_ptr(SCRATCH))?;
    a.set_label(&mut back)?;
    for r in [rcx, rbx, rax] {
        a.pop(r)?;
    }
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut stop)?;
    for r in [rcx, rbx, rax] {
        a.pop(r)?;
    }
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)
}

fn common32(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut inner = a.create_label();
    let (mut stop, mut back, mut halt) = (a.create_label(), a.create_label(), a.create_label());
    a.push(ds)?;
    for r in [eax, ebx, ecx] {
        a.push(r)?;
    }
    a.mov(eax, u32::from(sel::USER_DATA))?; // IRET to level 3 would take a segment of level 0 away
    a.mov(ds, eax)?;
    a.mov(ebx, LOG as u32)?;
    a.mov(eax, dword_ptr(ebx))?;
    a.cmp(eax, CAPACITY as i32)?;
    a.jae(stop)?;
    a.inc(dword_ptr(ebx))?;
    a.shl(eax, 6)?;
    a.lea(ecx, dword_ptr(ebx + eax + MASK))?;
    for word in 0..5 {
        a.mov(eax, dword_ptr(esp + 16 + 4 * word))?;
        if word == 3 {
            a.movzx(eax, ax)?; // the upper half of a pushed selector is whatever it was
        }
        a.mov(dword_ptr(ecx + 8 * word), eax)?;
    }
    // A stack pointer is there when the privilege changed, or virtual-8086 mode was left.
    a.test(dword_ptr(esp + 16 + 16), 1 << 17)?;
    let mut outer = a.create_label();
    a.jne(outer)?;
    a.test(byte_ptr(esp + 16 + 12), 3)?;
    a.je(inner)?;
    a.set_label(&mut outer)?;
    a.mov(eax, dword_ptr(esp + 16 + 20))?;
    a.mov(dword_ptr(ecx + 40), eax)?;
    a.movzx(eax, word_ptr(esp + 16 + 24))?;
    a.mov(dword_ptr(ecx + 48), eax)?;
    a.set_label(&mut inner)?;
    a.mov(eax, cr2)?;
    a.mov(dword_ptr(ecx + 56), eax)?;
    a.mov(eax, dword_ptr(ebx + 8))?;
    a.test(eax, eax)?;
    a.je(stop)?;
    a.cmp(eax, 1)?;
    a.je(back)?;
    a.mov(dword_ptr(ebx + 16), eax)?;
    for r in [ecx, ebx, eax] {
        a.pop(r)?;
    }
    a.add(esp, 4)?; // DS stays the handlers' own
    a.mov(esp, STACK as u32)?;
    a.jmp(dword_ptr(SCRATCH))?;
    a.set_label(&mut back)?;
    for r in [ecx, ebx, eax] {
        a.pop(r)?;
    }
    a.pop(ds)?;
    a.add(esp, 8)?;
    a.iretd()?;
    a.set_label(&mut stop)?;
    for r in [ecx, ebx, eax] {
        a.pop(r)?;
    }
    a.pop(ds)?;
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)
}

fn common16(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut stop, mut back, mut halt) = (a.create_label(), a.create_label(), a.create_label());
    a.push(ds)?;
    for r in [ax, bx, bp] {
        a.push(r)?;
    }
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(bp, sp)?;
    a.mov(bx, LOG as u32)?;
    a.mov(ax, word_ptr(bx))?;
    a.cmp(ax, CAPACITY as i32)?;
    a.jae(stop)?;
    a.inc(word_ptr(bx))?;
    a.shl(ax, 6)?;
    a.add(bx, ax)?;
    // Vector, then IP, CS and FLAGS: there is no error code.
    for (from, to) in [(8, 0), (10, 16), (12, 24), (14, 32)] {
        a.mov(ax, word_ptr(bp + from))?;
        a.mov(word_ptr(bx + (MASK + to)), ax)?;
    }
    a.mov(ax, word_ptr(RESUME))?;
    a.test(ax, ax)?;
    a.je(stop)?;
    a.cmp(ax, 1)?;
    a.je(back)?;
    a.mov(word_ptr(SCRATCH), ax)?;
    for r in [bp, bx, ax] {
        a.pop(r)?;
    }
    a.mov(sp, STACK as u32)?;
    a.jmp(word_ptr(SCRATCH))?;
    a.set_label(&mut back)?;
    for r in [bp, bx, ax] {
        a.pop(r)?;
    }
    a.pop(ds)?;
    a.add(sp, 2)?;
    a.iret()?;
    a.set_label(&mut stop)?;
    for r in [bp, bx, ax] {
        a.pop(r)?;
    }
    a.pop(ds)?;
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)
}
