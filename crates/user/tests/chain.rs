//! Faults that are not the accessors' go to the client's handler; ours do not.
use std::{
    mem, ptr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use platform::{BadAddress, Hva, Memory};
use user::ClientMemory as M;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static PAGE: AtomicU64 = AtomicU64::new(0);

/// A client that maps pages on demand.
extern "C" fn client(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    CALLS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the address of our own page; mprotect is a plain system call.
    unsafe {
        let page = PAGE.load(Ordering::SeqCst);
        assert_eq!((*info).si_addr() as u64 & !4095, page);
        libc::mprotect(page as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE);
    }
}

#[test]
fn the_clients_handler_keeps_its_faults() {
    // SAFETY: an ordinary handler and a fresh mapping.
    let page = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = client as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut()), 0);
        libc::mmap(ptr::null_mut(), 4096, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    PAGE.store(page as u64, Ordering::SeqCst);
    user::fault::install().unwrap();
    user::fault::install().unwrap();

    assert_eq!(M::load::<u32>(Hva(page as u64)), Err(BadAddress));
    assert_eq!(CALLS.load(Ordering::SeqCst), 0);
    // SAFETY: the client's handler makes the page accessible.
    unsafe { page.cast::<u32>().write_volatile(7) };
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    assert_eq!(M::load::<u32>(Hva(page as u64)), Ok(7));
}

#[test]
fn without_a_handler_a_stray_fault_kills_with_the_right_signal() {
    // SAFETY: the child only makes system calls and a stray write.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let plain: libc::sigaction = mem::zeroed();
            libc::sigaction(libc::SIGBUS, &plain, ptr::null_mut());
            let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &limit);
            let _ = user::fault::install();
            libc::raise(libc::SIGBUS);
            libc::_exit(3);
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:#x}");
    }
}
