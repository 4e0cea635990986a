//! Division of 128-bit numbers, which compiled code calls by these names and no kernel has.

/// One DIV: (high, low) / by and the remainder; `high` is below `by`.
fn div(high: u64, low: u64, by: u64) -> (u64, u64) {
    let (quotient, remainder);
    // SAFETY: the quotient fits, as `high` is below `by`, which is therefore not zero.
    unsafe {
        core::arch::asm!("div {by}", by = in(reg) by, inout("rax") low => quotient, inout("rdx") high => remainder,
                         options(pure, nomem, nostack));
    }
    (quotient, remainder)
}

fn halves(n: u128) -> (u64, u64) {
    ((n >> 64) as u64, n as u64)
}

/// `n / by`. Compiled code never asks for a division by zero; it would get zero.
#[unsafe(no_mangle)]
extern "C" fn __udivti3(n: u128, by: u128) -> u128 {
    if by >> 64 == 0 {
        let ((high, low), (_, by)) = (halves(n), halves(by));
        if by == 0 {
            return 0;
        }
        let (quotient, rest) = div(0, high, by);
        return u128::from(quotient) << 64 | u128::from(div(rest, low, by).0);
    }
    // A divisor of more than 64 bits: the quotient has fewer than 64, one at a time.
    let (mut rest, mut quotient) = (n, 0u64);
    for bit in (0..=by.leading_zeros()).rev() {
        let part = by << bit;
        if rest >= part {
            rest -= part;
            quotient |= 1 << bit;
        }
    }
    u128::from(quotient)
}

/// The same for signed numbers; rounds towards zero.
#[unsafe(no_mangle)]
extern "C" fn __divti3(n: i128, by: i128) -> i128 {
    let quotient = __udivti3(n.unsigned_abs(), by.unsigned_abs()) as i128;
    if (n < 0) != (by < 0) { quotient.wrapping_neg() } else { quotient }
}
