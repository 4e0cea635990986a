//! The child process: makes its memory and segments, gives up all system calls but the few that it needs, and executes
//! batches.
use std::{io, mem::size_of, ptr};

use crate::{
    case::{Case, Outcome, Shared, collect, end},
    layout::{CODE, CODE_BYTES, DATA, DATA_BYTES, LANDING, LDT, WRITABLE},
    native::enter::{JUMP, completed, prove_enter, prove_signal, put_jump, put_landing},
};

/// `struct user_desc` of modify_ldt.
#[repr(C)]
struct Descriptor {
    entry: u32,
    base: u32,
    limit: u32,
    bits: u32,
}

/// Executes batches until the other end of `commands` is closed. Does not return.
///
/// # Safety
/// Only in a process that was forked for this, with `shared` mapped; both descriptors are pipes.
pub unsafe fn serve(shared: *mut Shared, commands: i32, answers: i32) -> ! {
    // SAFETY: this process is for nothing else.
    let code = match unsafe { prepare(shared).and_then(|()| seccomp()) } {
        // SAFETY: everything is prepared.
        Ok(()) => unsafe { serve_batches(shared, commands, answers) },
        Err(error) => {
            let text = format!("prove-cpu: the child process: {error}\n");
            // SAFETY: the text is valid.
            unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
            1
        }
    };
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

unsafe fn serve_batches(shared: *mut Shared, commands: i32, answers: i32) -> i32 {
    let mut byte = 0u8;
    // SAFETY: the parent leaves the shared memory alone between its command and our answer.
    unsafe {
        while libc::read(commands, (&raw mut byte).cast(), 1) == 1 {
            let image = (&raw const (*shared).image).cast::<u8>();
            ptr::copy_nonoverlapping(image, DATA as *mut u8, WRITABLE as usize);
            let count = (*shared).count as usize;
            for i in 0..count {
                execute(&(*shared).cases[i], &mut (*shared).outcomes[i], image);
                (&raw mut (*shared).done).write_volatile(i as u64 + 1);
            }
            if libc::write(answers, (&raw const byte).cast(), 1) != 1 {
                return 1;
            }
        }
    }
    0
}

unsafe fn execute(case: &Case, outcome: &mut Outcome, image: *const u8) {
    let base = if case.before.selectors[1] & 4 != 0 { CODE } else { 0 };
    let code = (base + case.before.rip) as *mut u8;
    let len = case.len as usize;
    // SAFETY: case and code are within the mappings: the parent makes them so, and this process has nothing to lose.
    unsafe {
        let patched = (DATA + case.patch_at as u64) as *mut u8;
        ptr::copy_nonoverlapping(case.patch.as_ptr(), patched, case.patch_len as usize);
        ptr::copy_nonoverlapping(case.code.as_ptr(), code, len);
        if case.traps == 0 {
            put_jump(code.add(len), case.bits);
        }
        outcome.end = end::COMPLETED;
        (outcome.error, outcome.cr2) = (0, 0);
        prove_enter(case, outcome);
        if outcome.end == end::COMPLETED {
            completed(case, outcome);
        } else if outcome.end == 3 && case.lands != 0 {
            outcome.end = end::COMPLETED;
            outcome.after.rip -= 1;
        }
        ptr::write_bytes(code, 0xcc, len + if case.traps == 0 { JUMP } else { 0 });
        collect(DATA as *mut u8, image, outcome);
    }
}

unsafe fn prepare(shared: *const Shared) -> io::Result<()> {
    let check = |failed: bool| if failed { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: fixed addresses where nothing else lives, and a handler that only touches what it documents.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        for (at, bytes) in [(DATA, DATA_BYTES), (CODE, CODE_BYTES), (LANDING, 4096)] {
            let flags = anonymous | libc::MAP_FIXED_NOREPLACE;
            check(libc::mmap(at as *mut _, bytes, all, flags, -1, 0) as u64 != at)?;
        }
        ptr::copy_nonoverlapping((&raw const (*shared).image).cast(), DATA as *mut u8, DATA_BYTES);
        let read_only = (DATA + WRITABLE) as *mut libc::c_void;
        check(libc::mprotect(read_only, DATA_BYTES - WRITABLE as usize, libc::PROT_READ | libc::PROT_EXEC) != 0)?;
        ptr::write_bytes(CODE as *mut u8, 0xcc, CODE_BYTES);
        put_landing();
        let stack = libc::mmap(ptr::null_mut(), 0x10000, all, anonymous, -1, 0);
        check(stack == libc::MAP_FAILED)?;
        let alternative = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: 0x10000 };
        check(libc::sigaltstack(&alternative, ptr::null_mut()) != 0)?;
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = prove_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP] {
            check(libc::sigaction(signal, &action, ptr::null_mut()) != 0)?;
        }
        for (i, local) in LDT.iter().enumerate() {
            let bits = local.big as u32
                | local.contents << 1
                | (local.restricted as u32) << 3
                | (local.pages as u32) << 4
                | (!local.present as u32) << 5;
            let entry = Descriptor { entry: i as u32, base: local.base, limit: local.limit, bits };
            check(libc::syscall(libc::SYS_modify_ldt, 1, &entry, size_of::<Descriptor>()) != 0)?;
        }
    }
    Ok(())
}

/// Allows reading and writing of what is open, and ending; everything else ends the process.
unsafe fn seccomp() -> io::Result<()> {
    let load = |at: u32| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: at };
    let equal = |k: u32, jt: u8, jf: u8| libc::sock_filter { code: 0x15, jt, jf, k };
    let end = |k: u32| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    const ARCHITECTURE: u32 = 0xc000_003e;
    // Number at 0 and architecture at 4 of `struct seccomp_data`.
    let filter = [
        load(4),
        equal(ARCHITECTURE, 0, 5),
        load(0),
        equal(libc::SYS_read as u32, 4, 0),
        equal(libc::SYS_write as u32, 3, 0),
        equal(libc::SYS_exit_group as u32, 2, 0),
        equal(libc::SYS_exit as u32, 1, 0),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program is valid, and lives while it is copied.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
