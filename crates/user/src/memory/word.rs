//! Loads, stores and locked operations of one word.
use std::arch::asm;

use platform::BadAddress;

use super::fault_entry;

/// Loads. An asm block with a label cannot have outputs yet, so the failure comes back in a register that is zero
/// before and set on a path of its own.
macro_rules! load {
    ($name:ident, $mov:literal) => {
        #[inline(always)]
        pub(super) fn $name(at: u64) -> Result<u64, BadAddress> {
            let value: u64;
            let failed: u32;
            // SAFETY: the read has no effect on this program's memory, and if it faults, the handler continues
            // at label 4 with the failure set.
            unsafe {
                asm!(
                    concat!("2: ", $mov),
                    "3:",
                    fault_entry!("4f"),
                    ".pushsection .text.rekvm_fixup,\"ax\",@progbits",
                    "4: mov {failed:e}, 1",
                    "jmp 3b",
                    ".popsection",
                    at = in(reg) at,
                    value = out(reg) value,
                    failed = inout(reg) 0u32 => failed,
                    options(nostack, preserves_flags),
                );
            }
            if failed != 0 { Err(BadAddress) } else { Ok(value) }
        }
    };
}
load!(load8, "movzx {value:e}, byte ptr [{at}]");
load!(load16, "movzx {value:e}, word ptr [{at}]");
load!(load32, "mov {value:e}, dword ptr [{at}]");
load!(load64, "mov {value}, qword ptr [{at}]");

/// Stores: one move, whose fault goes straight to the error.
macro_rules! store {
    ($name:ident, $mov:literal, $class:ident, $type:ty) => {
        #[inline(always)]
        pub(super) fn $name(at: u64, value: u64) -> Result<(), BadAddress> {
            // SAFETY: the address is client memory, to which this program has no references; a fault goes to the
            // label.
            unsafe {
                asm!(
                    concat!("2: mov ", $mov),
                    fault_entry!("{failed}"),
                    at = in(reg) at,
                    value = in($class) value as $type,
                    failed = label { return Err(BadAddress) },
                    options(nostack, preserves_flags),
                );
            }
            Ok(())
        }
    };
}
store!(store8, "byte ptr [{at}], {value}", reg_byte, u8);
store!(store16, "word ptr [{at}], {value:x}", reg, u16);
store!(store32, "dword ptr [{at}], {value:e}", reg, u32);
store!(store64, "qword ptr [{at}], {value}", reg, u64);

macro_rules! cmpxchg {
    ($name:ident, $new:literal, $class:ident, $type:ty) => {
        #[inline(always)]
        pub(super) fn $name(at: u64, old: u64, new: u64) -> Result<u64, BadAddress> {
            let was: u64;
            let failed: u32;
            // SAFETY: as for loads and stores.
            unsafe {
                asm!(
                    concat!("2: lock cmpxchg [{at}], ", $new),
                    "3:",
                    fault_entry!("4f"),
                    ".pushsection .text.rekvm_fixup,\"ax\",@progbits",
                    "4: mov {failed:e}, 1",
                    "jmp 3b",
                    ".popsection",
                    at = in(reg) at,
                    new = in($class) new as $type,
                    failed = inout(reg) 0u32 => failed,
                    inout("rax") old => was,
                    options(nostack),
                );
            }
            if failed != 0 { Err(BadAddress) } else { Ok(was) }
        }
    };
}
cmpxchg!(cmpxchg8, "{new}", reg_byte, u8);
cmpxchg!(cmpxchg16, "{new:x}", reg, u16);
cmpxchg!(cmpxchg32, "{new:e}", reg, u32);
cmpxchg!(cmpxchg64, "{new}", reg, u64);

/// LOCK CMPXCHG16B on (low, high) halves. An address that is not a multiple of 16 fails like a bad one.
#[inline]
pub(super) fn cmpxchg128(at: u64, old: (u64, u64), new: (u64, u64)) -> Result<(u64, u64), BadAddress> {
    let (low, high);
    let failed: u32;
    // SAFETY: as for loads and stores. RBX belongs to the compiler: it is swapped in for the one instruction and
    // back after it, also when it faults.
    unsafe {
        asm!(
            "xchg rbx, rsi",
            "2: lock cmpxchg16b [rdi]",
            "3: xchg rbx, rsi",
            fault_entry!("4f"),
            ".pushsection .text.rekvm_fixup,\"ax\",@progbits",
            "4: mov r8d, 1",
            "jmp 3b",
            ".popsection",
            in("rdi") at,
            inout("rsi") new.0 => _,
            in("rcx") new.1,
            inout("rax") old.0 => low,
            inout("rdx") old.1 => high,
            inout("r8d") 0u32 => failed,
            options(nostack),
        );
    }
    if failed != 0 { Err(BadAddress) } else { Ok((low, high)) }
}
