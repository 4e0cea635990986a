//! The instructions themselves.
use core::arch::asm;

use crate::Instructions;

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
        // SAFETY: by the caller's promise. Bit 10 of DR7 is always one.
        unsafe {
            asm!(
                "mov dr7, {}", "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                in(reg) x86::debug::DR7_FIXED, in(reg) a, in(reg) b, in(reg) c, in(reg) d,
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
}

/// Assembly for behind an exit: thirty-two calls that are never returned from, so that what the guest has left in the return
/// stack buffer is gone. One behind the other, as a loop takes more than twice as many instructions. Label 20.
#[macro_export]
macro_rules! fill_return_stack {
    () => {
        ".rept 32
        .pushsection .discard.intra_function_calls, \"\", @progbits
        .long 20f
        .popsection
        20: call 21f
        int3
        21:
        .endr
        add rsp, 256
        lfence"
    };
}

/// Assembly for behind an exit: nothing of the guest's stays in these registers, where wrong speculation could use it.
#[macro_export]
macro_rules! clear_registers {
    () => {
        "xor edx, edx
        xor esi, esi
        xor r8d, r8d
        xor r9d, r9d
        xor r10d, r10d
        xor r11d, r11d
        xor r12d, r12d
        xor r13d, r13d
        xor r14d, r14d
        xor r15d, r15d"
    };
}
