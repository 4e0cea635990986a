//! CPUID as a client is to see it: with the processor's virtualization, which some look for themselves before they open the device
//! (kvmtool). Where the kernel can have the processor fault on CPUID (`arch_prctl(ARCH_SET_CPUID)`), the fault's handler answers.
use std::{
    arch::x86_64::{__cpuid_count, CpuidResult},
    sync::atomic::{AtomicBool, Ordering},
};

use hv::Errno;
use libc::{c_int, siginfo_t, ucontext_t};
use platform::{Hva, Memory};

use crate::{ClientMemory, fault, sys};

const ARCH_SET_CPUID: usize = 0x1012;
/// `si_code` of a fault that concerns no address (asm-generic/siginfo.h).
const SI_KERNEL: c_int = 0x80;
/// The instruction.
const CPUID: u16 = 0xa20f;

/// CPUID faults, in the thread that asked for it and those that it starts.
static SHOWN: AtomicBool = AtomicBool::new(false);

fn faults(wanted: bool) -> Result<(), Errno> {
    // SAFETY: concerns one instruction of this thread, which our handler answers.
    unsafe { sys::call(libc::SYS_arch_prctl, [ARCH_SET_CPUID, usize::from(!wanted), 0, 0, 0, 0]) }.map(drop)
}

/// From now on CPUID tells the calling thread, and threads that it starts, of virtualization.
///
/// # Errors
/// ENODEV: this processor, or the kernel, cannot have CPUID fault.
pub fn show_virtualization() -> Result<(), Errno> {
    fault::install().map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::ENODEV)))?;
    SHOWN.store(true, Ordering::Release);
    faults(true)
}

/// What the processor says, and that it virtualizes: AMD's by SVM, others by VMX.
fn shown(leaf: u32, subleaf: u32) -> CpuidResult {
    let (mut said, vendor) = (__cpuid_count(leaf, subleaf), __cpuid_count(0, 0).ecx);
    let amd = [*b"cAMD", *b"uine"].map(u32::from_le_bytes).contains(&vendor);
    match leaf {
        1 if !amd => said.ecx |= 1 << 5,
        0x8000_0001 if amd => said.ecx |= 1 << 2,
        _ => {}
    }
    said
}

/// Answers if the fault is one of CPUID. Async-signal-safe; touches no variable of the thread.
pub(crate) fn answer(signal: c_int, info: *const siginfo_t, context: &mut ucontext_t) -> bool {
    // SAFETY: the kernel passes a valid siginfo.
    let code = unsafe { (*info).si_code };
    let registers = &mut context.uc_mcontext.gregs;
    let at = Hva(registers[libc::REG_RIP as usize] as u64);
    let is_cpuid = || ClientMemory::load::<u16>(at) == Ok(CPUID);
    if signal != libc::SIGSEGV || code != SI_KERNEL || !SHOWN.load(Ordering::Acquire) || !is_cpuid() {
        return false;
    }
    let _ = faults(false);
    let said = shown(registers[libc::REG_RAX as usize] as u32, registers[libc::REG_RCX as usize] as u32);
    let _ = faults(true);
    let answers =
        [(libc::REG_RAX, said.eax), (libc::REG_RBX, said.ebx), (libc::REG_RCX, said.ecx), (libc::REG_RDX, said.edx)];
    for (register, value) in answers {
        registers[register as usize] = value.into();
    }
    registers[libc::REG_RIP as usize] += 2;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_tells_of_virtualization_and_else_what_it_told() {
        let leaves = [(0, 0), (1, 0), (7, 0), (0x8000_0000, 0), (0x8000_0001, 0), (0x8000_0002, 0)];
        // Bits 31 to 24 of EBX of leaf 1 are of the processor that the thread happens to be on.
        let ask = |(leaf, subleaf)| {
            let said = __cpuid_count(leaf, subleaf);
            [said.eax, said.ebx & if leaf == 1 { 0x00ff_ffff } else { u32::MAX }, said.ecx, said.edx]
        };
        let before = leaves.map(ask);
        if show_virtualization() == Err(Errno(libc::ENODEV)) {
            eprintln!("this processor cannot have CPUID fault");
            return;
        }
        let after = leaves.map(ask);
        let child = std::thread::spawn(move || leaves.map(ask)).join().expect("a thread");
        let expected = {
            let mut all = before;
            let amd = before[0][1..] == [0x6874_7541, 0x444d_4163, 0x6974_6e65];
            let (leaf, bit) = if amd { (4, 2) } else { (1, 5) };
            all[leaf][2] |= 1 << bit;
            all
        };
        // OSXSAVE and the like are the thread's.
        assert_eq!((after, child), (expected, expected));
        faults(false).expect("as before");
    }
}
