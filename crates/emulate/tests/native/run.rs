//! Runs a few bytes of code on the processor in 64-, 32- or 16-bit mode. The code page is full of INT3, so that the
//! code ends wherever it goes with a trap or fault, whose signal handler notes all registers.
use std::{arch::global_asm, ptr};

/// Registers and selectors on the way in, registers and what ended it on the way out; the layout is known to the
/// assembly below.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub gpr: [u64; 16],
    pub flags: u64,
    /// Where to begin, an offset in CS.
    pub start: u32,
    pub cs: u32,
    pub ds: u64,
    pub ss: u64,
    /// The vector of the trap (3) or fault, its error code and CR2.
    pub vector: u64,
    pub error: u64,
    pub cr2: u64,
    /// Where it ended.
    pub rip: u64,
}

global_asm!(
    ".pushsection .bss",
    ".balign 16",
    "native_far: .quad 0",
    "native_context: .quad 0",
    "native_host_rsp: .quad 0",
    ".popsection",
    ".global native_enter, native_leave, native_signal, native_context",
    "native_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + native_host_rsp], rsp",
    "mov [rip + native_context], rdi",
    "mov rax, [rdi + 136]",
    "mov [rip + native_far], rax",
    "mov rax, [rdi + 144]",
    "mov ds, ax",
    "mov es, ax",
    "push qword ptr [rdi + 128]",
    "mov rax, [rdi + 152]",
    "popfq",
    "mov ss, ax",
    "mov rsp, [rdi + 32]",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jmp fword ptr [rip + native_far]",
    // Signals arrive with the alignment check that the code may have had on.
    "native_signal:",
    "pushfq",
    "and qword ptr [rsp], -0x40001",
    "popfq",
    "jmp {on_signal}",
    "native_leave:",
    "mov rsp, [rip + native_host_rsp]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    on_signal = sym on_signal,
);

unsafe extern "C" {
    fn native_enter(context: *mut Context);
    fn native_leave();
    fn native_signal();
    static native_context: *mut Context;
}

/// Two pages of data, with nothing behind them; low, so that every mode reaches them.
pub const DATA: u64 = 0x1000_0000;
pub const DATA_BYTES: usize = 0x2000;
/// A page of code.
pub const CODE: u64 = 0x3517_0000;
pub const CODE_BYTES: usize = 0x1000;

pub const CS64: u32 = 0x33;
pub const CS32: u32 = 0x23;
/// Entries 0 to 2 of the local descriptor table: 16-bit code at CODE, 16-bit data at DATA, the same expanding down.
pub const CS16: u32 = 0x07;
pub const DS16: u64 = 0x0f;
pub const DOWN16: u64 = 0x17;
pub const FLAT: u64 = 0x2b;
/// The lowest invalid offset of the expand-down segment; others end with the data.
pub const DOWN_LIMIT: u32 = 0x7ff;

extern "C" fn on_signal(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    use libc::*;
    // SAFETY: the kernel passes its own context; `native_context` is set, because only the code page raises signals.
    unsafe {
        let regs = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let out = &mut *native_context;
        let order = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
            REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        for (slot, register) in out.gpr.iter_mut().zip(order) {
            *slot = regs[register as usize] as u64;
        }
        out.flags = regs[REG_EFL as usize] as u64;
        out.rip = regs[REG_RIP as usize] as u64;
        out.vector = regs[REG_TRAPNO as usize] as u64;
        out.error = regs[REG_ERR as usize] as u64;
        out.cr2 = regs[REG_CR2 as usize] as u64;
        regs[REG_RIP as usize] = native_leave as *const () as i64;
        // CS in bits 0 to 15, SS in the top ones.
        regs[REG_CSGSFS as usize] = regs[REG_CSGSFS as usize] & 0xffff_ffff_0000 | CS64 as i64 | (FLAT as i64) << 48;
        regs[REG_EFL as usize] = 0x202;
    }
}

/// `struct user_desc` of modify_ldt.
#[repr(C)]
struct Descriptor {
    entry: u32,
    base: u32,
    limit: u32,
    bits: u32,
}

/// Maps the pages for data and code, makes segments and takes the signals. False if there are no 16-bit segments.
pub fn prepare() -> bool {
    // SAFETY: fixed addresses where nothing else lives, and a handler that only touches what it documents.
    unsafe {
        for (at, bytes) in [(DATA, DATA_BYTES), (CODE, CODE_BYTES)] {
            let got = libc::mmap(
                at as *mut _,
                bytes,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            );
            assert_eq!(got as u64, at);
        }
        let stack = libc::mmap(
            ptr::null_mut(),
            0x10000,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        let alternative = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: 0x10000 };
        assert_eq!(libc::sigaltstack(&alternative, ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = native_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP] {
            assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
        }
        // contents in bits 1 and 2 (0 data, 1 expand-down, 2 code), useable in bit 6.
        let entries = [
            Descriptor { entry: 0, base: CODE as u32, limit: CODE_BYTES as u32 - 1, bits: 2 << 1 | 1 << 6 },
            Descriptor { entry: 1, base: DATA as u32, limit: DATA_BYTES as u32 - 1, bits: 1 << 6 },
            Descriptor { entry: 2, base: DATA as u32, limit: DOWN_LIMIT, bits: 1 << 1 | 1 << 6 },
        ];
        entries.iter().all(|entry| libc::syscall(libc::SYS_modify_ldt, 1, entry, size_of::<Descriptor>()) == 0)
    }
}

/// Executes `bytes` at `context.start` and returns the data pages afterwards.
pub fn run(bytes: &[u8], context: &mut Context, data: &[u8]) -> Vec<u8> {
    let at = (context.start as u64 & 0xfff) as usize;
    // SAFETY: both mappings exist and are large enough; the signal handler ends the code wherever it goes.
    unsafe {
        ptr::write_bytes(CODE as *mut u8, 0xcc, CODE_BYTES);
        ptr::copy_nonoverlapping(bytes.as_ptr(), (CODE as *mut u8).add(at), bytes.len());
        ptr::copy_nonoverlapping(data.as_ptr(), DATA as *mut u8, data.len());
        native_enter(context);
        std::slice::from_raw_parts(DATA as *const u8, data.len()).to_vec()
    }
}
