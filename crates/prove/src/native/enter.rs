//! The trampoline: loads all registers, jumps to the instruction, and stores all registers when it comes back, through
//! the jump behind the instruction or through a signal.
use std::{arch::global_asm, mem::offset_of};

use crate::{
    case::{Case, Outcome, Registers, end},
    layout::{CS64, FLAT, LANDING},
};

global_asm!(
    ".pushsection .bss",
    ".balign 16",
    "prove_far: .quad 0",
    "prove_host_rsp: .quad 0",
    "prove_host_fs: .quad 0",
    "prove_case: .quad 0",
    "prove_outcome: .quad 0",
    "prove_rsp: .quad 0",
    "prove_rdi: .quad 0",
    ".popsection",
    ".pushsection .text",
    ".global prove_enter, prove_leave, prove_return, prove_signal, prove_case, prove_outcome",
    // fn(case, outcome)
    "prove_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + prove_host_rsp], rsp",
    "rdfsbase rax",
    "mov [rip + prove_host_fs], rax",
    "mov [rip + prove_case], rdi",
    "mov [rip + prove_outcome], rsi",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [rdi]",
    "mov rax, [rdi + {rip}]",
    "mov [rip + prove_far], eax",
    "movzx eax, word ptr [rdi + {sel} + 2]",
    "mov [rip + prove_far + 4], ax",
    "mov ax, [rdi + {sel}]",
    "mov es, ax",
    "mov ax, [rdi + {sel} + 6]",
    "mov ds, ax",
    "mov ax, [rdi + {sel} + 8]",
    "mov fs, ax",
    "mov ax, [rdi + {sel} + 10]",
    "mov gs, ax",
    "cmp dword ptr [rdi + {set_bases}], 0",
    "je 2f",
    "mov rax, [rdi + {bases}]",
    "wrfsbase rax",
    "mov rax, [rdi + {bases} + 8]",
    "wrgsbase rax",
    "2:",
    "push qword ptr [rdi + {flags}]",
    "movzx eax, word ptr [rdi + {sel} + 4]",
    "popfq",
    "mov ss, ax",
    "mov rsp, [rdi + {gpr} + 32]",
    "mov rax, [rdi + {gpr}]",
    "mov rcx, [rdi + {gpr} + 8]",
    "mov rdx, [rdi + {gpr} + 16]",
    "mov rbx, [rdi + {gpr} + 24]",
    "mov rbp, [rdi + {gpr} + 40]",
    "mov rsi, [rdi + {gpr} + 48]",
    "mov r8, [rdi + {gpr} + 64]",
    "mov r9, [rdi + {gpr} + 72]",
    "mov r10, [rdi + {gpr} + 80]",
    "mov r11, [rdi + {gpr} + 88]",
    "mov r12, [rdi + {gpr} + 96]",
    "mov r13, [rdi + {gpr} + 104]",
    "mov r14, [rdi + {gpr} + 112]",
    "mov r15, [rdi + {gpr} + 120]",
    "mov rdi, [rdi + {gpr} + 56]",
    "jmp fword ptr [rip + prove_far]",
    // From behind the instruction, with its registers.
    "prove_leave:",
    "mov [rip + prove_rsp], rsp",
    "mov [rip + prove_rdi], rdi",
    "mov rsp, [rip + prove_host_rsp]",
    "pushfq",
    "push 0x202",
    "popfq",
    "mov rdi, [rip + prove_outcome]",
    "mov [rdi + {gpr}], rax",
    "mov [rdi + {gpr} + 8], rcx",
    "mov [rdi + {gpr} + 16], rdx",
    "mov [rdi + {gpr} + 24], rbx",
    "mov rax, [rip + prove_rsp]",
    "mov [rdi + {gpr} + 32], rax",
    "mov [rdi + {gpr} + 40], rbp",
    "mov [rdi + {gpr} + 48], rsi",
    "mov rax, [rip + prove_rdi]",
    "mov [rdi + {gpr} + 56], rax",
    "mov [rdi + {gpr} + 64], r8",
    "mov [rdi + {gpr} + 72], r9",
    "mov [rdi + {gpr} + 80], r10",
    "mov [rdi + {gpr} + 88], r11",
    "mov [rdi + {gpr} + 96], r12",
    "mov [rdi + {gpr} + 104], r13",
    "mov [rdi + {gpr} + 112], r14",
    "mov [rdi + {gpr} + 120], r15",
    "pop rax",
    "mov [rdi + {flags}], rax",
    "mov [rdi + {sel}], es",
    "mov [rdi + {sel} + 4], ss",
    "mov [rdi + {sel} + 6], ds",
    "mov [rdi + {sel} + 8], fs",
    "mov [rdi + {sel} + 10], gs",
    "rdfsbase rax",
    "mov [rdi + {bases}], rax",
    "rdgsbase rax",
    "mov [rdi + {bases} + 8], rax",
    "mov qword ptr [rdi + 512], 0",
    "mov eax, 7",
    "xor edx, edx",
    "xsave64 [rdi]",
    // To the host's own state, from wherever.
    "prove_return:",
    "mov rsp, [rip + prove_host_rsp]",
    "mov eax, {flat}",
    "mov ss, ax",
    "mov ds, ax",
    "mov es, ax",
    "xor eax, eax",
    "mov fs, ax",
    "mov gs, ax",
    "mov rax, [rip + prove_host_fs]",
    "wrfsbase rax",
    "vzeroupper",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "push 0x202",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // Signals arrive with the program's segment bases and its alignment check.
    "prove_signal:",
    "pushfq",
    "and qword ptr [rsp], -0x40001",
    "popfq",
    "mov rcx, [rip + prove_outcome]",
    "mov [rcx + {sel}], es",
    "mov [rcx + {sel} + 6], ds",
    "mov [rcx + {sel} + 8], fs",
    "mov [rcx + {sel} + 10], gs",
    "rdfsbase rax",
    "mov [rcx + {bases}], rax",
    "rdgsbase rax",
    "mov [rcx + {bases} + 8], rax",
    "mov rax, [rip + prove_host_fs]",
    "wrfsbase rax",
    "call {on_signal}",
    "jmp prove_return",
    ".popsection",
    on_signal = sym on_signal,
    rip = const offset_of!(Registers, rip),
    sel = const offset_of!(Registers, selectors),
    bases = const offset_of!(Registers, bases),
    flags = const offset_of!(Registers, flags),
    gpr = const offset_of!(Registers, gpr),
    set_bases = const offset_of!(Case, bases),
    flat = const FLAT,
);

// The trampoline takes a case for the registers that it begins with, and so an outcome.
const _: () = assert!(offset_of!(Case, before) == 0 && offset_of!(Outcome, after) == 0);
const _: () = assert!(offset_of!(Registers, xsave) == 0);

unsafe extern "C" {
    /// Executes the instruction of a case that has been put into place.
    pub fn prove_enter(case: *const Case, outcome: *mut Outcome);
    /// Where the code goes behind the instruction.
    pub fn prove_leave();
    /// The handler of all signals that instructions cause.
    pub fn prove_signal();
    static prove_outcome: *mut Outcome;
}

extern "C" fn on_signal(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    use libc::*;
    // SAFETY: the kernel's context is valid, and the outcome is that of the running `prove_enter`: nothing else in this
    // process raises these signals.
    unsafe {
        let context = &*context.cast::<ucontext_t>();
        let regs = &context.uc_mcontext.gregs;
        let out = &mut *prove_outcome;
        let order = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        for (slot, register) in out.after.gpr.iter_mut().zip(order) {
            *slot = regs[register as usize] as u64;
        }
        out.after.flags = regs[REG_EFL as usize] as u64;
        out.after.rip = regs[REG_RIP as usize] as u64;
        out.after.selectors[1] = regs[REG_CSGSFS as usize] as u16;
        out.after.selectors[2] = (regs[REG_CSGSFS as usize] >> 48) as u16;
        out.end = regs[REG_TRAPNO as usize] as u64;
        out.error = regs[REG_ERR as usize] as u64;
        out.cr2 = regs[REG_CR2 as usize] as u64;
        let image = context.uc_mcontext.fpregs.cast::<u8>();
        std::ptr::copy_nonoverlapping(image, out.after.xsave.as_mut_ptr(), 832);
    }
}

/// Puts the way to [`prove_leave`] into the landing page, which every mode reaches. What it reads is aligned, because the
/// alignment check may be on.
///
/// # Safety
/// The page can be written.
pub unsafe fn put_landing() {
    let mut bytes = [0x90u8; 16];
    bytes[..6].copy_from_slice(&[0xff, 0x25, 2, 0, 0, 0]);
    bytes[8..].copy_from_slice(&(prove_leave as *const () as u64).to_le_bytes());
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), LANDING as *mut u8, 16) };
}

/// Puts the jump to the landing page behind an instruction that ends at `at`.
///
/// # Safety
/// [`JUMP`] bytes at `at` are code that can be written.
pub unsafe fn put_jump(at: *mut u8, bits: u32) {
    let target = LANDING as u32;
    let mut bytes = [0xccu8; JUMP];
    match bits {
        64 => {
            bytes[0] = 0xe9;
            bytes[1..5].copy_from_slice(&target.wrapping_sub(at as u32 + 5).to_le_bytes());
        }
        32 => {
            bytes[0] = 0xea;
            bytes[1..5].copy_from_slice(&target.to_le_bytes());
            bytes[5..7].copy_from_slice(&CS64.to_le_bytes());
        }
        _ => {
            bytes[..2].copy_from_slice(&[0x66, 0xea]);
            bytes[2..6].copy_from_slice(&target.to_le_bytes());
            bytes[6..8].copy_from_slice(&CS64.to_le_bytes());
        }
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, JUMP) };
}

/// Bytes of the longest jump.
pub const JUMP: usize = 8;

/// Marks an outcome whose instruction left through the jump.
pub fn completed(case: &Case, outcome: &mut Outcome) {
    outcome.end = end::COMPLETED;
    outcome.after.rip = case.before.rip + case.len as u64;
    outcome.after.selectors[1] = case.before.selectors[1];
}
