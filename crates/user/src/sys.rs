//! System calls, made by one piece of code that no C library stands before.
//!
//! Inside a client whose C library calls are ours (`preload`), our own calls must not come back to us; and where the
//! kernel hands every system call of the client's to us, it tells ours from the client's by where they are made
//! ([`code`]).
use std::{arch::global_asm, ops::Range};

use hv::Errno;

global_asm!(
    ".pushsection .text.rekvm_syscalls,\"ax\",@progbits",
    ".balign 16",
    ".hidden rekvm_syscalls_start",
    ".globl rekvm_syscalls_start",
    "rekvm_syscalls_start:",
    ".hidden rekvm_syscall",
    ".globl rekvm_syscall",
    ".type rekvm_syscall,@function",
    "rekvm_syscall:",
    ".cfi_startproc",
    "mov rax, rdi",
    "mov r10, rcx",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, r10",
    "mov r10, r8",
    "mov r8, r9",
    "mov r9, [rsp + 8]",
    "syscall",
    "ret",
    ".cfi_endproc",
    ".size rekvm_syscall, . - rekvm_syscall",
    // What a signal handler returns to.
    ".balign 16",
    ".hidden rekvm_restorer",
    ".globl rekvm_restorer",
    ".type rekvm_restorer,@function",
    "rekvm_restorer:",
    "mov eax, 15",
    "syscall",
    // The kernel takes a call for one of the code that it returns to.
    "ud2",
    ".size rekvm_restorer, . - rekvm_restorer",
    ".hidden rekvm_syscalls_end",
    ".globl rekvm_syscalls_end",
    "rekvm_syscalls_end:",
    ".popsection",
);

unsafe extern "C" {
    fn rekvm_syscall(nr: i64, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize;
    fn rekvm_restorer();
    static rekvm_syscalls_start: u8;
    static rekvm_syscalls_end: u8;
}

/// The code in which all system calls of this module are made.
pub fn code() -> Range<usize> {
    (&raw const rekvm_syscalls_start).addr()..(&raw const rekvm_syscalls_end).addr()
}

/// What a handler installed with the kernel's own `rt_sigaction` returns to.
pub fn restorer() -> usize {
    rekvm_restorer as *const () as usize
}

/// System call `nr` as the kernel answers it: an error is its number below 0. Touches neither `errno` nor any other
/// variable of the thread.
///
/// # Safety
/// As the call has it.
#[inline]
pub unsafe fn raw(nr: i64, [a, b, c, d, e, f]: [usize; 6]) -> isize {
    // SAFETY: as the caller promises.
    unsafe { rekvm_syscall(nr, a, b, c, d, e, f) }
}

/// The same with errors apart.
///
/// # Safety
/// As the call has it.
#[inline]
pub unsafe fn call(nr: i64, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: as the caller promises.
    let answer = unsafe { raw(nr, args) };
    // The highest 4095 values are errors.
    if (-4095..0).contains(&answer) { Err(Errno(-answer as i32)) } else { Ok(answer as usize) }
}

/// The process's number.
pub fn process_id() -> i32 {
    // SAFETY: asks only.
    unsafe { raw(libc::SYS_getpid, [0; 6]) as i32 }
}

/// The calling thread's number.
pub fn thread_id() -> i32 {
    // SAFETY: asks only.
    unsafe { raw(libc::SYS_gettid, [0; 6]) as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_errors_are_the_kernels() {
        assert_eq!(process_id() as u32, std::process::id());
        // SAFETY: no such descriptor.
        assert_eq!(unsafe { call(libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0]) }, Err(Errno(libc::EBADF)));
        let args = [0, 4096, 0, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize, usize::MAX, 0];
        // SAFETY: a new mapping; all six arguments count.
        let at = unsafe { call(libc::SYS_mmap, args) }.unwrap();
        // SAFETY: made above.
        assert_eq!(unsafe { call(libc::SYS_munmap, [at, 4096, 0, 0, 0, 0]) }, Ok(0));
        assert!(code().contains(&restorer()) && code().len() < 256);
    }
}
