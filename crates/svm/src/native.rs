//! The instructions themselves, and the world switch. RSP never holds a guest's value: VMRUN keeps the host's, and the guest's
//! is in the control block.
use core::arch::asm;

use hardware::native::Native;
use platform::hardware::Mitigations;

use crate::instructions::Instructions;

impl Instructions for Native {
    unsafe fn clgi() {
        // SAFETY: by the caller's promise.
        unsafe { asm!("clgi", options(nostack, preserves_flags)) }
    }

    unsafe fn stgi() {
        // SAFETY: by the caller's promise.
        unsafe { asm!("stgi", options(nostack, preserves_flags)) }
    }

    unsafe fn set_dr7(value: u64) {
        // SAFETY: by the caller's promise.
        unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack, preserves_flags)) }
    }

    #[inline]
    unsafe fn run(guest: u64, host: u64, gpr: &mut [u64; 16], mitigations: &Mitigations) {
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
                // Physical interrupts end the guest's run: VMRUN takes the host's IF for that. GIF keeps them out here. VMRUN
                // in the shadow of STI would begin the guest in that shadow.
                "sti",
                "mov rdi, [rdi + 56]",
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
                "test cl, 1",
                "jz 5f",
                hardware::fill_return_stack!(),
                "5:",
                "test cl, 2",
                "jz 6f",
                // Where there is no kernel nothing asks for it.
                ".weak rekvm_untrain_returns",
                "call rekvm_untrain_returns",
                "6:",
                hardware::clear_registers!(),
                "pop rbx",
                "pop rbp",
                inout("rsi") guest => _,
                inout("rdx") host => _,
                inout("rdi") gpr.as_mut_ptr() => _,
                inout("rcx") u64::from(mitigations.fill_rsb) | u64::from(mitigations.untrain_returns) << 1 => _,
                out("rax") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
    }
}
