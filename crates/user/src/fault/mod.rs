//! Faults on the client's memory.
//!
//! An accessor of [`crate::memory`] that touches memory which is not there gets SIGSEGV or SIGBUS. Each of its
//! instructions that may fault has an entry in the section `rekvm_fault`: the instruction's address and the one at
//! which to go on, which reports the failure. The handler looks the faulting instruction up there. Every other fault
//! belongs to the client and goes to the handler that it had installed.
use std::{
    io,
    ptr::addr_of,
    sync::{Mutex, PoisonError},
};

use libc::{SIGBUS, SIGSEGV, c_int, c_void, siginfo_t, ucontext_t};

use crate::chain::Chain;

/// One instruction that may fault; both fields are distances from their own address.
#[repr(C)]
struct Entry {
    instruction: i32,
    landing: i32,
}

unsafe extern "C" {
    // The linker makes these around every section whose name is an identifier.
    #[link_name = "__start_rekvm_fault"]
    static TABLE_START: Entry;
    #[link_name = "__stop_rekvm_fault"]
    static TABLE_END: Entry;
}

static SEGV: Chain = Chain::new();
static BUS: Chain = Chain::new();

/// Installs the handlers, once; the client's earlier ones are called for faults that are not ours. Must be done before
/// any access to client memory; later changes of the disposition by the client take our handler away.
pub fn install() -> io::Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !*done {
        SEGV.install(SIGSEGV, on_fault)?;
        BUS.install(SIGBUS, on_fault)?;
        *done = true;
    }
    Ok(())
}

/// Where to go on after a fault of the instruction at `ip`, if it is one of ours.
fn landing(ip: usize) -> Option<usize> {
    let mut entry = addr_of!(TABLE_START);
    let end = addr_of!(TABLE_END);
    while entry < end {
        // SAFETY: between the linker's symbols lie whole entries; they are read-only and live as long as this code.
        let Entry { instruction, landing } = unsafe { entry.read() };
        let field = entry as usize;
        if field.wrapping_add_signed(instruction as isize) == ip {
            return Some((field + size_of::<i32>()).wrapping_add_signed(landing as isize));
        }
        entry = entry.wrapping_add(1);
    }
    None
}

/// The handler. Async-signal-safe: it reads a table and writes the interrupted context.
extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let context_ptr = context.cast::<ucontext_t>();
    // SAFETY: with SA_SIGINFO the kernel passes the interrupted thread's context, which is ours to change.
    let rip = unsafe { &mut (*context_ptr).uc_mcontext.gregs[libc::REG_RIP as usize] };
    match landing(*rip as usize) {
        Some(landing) => *rip = landing as i64,
        None => {
            let chain = if signal == SIGSEGV { &SEGV } else { &BUS };
            chain.call(signal, info, context);
        }
    }
}
