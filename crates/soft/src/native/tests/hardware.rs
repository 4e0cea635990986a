//! Runs one instruction directly on the host's processor, on a whole register file, and catches what it raises.
use std::{
    arch::global_asm,
    sync::{Mutex, MutexGuard, Once, OnceLock},
};

/// The register file that the instruction starts from, and afterwards the one that it left.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Registers {
    /// XSAVE area in the standard format.
    pub xsave: [u8; 1088],
    /// RAX to R15; RSP is not used.
    pub gpr: [u64; 16],
    pub flags: u64,
    /// Where the instruction is.
    pub code: u64,
    /// The signal it raised, or 0.
    pub signal: u64,
}

global_asm!(
    ".pushsection .bss",
    ".p2align 3",
    "rekvm_test_area: .quad 0",
    "rekvm_test_stack: .quad 0",
    "rekvm_test_code: .quad 0",
    ".popsection",
    ".pushsection .text",
    ".global rekvm_test_run",
    "rekvm_test_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov [rip + rekvm_test_stack], rsp",
    "mov [rip + rekvm_test_area], rdi",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [rdi]",
    "push qword ptr [rdi + 1088 + 128]",
    "mov rax, [rdi + 1088 + 136]",
    "mov [rip + rekvm_test_code], rax",
    "mov rax, [rdi + 1088]",
    "mov rcx, [rdi + 1088 + 8]",
    "mov rdx, [rdi + 1088 + 16]",
    "mov rbx, [rdi + 1088 + 24]",
    "mov rbp, [rdi + 1088 + 40]",
    "mov rsi, [rdi + 1088 + 48]",
    "mov r8, [rdi + 1088 + 64]",
    "mov r9, [rdi + 1088 + 72]",
    "mov r10, [rdi + 1088 + 80]",
    "mov r11, [rdi + 1088 + 88]",
    "mov r12, [rdi + 1088 + 96]",
    "mov r13, [rdi + 1088 + 104]",
    "mov r14, [rdi + 1088 + 112]",
    "mov r15, [rdi + 1088 + 120]",
    "mov rdi, [rdi + 1088 + 56]",
    "popfq",
    "jmp qword ptr [rip + rekvm_test_code]",
    ".global rekvm_test_back",
    "rekvm_test_back:",
    "mov rsp, [rip + rekvm_test_stack]",
    "pushfq",
    "push rdi",
    "mov rdi, [rip + rekvm_test_area]",
    "mov [rdi + 1088], rax",
    "mov [rdi + 1088 + 8], rcx",
    "mov [rdi + 1088 + 16], rdx",
    "mov [rdi + 1088 + 24], rbx",
    "mov [rdi + 1088 + 40], rbp",
    "mov [rdi + 1088 + 48], rsi",
    "pop rax",
    "mov [rdi + 1088 + 56], rax",
    "mov [rdi + 1088 + 64], r8",
    "mov [rdi + 1088 + 72], r9",
    "mov [rdi + 1088 + 80], r10",
    "mov [rdi + 1088 + 88], r11",
    "mov [rdi + 1088 + 96], r12",
    "mov [rdi + 1088 + 104], r13",
    "mov [rdi + 1088 + 112], r14",
    "mov [rdi + 1088 + 120], r15",
    "pop rax",
    "mov [rdi + 1088 + 128], rax",
    "mov eax, 7",
    "xor edx, edx",
    "xsave64 [rdi]",
    "vzeroupper",
    "fninit",
    "cld",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "add rsp, 16",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn rekvm_test_run(registers: *mut Registers);
    fn rekvm_test_back();
}

static LOCK: Mutex<()> = Mutex::new(());
static INSTALL: Once = Once::new();
static PREVIOUS: OnceLock<[(i32, usize); 3]> = OnceLock::new();
static SIGNAL: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);
static CODE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    use std::sync::atomic::Ordering::Relaxed;
    // SAFETY: the kernel passes a valid context to an SA_SIGINFO handler.
    let rip = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] };
    let code = CODE.load(Relaxed);
    if (*rip as u64).wrapping_sub(code) > 64 {
        // Not in the instruction under test: another handler's business, or a bug, in a stub for instance.
        let old = PREVIOUS.get().and_then(|all| all.iter().find(|(n, _)| *n == signal));
        match old.map(|(_, handler)| *handler) {
            Some(handler) if handler > 1 => {
                type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: the handler that was installed before this one; all here are of this type.
                unsafe { std::mem::transmute::<usize, Handler>(handler)(signal, info, context) };
                return;
            }
            // SAFETY: async-signal-safe.
            _ => unsafe { libc::abort() },
        }
    }
    SIGNAL.store(signal, Relaxed);
    *rip = rekvm_test_back as *const () as i64;
}

/// The processor, one user at a time.
pub struct Hardware {
    _lock: MutexGuard<'static, ()>,
    page: *mut u8,
}

impl Hardware {
    pub fn get() -> Self {
        let lock = LOCK.lock().unwrap_or_else(|e| e.into_inner());
        INSTALL.call_once(|| {
            let mut previous = [(libc::SIGFPE, 0), (libc::SIGILL, 0), (libc::SIGSEGV, 0)];
            for (signal, old_handler) in &mut previous {
                // SAFETY: an all-zero sigaction is valid, and the handler has the right type.
                unsafe {
                    let mut old: libc::sigaction = std::mem::zeroed();
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = on_signal as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
                    libc::sigaction(*signal, &action, &mut old);
                    *old_handler = old.sa_sigaction;
                }
            }
            let _ = PREVIOUS.set(previous);
        });
        // SAFETY: a new private mapping.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        Self { _lock: lock, page: page.cast() }
    }

    /// Where the instruction runs.
    pub fn code(&self) -> u64 {
        self.page as u64
    }

    /// Executes `bytes` on `registers`; returns the signal that it raised, or 0.
    pub fn run(&self, bytes: &[u8], registers: &mut Registers) -> i32 {
        use std::sync::atomic::Ordering::Relaxed;
        assert!(bytes.len() <= 15);
        let mut code = [0u8; 64];
        code[..bytes.len()].copy_from_slice(bytes);
        // jmp [rip + 0]
        code[bytes.len()..bytes.len() + 6].copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
        let back = rekvm_test_back as *const () as u64;
        code[bytes.len() + 6..bytes.len() + 14].copy_from_slice(&back.to_le_bytes());
        registers.code = self.code();
        SIGNAL.store(0, Relaxed);
        CODE.store(self.code(), Relaxed);
        // SAFETY: the page is ours and executable; the trampoline saves what the calling convention wants saved,
        // and the instruction under test touches the registers and the test's own memory only.
        unsafe {
            self.page.copy_from(code.as_ptr(), code.len());
            rekvm_test_run(registers);
        }
        SIGNAL.load(Relaxed)
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        // SAFETY: mapped in `get`.
        unsafe { libc::munmap(self.page.cast(), 4096) };
    }
}
