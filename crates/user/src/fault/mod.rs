//! Faults on the client's memory.
//!
//! An accessor of [`crate::memory`] that touches memory which is not there gets SIGSEGV or SIGBUS. Each of its
//! instructions that may fault has an entry in the section `rekvm_fault`: the instruction's address and the one at
//! which to go on, which reports the failure. The handler looks the faulting instruction up there. Every other fault
//! belongs to the client and goes to the handler that it had installed.
use std::{arch::global_asm, io, ptr, sync::OnceLock};

use hv::Errno;
use libc::{SIGBUS, SIGSEGV, c_int, c_void, siginfo_t, ucontext_t};

use crate::{cpuid, signals};

/// One instruction that may fault; both fields are distances from their own address.
#[repr(C)]
struct Entry {
    instruction: i32,
    landing: i32,
}

// The linker makes these two around every section whose name is an identifier. Where nothing uses an accessor there is
// no section, and both are 0.
global_asm!(
    ".weak __start_rekvm_fault",
    ".hidden __start_rekvm_fault",
    ".weak __stop_rekvm_fault",
    ".hidden __stop_rekvm_fault",
    ".pushsection .data.rel.ro.rekvm_fault_table,\"aw\",@progbits",
    ".balign 8",
    ".globl rekvm_fault_table",
    ".hidden rekvm_fault_table",
    "rekvm_fault_table:",
    ".quad __start_rekvm_fault, __stop_rekvm_fault",
    ".popsection",
);

unsafe extern "C" {
    /// Where the table begins and ends.
    static rekvm_fault_table: [usize; 2];
}

/// Installs the handlers, once; the client's earlier ones are called for faults that are not ours. Must be done before
/// any access to client memory; a later change of the disposition that is not made with [`signals::set`] takes our
/// handler away.
pub fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), Errno>> = OnceLock::new();
    let done = DONE.get_or_init(|| signals::put_in_front(SIGSEGV).and_then(|()| signals::put_in_front(SIGBUS)));
    done.map_err(|error| io::Error::from_raw_os_error(error.0))
}

/// Where to go on after a fault of the instruction at `ip`, if it is one of ours.
fn landing(ip: usize) -> Option<usize> {
    // SAFETY: written by the linker, and never again.
    let [start, end] = unsafe { rekvm_fault_table };
    let mut entry = ptr::with_exposed_provenance::<Entry>(start);
    while entry.addr() < end {
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

/// The handler. Async-signal-safe: it reads a table and writes the interrupted context. For a fault it touches no
/// variable of the thread.
pub(crate) extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes the interrupted thread's context, which is ours to change.
    let interrupted = unsafe { &mut *context.cast::<ucontext_t>() };
    let rip = &mut interrupted.uc_mcontext.gregs[libc::REG_RIP as usize];
    if !signals::from_kernel(info) {
        signals::on_signal(signal, info, context);
    } else if let Some(landing) = landing(*rip as usize) {
        *rip = landing as i64;
    } else if !cpuid::answer(signal, info, interrupted) {
        signals::carry_out(signal, info, context);
    }
}
