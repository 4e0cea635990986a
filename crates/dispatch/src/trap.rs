//! Syscall user dispatch: from a system call of the client's to the function that carries it out, and back.
use std::{arch::global_asm, io, mem};

use libc::{c_int, c_void, siginfo_t, ucontext_t};
use user::{
    signals::{self, Action},
    sys,
};

use crate::{
    calls,
    program::LoadError,
    slot::{self, BLOCK, Slot},
    world,
};

/// `prctl`'s (linux/prctl.h).
pub(crate) const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;
pub(crate) const PR_SYS_DISPATCH_ON: usize = 1;

/// `si_code` of SIGSYS from syscall user dispatch (asm-generic/siginfo.h).
const SYS_USER_DISPATCH: c_int = 2;

/// The kernel's set with SIGSYS alone.
pub(crate) const SIGSYS_BIT: u64 = signals::bit(libc::SIGSYS);

global_asm!(
    // Starts a program: stack (RDI), entry point (RSI). System V ABI for AMD64, 3.4.1: RDX holds no function to be called
    // at exit, RBP marks the deepest frame.
    ".hidden rekvm_start",
    ".globl rekvm_start",
    ".type rekvm_start,@function",
    "rekvm_start:",
    "mov rsp, rdi",
    "mov rax, rsi",
    "xor edx, edx",
    "xor ebp, ebp",
    "xor ebx, ebx",
    "jmp rax",
    ".size rekvm_start, . - rekvm_start",
    // Goes on with the stack pointer RDI at RSI.
    ".hidden rekvm_unwind",
    ".globl rekvm_unwind",
    ".type rekvm_unwind,@function",
    "rekvm_unwind:",
    "mov rsp, rdi",
    "jmp rsi",
    ".size rekvm_unwind, . - rekvm_unwind",
);

unsafe extern "C" {
    fn rekvm_start(stack: usize, entry: usize) -> !;
    fn rekvm_unwind(stack: usize, to: usize) -> !;
}

fn check(answer: c_int) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the process the client's: its signals as exec leaves them, and SIGSYS ours.
pub(crate) fn install() -> Result<(), LoadError> {
    let prepare = || {
        // SAFETY: this program's own runtime has set these, and does not need them any more: no Rust code runs on the
        // stack that they guard.
        unsafe {
            for signal in [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS] {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::stack_t = mem::zeroed();
            none.ss_flags = libc::SS_DISABLE;
            check(libc::sigaltstack(&none, std::ptr::null_mut()))?;
        }
        user::fault::install()?;
        signals::share_threads(world::inside);
        signals::take_over().map_err(|error| io::Error::from_raw_os_error(error.0))?;
        // Handlers of the client run in the middle of ours, and make system calls too. It returns by code of ours.
        let flags = (libc::SA_SIGINFO | libc::SA_NODEFER) as u64;
        let action = Action { handler: on_sigsys as *const () as usize, flags, restorer: 0, mask: 0 }.returning();
        let args = [libc::SIGSYS as usize, (&raw const action).addr(), 0, size_of::<u64>(), 0, 0];
        // SAFETY: the handler is for whatever SIGSYS comes.
        let installed = unsafe { sys::call(libc::SYS_rt_sigaction, args) };
        serve::prepare();
        installed.map(drop).map_err(|error| io::Error::from_raw_os_error(error.0))
    };
    prepare().map_err(LoadError::Prepare)
}

/// Has the kernel hand the calling thread's system calls to us. Bare.
pub(crate) fn dispatch(slot: &Slot) -> isize {
    let own = sys::code();
    let selector = slot.selector.as_ptr().addr();
    let args = [PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, own.start, own.len(), selector, 0];
    // SAFETY: the selector lives as long as the process.
    unsafe { sys::raw(libc::SYS_prctl, args) }
}

/// Becomes the client.
///
/// # Safety
/// `entry` and `stack` are a program's.
pub(crate) unsafe fn enter(entry: usize, stack: usize) -> Result<std::convert::Infallible, LoadError> {
    let failed = |error| LoadError::Dispatch(io::Error::from_raw_os_error(error));
    let slot = slot::claim().ok_or_else(|| failed(libc::EAGAIN))?;
    let answer = dispatch(slot);
    if answer < 0 {
        return Err(failed(-answer as i32));
    }
    slot.selector.store(BLOCK, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: as the caller promises.
    unsafe { rekvm_start(stack, entry) }
}

/// One system call of the client's.
pub(crate) struct Trap<'a> {
    pub(crate) number: i64,
    pub(crate) args: [usize; 6],
    /// What the thread goes on with.
    pub(crate) context: &'a mut ucontext_t,
}

impl Trap<'_> {
    /// The signal mask that the thread goes on with.
    pub(crate) fn mask(&mut self) -> &mut u64 {
        // SAFETY: the kernel's set is the first 64 bits of it.
        unsafe { &mut *(&raw mut self.context.uc_sigmask).cast::<u64>() }
    }

    pub(crate) fn register(&self, which: c_int) -> usize {
        self.context.uc_mcontext.gregs[which as usize] as usize
    }

    /// `rt_sigreturn` that the client makes by itself: from its own frame, not from ours. Bare.
    ///
    /// # Safety
    /// The client's stack pointer is at a frame of the kernel's.
    pub(crate) unsafe fn return_from_signal(&self) -> ! {
        // SAFETY: as the caller promises.
        unsafe { rekvm_unwind(self.register(libc::REG_RSP), sys::restorer()) }
    }
}

/// The handler. Bare.
extern "C" fn on_sigsys(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes both; the context is ours to change.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<ucontext_t>()) };
    if info.si_code != SYS_USER_DISPATCH {
        // A filter of the client's refuses a call and wants to know: what filters do by default is to end the process.
        // SAFETY: ends this process.
        unsafe { sys::raw(libc::SYS_exit_group, [128 + libc::SIGSYS as usize, 0, 0, 0, 0, 0]) };
    }
    let gregs = &context.uc_mcontext.gregs;
    let registers = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9];
    let args = registers.map(|which| gregs[which as usize] as usize);
    let number = gregs[libc::REG_RAX as usize];
    let mut trap = Trap { number, args, context };
    let answer = calls::carry_out(&mut trap);
    trap.context.uc_mcontext.gregs[libc::REG_RAX as usize] = answer as i64;
}
