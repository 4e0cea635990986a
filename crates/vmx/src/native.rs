//! The instructions themselves, and the world switch. RSP never holds a guest's value while the host runs: the processor exchanges
//! it.
use core::arch::asm;

use hardware::{Instructions as _, native::Native};
use x86::msr;

use crate::{
    fields::{HOST_RIP, HOST_RSP},
    instructions::{Entry, Forget, HostProcessor, HostThread, Instructions},
};

/// What SGDT stores and LGDT loads.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Operand of INVEPT and INVVPID.
#[repr(C, align(16))]
struct Descriptor([u64; 2]);

impl Forget {
    /// The instructions' type, and what they are about.
    fn operands(self) -> (u64, Descriptor) {
        match self {
            Self::One(what) => (1, Descriptor([what, 0])),
            Self::All => (2, Descriptor([0, 0])),
        }
    }
}

impl Instructions for Native {
    unsafe fn host_processor() -> HostProcessor {
        let (mut gdt, mut idt) = (TablePointer { limit: 0, base: 0 }, TablePointer { limit: 0, base: 0 });
        let (cr0, cs, ss, tr): (u64, u16, u16, u16);
        // SAFETY: these only read registers.
        unsafe {
            asm!("sgdt [{}]", in(reg) &raw mut gdt, options(nostack, preserves_flags));
            asm!("sidt [{}]", in(reg) &raw mut idt, options(nostack, preserves_flags));
            asm!(
                "mov {}, cr0", "mov {1:x}, cs", "mov {2:x}, ss", "str {3:x}",
                out(reg) cr0, out(reg) cs, out(reg) ss, out(reg) tr,
                options(nomem, nostack, preserves_flags)
            );
        }
        let (gdt_base, gdt_limit) = (gdt.base, gdt.limit);
        let at = gdt_base.wrapping_add(u64::from(tr & !7));
        // SAFETY: the TSS that the processor uses has a descriptor there, of 16 bytes.
        let (low, high) = unsafe { ((at as *const u64).read(), ((at + 8) as *const u64).read()) };
        let base = x86::Segment::from_descriptor(tr, low).base | high << 32;
        HostProcessor { cr0, cs, ss, tr, tr_base: base, gdt_base, gdt_limit, idt_base: idt.base }
    }

    fn host_thread() -> HostThread {
        let (ds, es, fs, gs): (u16, u16, u16, u16);
        // SAFETY: these only read registers.
        unsafe {
            asm!(
                "mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
                out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
                options(nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: every processor with long mode has these.
        let [fs_base, kernel_gs_base] = [msr::FS_BASE, msr::KERNEL_GS_BASE].map(|m| unsafe { Self::read_msr(m) });
        HostThread { selectors: [ds, es, fs, gs], fs_base, kernel_gs_base }
    }

    unsafe fn load_host(processor: &HostProcessor, thread: &HostThread, ldtr: u16) {
        let gdt = TablePointer { limit: processor.gdt_limit, base: processor.gdt_base };
        let [ds, es, fs, gs] = thread.selectors;
        // SAFETY: by the caller's promise. GS is loaded between two SWAPGS, so that an NMI meanwhile finds a state that it
        // knows from the kernel's own way in.
        unsafe {
            asm!("lgdt [{}]", in(reg) &raw const gdt, options(readonly, nostack, preserves_flags));
            if ldtr != 0 {
                asm!("lldt {:x}", in(reg) ldtr, options(nostack, preserves_flags));
            }
            if ds | es != 0 {
                asm!("mov ds, {:x}", "mov es, {:x}", in(reg) ds, in(reg) es, options(nostack, preserves_flags));
            }
            if fs != 0 {
                asm!("mov fs, {:x}", in(reg) fs, options(nostack, preserves_flags));
                Self::write_msr(msr::FS_BASE, thread.fs_base);
            }
            if gs != 0 {
                asm!("swapgs", "mov gs, {:x}", "lfence", "swapgs", in(reg) gs, options(nostack, preserves_flags));
            }
        }
    }

    fn ldtr() -> u16 {
        let selector: u16;
        // SAFETY: only reads a register.
        unsafe { asm!("sldt {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
        selector
    }

    fn cr2() -> u64 {
        let value;
        // SAFETY: only reads a register.
        unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    unsafe fn set_cr2(value: u64) {
        // SAFETY: by the caller's promise.
        unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
    }

    fn cr3() -> u64 {
        let value;
        // SAFETY: only reads a register.
        unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    fn cr4() -> u64 {
        let value;
        // SAFETY: only reads a register.
        unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    unsafe fn vmxon(region: u64) -> bool {
        let failed: u8;
        // SAFETY: by the caller's promise.
        unsafe { asm!("vmxon [{}]", "setbe {}", in(reg) &raw const region, out(reg_byte) failed, options(nostack)) };
        failed == 0
    }

    unsafe fn vmxoff() {
        // SAFETY: by the caller's promise.
        unsafe { asm!("vmxoff", options(nostack)) };
    }

    unsafe fn vmclear(region: u64) {
        // SAFETY: by the caller's promise.
        unsafe { asm!("vmclear [{}]", in(reg) &raw const region, options(nostack)) };
    }

    unsafe fn vmptrld(region: u64) {
        // SAFETY: by the caller's promise.
        unsafe { asm!("vmptrld [{}]", in(reg) &raw const region, options(nostack)) };
    }

    #[inline]
    unsafe fn vmread(field: u32) -> u64 {
        let value;
        // SAFETY: by the caller's promise. A field that is not there leaves the register alone.
        unsafe { asm!("vmread {}, {}", inout(reg) 0u64 => value, in(reg) u64::from(field), options(nostack)) };
        value
    }

    #[inline]
    unsafe fn vmwrite(field: u32, value: u64) {
        // SAFETY: by the caller's promise.
        unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack)) };
    }

    unsafe fn invept(what: Forget) {
        let (kind, descriptor) = what.operands();
        // SAFETY: by the caller's promise.
        unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack)) };
    }

    unsafe fn invvpid(what: Forget) {
        let (kind, descriptor) = what.operands();
        // SAFETY: by the caller's promise.
        unsafe { asm!("invvpid {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack)) };
    }

    unsafe fn nmi() {
        // SAFETY: the kernel's handler is behind vector 2 and returns by IRET, which unblocks NMIs.
        unsafe { asm!("int 2") };
    }

    #[inline(never)]
    unsafe fn run(gpr: &mut [u64; 16], launched: bool, host_stack: &mut u64, fill_rsb: bool) -> Entry {
        let refused: u64;
        // SAFETY: by the caller's promise. General registers are saved to `gpr` and the host's taken back from the stack.
        unsafe {
            asm!(
                "push rbp",
                "push rbx",
                "push rcx",
                // Refused.
                "push 0",
                "push rdi",
                // Where the exit goes: always here, and nearly always with this stack.
                "cmp [rdx], rsp",
                "je 2f",
                "mov [rdx], rsp",
                "mov eax, {host_rsp}",
                "vmwrite rax, rsp",
                "lea rcx, [rip + 4f]",
                "mov eax, {host_rip}",
                "vmwrite rax, rcx",
                "2:",
                "test esi, esi",
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
                "jnz 3f",
                "vmlaunch",
                "jmp 5f",
                "3:",
                // Behind it only if it is refused. The jump is always taken, and says that what follows can be reached.
                "vmresume",
                "jbe 5f",
                "4:",
                "push rdi",
                "mov rdi, [rsp + 8]",
                "mov [rdi], rax",
                "mov [rdi + 8], rcx",
                "mov [rdi + 16], rdx",
                "mov [rdi + 24], rbx",
                "mov [rdi + 40], rbp",
                "mov [rdi + 48], rsi",
                "mov [rdi + 64], r8",
                "mov [rdi + 72], r9",
                "mov [rdi + 80], r10",
                "mov [rdi + 88], r11",
                "mov [rdi + 96], r12",
                "mov [rdi + 104], r13",
                "mov [rdi + 112], r14",
                "mov [rdi + 120], r15",
                "pop rcx",
                "mov [rdi + 56], rcx",
                "pop rdi",
                "pop rax",
                "pop rcx",
                "test ecx, ecx",
                "jz 6f",
                hardware::fill_return_stack!(),
                "6:",
                hardware::clear_registers!(),
                "pop rbx",
                "pop rbp",
                "jmp 7f",
                "5:",
                "mov qword ptr [rsp + 8], 1",
                "jmp 4b",
                "7:",
                host_rsp = const HOST_RSP.encoding(),
                host_rip = const HOST_RIP.encoding(),
                inout("rdi") gpr.as_mut_ptr() => _,
                inout("rsi") u64::from(launched) => _,
                inout("rdx") &raw mut *host_stack => _,
                inout("rcx") u64::from(fill_rsb) => _,
                out("rax") refused,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
        if refused == 0 { Entry::Left } else { Entry::Refused }
    }
}
