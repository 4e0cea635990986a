//! Signals: one sent, and those that faults of the processor become.
use std::{
    arch::asm,
    sync::atomic::{AtomicI32, AtomicUsize, Ordering},
};

use crate::{Check, ensure};

static SEEN: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// REG_RIP of sys/ucontext.h.
#[cfg(target_arch = "x86_64")]
const INSTRUCTION_POINTER: usize = 16;
/// REG_EIP of sys/ucontext.h.
#[cfg(target_arch = "x86")]
const INSTRUCTION_POINTER: usize = 14;

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SEEN.store(signal, Ordering::SeqCst);
    // SAFETY: the kernel passes valid pointers to a SA_SIGINFO handler, and the words hold the registers in the order of
    // sys/ucontext.h; the faulting instructions below are two
    // bytes long, and skipping them is what their asm blocks expect.
    unsafe {
        ADDRESS.store((*info).si_addr() as usize, Ordering::SeqCst);
        if signal != libc::SIGUSR1 {
            let context = context.cast::<libc::ucontext_t>();
            // Not every C library names the registers inside: they come first, one word each.
            *(&raw mut (*context).uc_mcontext).cast::<usize>().add(INSTRUCTION_POINTER) += 2;
        }
    }
}

fn catch(signal: i32) {
    // SAFETY: a zeroed sigaction is valid; the handler only touches atomics and its own context.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// See the module.
pub fn check() -> Check {
    let signals = [libc::SIGUSR1, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL];
    signals.into_iter().for_each(catch);

    // SAFETY: sends a signal that is handled.
    unsafe { libc::raise(libc::SIGUSR1) };
    ensure!(SEEN.swap(0, Ordering::SeqCst) == libc::SIGUSR1, "a raised signal did not arrive");

    let bad = 0x1234_5000usize;
    // SAFETY: the two-byte load, `mov eax, [rcx]` or `mov eax, [ecx]`, faults and is skipped by the handler.
    unsafe { asm!(".byte 0x8b, 0x01", in("rcx") bad, out("eax") _) };
    ensure!(SEEN.swap(0, Ordering::SeqCst) == libc::SIGSEGV, "a bad access was not SIGSEGV");
    ensure!(ADDRESS.load(Ordering::SeqCst) == bad, "SIGSEGV tells a wrong address");

    // SAFETY: the two-byte division by zero faults and is skipped by the handler.
    unsafe { asm!("div ecx", inout("eax") 1 => _, inout("edx") 0 => _, in("ecx") 0) };
    ensure!(SEEN.swap(0, Ordering::SeqCst) == libc::SIGFPE, "a division by zero was not SIGFPE");

    // SAFETY: the two-byte undefined instruction faults and is skipped by the handler.
    unsafe { asm!("ud2") };
    ensure!(SEEN.swap(0, Ordering::SeqCst) == libc::SIGILL, "an undefined instruction was not SIGILL");

    for signal in signals {
        // SAFETY: restores the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}
