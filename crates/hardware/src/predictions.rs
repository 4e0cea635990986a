//! What a processor has learned of one guest's branches must not reach another (Spectre, variant 2).
use platform::hardware::Mitigations;
use x86::msr;

use crate::Instructions;

/// MSR 0x49, bit 0: nothing that was learned of branches before has an effect on those behind it.
const BARRIER: u64 = 1;

/// vCPU `next` takes the processor, which `last` had before: 0 for none. Answers whether it is another.
pub fn take_over<I: Instructions>(last: &mut u64, next: u64, mitigations: &Mitigations) -> bool {
    let before = core::mem::replace(last, next);
    if before != next && before != 0 && mitigations.ibpb {
        // SAFETY: the host uses this register, so it is there.
        unsafe { I::write_msr(msr::PRED_CMD, BARRIER) };
    }
    before != next
}
