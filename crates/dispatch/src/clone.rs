//! New threads and processes of the client's.
//!
//! Dispatch ends with clone, so a new thread first asks for it again and only then goes where the client wants it: with
//! the registers of its parent at the system call. A process that shares no memory with its parent is made by the C
//! library's own fork, which leaves our world in order.
use std::{arch::global_asm, mem::offset_of, sync::atomic::Ordering};

use libc::{CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_PARENT_SETTID, CLONE_VFORK, CLONE_VM, c_int};
use platform::{Hva, Memory};
use user::{ClientMemory, signals, sys};

use crate::{
    slot::{self, ALLOW, BLOCK, Slot},
    trap::{PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, Trap, dispatch},
    world,
};

/// What a new thread needs before it is the client's. The code below knows the layout.
#[repr(C)]
pub(crate) struct Start {
    /// RBX, RBP, RDI, RSI, RDX, R8, R9, R10, R12, R13, R14, R15.
    registers: [usize; 12],
    /// Where it goes on.
    rip: usize,
    /// Its signal mask.
    mask: u64,
    /// Arguments of `prctl`.
    code_start: usize,
    code_len: usize,
    selector: usize,
    /// Where it writes its number.
    tid: usize,
}

impl Start {
    pub(crate) const EMPTY: Self =
        Self { registers: [0; 12], rip: 0, mask: 0, code_start: 0, code_len: 0, selector: 0, tid: 0 };
}

global_asm!(
    // clone or clone3: number (RDI), five arguments (RSI), Start (RDX). Returns in the parent only.
    ".hidden rekvm_clone",
    ".globl rekvm_clone",
    ".type rekvm_clone,@function",
    "rekvm_clone:",
    "push r12",
    "mov r12, rdx",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "syscall",
    "test rax, rax",
    "jz 2f",
    "pop r12",
    "ret",
    // The new thread, on its own stack, with all signals blocked.
    "2:",
    "mov eax, 186", // gettid
    "syscall",
    "mov rdx, [r12 + {tid}]",
    "mov [rdx], eax",
    "mov eax, 157", // prctl
    "mov edi, {set}",
    "mov esi, {on}",
    "mov rdx, [r12 + {code_start}]",
    "mov r10, [r12 + {code_len}]",
    "mov r8, [r12 + {selector}]",
    "xor r9d, r9d",
    "syscall",
    // From here on system calls are dispatched, but for those that `user::sys` makes: rt_sigprocmask(SIG_SETMASK).
    "mov edi, 14",
    "mov esi, 2",
    "lea rdx, [r12 + {mask}]",
    "xor ecx, ecx",
    "mov r8d, 8",
    "xor r9d, r9d",
    // Its last argument is on the stack, of which nothing may be there yet.
    "push 0",
    "call rekvm_syscall",
    "pop rcx",
    "mov rbx, [r12]",
    "mov rbp, [r12 + 8]",
    "mov rdi, [r12 + 16]",
    "mov rsi, [r12 + 24]",
    "mov rdx, [r12 + 32]",
    "mov r8, [r12 + 40]",
    "mov r9, [r12 + 48]",
    "mov r10, [r12 + 56]",
    "mov r13, [r12 + 72]",
    "mov r14, [r12 + 80]",
    "mov r15, [r12 + 88]",
    // A system call leaves in RCX where it returns to.
    "mov rcx, [r12 + {rip}]",
    "mov r12, [r12 + 64]",
    "xor eax, eax",
    "jmp rcx",
    ".size rekvm_clone, . - rekvm_clone",
    set = const PR_SET_SYSCALL_USER_DISPATCH,
    on = const PR_SYS_DISPATCH_ON,
    rip = const offset_of!(Start, rip),
    mask = const offset_of!(Start, mask),
    code_start = const offset_of!(Start, code_start),
    code_len = const offset_of!(Start, code_len),
    selector = const offset_of!(Start, selector),
    tid = const offset_of!(Start, tid),
);

unsafe extern "C" {
    fn rekvm_clone(number: i64, args: *const usize, start: *mut Start) -> isize;
}

/// What a new process is to do with a number of its own, from `clone`'s flags.
#[derive(Clone, Copy, Default)]
struct Numbers {
    flags: u64,
    parent: usize,
    child: usize,
}

/// The flags, the stack and where numbers go. Bare.
fn wanted(trap: &Trap<'_>) -> Result<(u64, usize, Numbers), c_int> {
    let [a, b, c, d, ..] = trap.args;
    Ok(match trap.number {
        libc::SYS_clone => (a as u64, b, Numbers { flags: a as u64, parent: c, child: d }),
        libc::SYS_clone3 => {
            // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack.
            let mut words = [0u64; 6];
            for (word, at) in words.iter_mut().zip((a as u64..).step_by(8)) {
                *word = ClientMemory::load(Hva(at)).map_err(|_| libc::EFAULT)?;
            }
            let [flags, _, child, parent, _, stack] = words;
            (flags, stack as usize, Numbers { flags, parent: parent as usize, child: child as usize })
        }
        _ => (0, 0, Numbers::default()),
    })
}

/// `clone`, `clone3`, `fork` and `vfork`: the child's number, or an error number below 0. Bare.
pub(crate) fn clone(trap: &mut Trap<'_>, own: &Slot) -> isize {
    match wanted(trap) {
        Ok((flags, stack, _)) if flags & CLONE_VM as u64 != 0 && stack != 0 => thread(trap, own, flags),
        // A child of vfork that runs on its parent's stack would return from our handler on it: it gets memory of its own.
        Ok((_, _, numbers)) => process(own, numbers),
        Err(errno) => -errno as isize,
    }
}

/// Bare.
fn thread(trap: &mut Trap<'_>, own: &Slot, flags: u64) -> isize {
    let Some(new) = slot::claim_for_another() else { return -libc::EAGAIN as isize };
    let code = sys::code();
    let order = [
        libc::REG_RBX,
        libc::REG_RBP,
        libc::REG_RDI,
        libc::REG_RSI,
        libc::REG_RDX,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    let start = Start {
        registers: order.map(|which| trap.register(which)),
        rip: trap.register(libc::REG_RIP),
        mask: *trap.mask(),
        code_start: code.start,
        code_len: code.len(),
        selector: new.selector.as_ptr().addr(),
        tid: new.tid.as_ptr().addr(),
    };
    new.selector.store(BLOCK, Ordering::Relaxed);
    // No handler of the client's runs until the kernel is asked to dispatch again, here and there.
    let before = signals::set_mask(libc::SIG_SETMASK, !0);
    own.selector.store(ALLOW, Ordering::Relaxed);
    // SAFETY: the slot is ours until the thread starts, and then the thread's; the client's arguments are its own.
    let answer = unsafe {
        new.start.get().write(start);
        rekvm_clone(trap.number, trap.args.as_ptr(), new.start.get())
    };
    own.selector.store(BLOCK, Ordering::Relaxed);
    signals::set_mask(libc::SIG_SETMASK, before);
    if answer < 0 || flags & CLONE_VFORK as u64 != 0 {
        // It never was, or it is another program by now.
        world::leave(new);
        slot::release(new);
    }
    answer
}

/// Bare.
fn process(own: &Slot, numbers: Numbers) -> isize {
    let forked = world::visit(own, None, || {
        let making = world::nobody_makes();
        // SAFETY: in our world, whose C library this is.
        let pid = unsafe { libc::fork() };
        drop(making);
        if pid == 0 {
            slot::only(own);
            world::only(own);
            dispatch(own);
        }
        if pid < 0 { -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOMEM) } else { pid }
    });
    let pid = forked.unwrap_or(-libc::EAGAIN);
    let has = |flag: c_int| numbers.flags & flag as u64 != 0;
    // As in the kernel, a bad address is not told.
    if pid == 0 {
        let number = sys::thread_id() as u32;
        if has(CLONE_CHILD_SETTID) {
            let _ = ClientMemory::store(Hva(numbers.child as u64), number);
        }
        let clear = if has(CLONE_CHILD_CLEARTID) { numbers.child } else { 0 };
        // SAFETY: the kernel writes there when the thread ends, if it can.
        unsafe { sys::raw(libc::SYS_set_tid_address, [clear, 0, 0, 0, 0, 0]) };
    } else if pid > 0 && has(CLONE_PARENT_SETTID) {
        let _ = ClientMemory::store(Hva(numbers.parent as u64), pid as u32);
    }
    pid as isize
}
