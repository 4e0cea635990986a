//! The instructions themselves, and the world switch. RSP never holds a guest's value: VMRUN keeps the host's, and the guest's
//! is in the control block.
use core::arch::asm;

use crate::instructions::Instructions;

/// The processor that runs this.
#[derive(Debug)]
pub struct Native;

impl Instructions for Native {
    fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
        let answer = core::arch::x86_64::__cpuid_count(leaf, sub);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    unsafe fn read_msr(index: u32) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: by the caller's promise.
        unsafe {
            asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack, preserves_flags));
        }
        u64::from(low) | u64::from(high) << 32
    }

    unsafe fn write_msr(index: u32, value: u64) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "wrmsr",
                in("ecx") index,
                in("eax") value as u32,
                in("edx") (value >> 32) as u32,
                options(nostack, preserves_flags)
            );
        }
    }

    unsafe fn xcr0() -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: by the caller's promise.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, preserves_flags));
        }
        u64::from(low) | u64::from(high) << 32
    }

    unsafe fn set_xcr0(value: u64) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "xsetbv",
                in("ecx") 0,
                in("eax") value as u32,
                in("edx") (value >> 32) as u32,
                options(nostack, preserves_flags)
            );
        }
    }

    unsafe fn set_debug_addresses(addresses: &[u64; 4]) {
        let [a, b, c, d] = *addresses;
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                in(reg) a, in(reg) b, in(reg) c, in(reg) d,
                options(nostack, preserves_flags)
            );
        }
    }

    unsafe fn clear_buffers() {
        let mut selector = 0u16;
        // SAFETY: VERW only looks at the descriptor of SS; its form with a memory operand is the one that clears.
        unsafe {
            asm!("mov word ptr [{0}], ss", "verw word ptr [{0}]", in(reg) &raw mut selector, options(nostack));
        }
    }

    unsafe fn clgi() {
        // SAFETY: by the caller's promise.
        unsafe { asm!("clgi", options(nostack, preserves_flags)) }
    }

    unsafe fn stgi() {
        // SAFETY: by the caller's promise.
        unsafe { asm!("stgi", options(nostack, preserves_flags)) }
    }

    #[inline(never)]
    unsafe fn run(guest: u64, host: u64, gpr: &mut [u64; 16], fill_rsb: bool) {
        // SAFETY: by the caller's promise. What VMRUN, VMLOAD and VMSAVE touch is in the two pages; general registers
        // are saved to `gpr` and the host's taken back from the stack.
        unsafe {
            asm!(
                "push rbp",
                "push rbx",
                "push rcx",
                "push rdx",
                "push rdi",
                // VMLOAD brings back only what VMSAVE has put there: the host's state as it is now.
                "mov rax, rdx",
                "vmsave rax",
                "mov rax, rsi",
                "vmload rax",
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
                // Physical interrupts end the guest's run: VMRUN takes the host's IF for that. GIF keeps them out here.
                "sti",
                "vmrun rax",
                "cli",
                // RAX and RSP are the host's again, the others still the guest's.
                "push rdi",
                "mov rdi, [rsp + 8]",
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
                "vmsave rax",
                "pop rdi",
                "pop rax",
                "vmload rax",
                "pop rcx",
                // Thirty-two calls that are never returned from: what the guest has left in the return stack buffer is gone.
                "test ecx, ecx",
                "jz 5f",
                "mov ecx, 16",
                "2:",
                ".pushsection .discard.intra_function_calls, \"\", @progbits",
                ".long 6f",
                ".long 7f",
                ".popsection",
                "6: call 3f",
                "int3",
                "3:",
                "7: call 4f",
                "int3",
                "4:",
                "add rsp, 16",
                "dec ecx",
                "jnz 2b",
                "lfence",
                "5:",
                // Nothing of the guest's stays where wrong speculation could use it.
                "xor edx, edx",
                "xor esi, esi",
                "xor r8d, r8d",
                "xor r9d, r9d",
                "xor r10d, r10d",
                "xor r11d, r11d",
                "xor r12d, r12d",
                "xor r13d, r13d",
                "xor r14d, r14d",
                "xor r15d, r15d",
                "pop rbx",
                "pop rbp",
                inout("rsi") guest => _,
                inout("rdx") host => _,
                inout("rdi") gpr.as_mut_ptr() => _,
                inout("rcx") u64::from(fill_rsb) => _,
                out("rax") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
    }
}
