//! Floating point: SSE, x87 and AVX give the right bits, and each process keeps its own.
use std::{arch::asm, hint::black_box};

use crate::{Check, ensure};

/// See the module.
pub fn check() -> Check {
    let x = black_box(2.0f64);
    ensure!(x.sqrt().to_bits() == 0x3ff6_a09e_667f_3bcd, "sqrt(2) is {:x}", x.sqrt().to_bits());
    ensure!((black_box(1.0f64) / black_box(3.0)).to_bits() == 0x3fd5_5555_5555_5555, "1/3 is wrong");
    ensure!(black_box(0.1f32) as f64 == 0.10000000149011612, "conversion to double is wrong");
    ensure!(black_box(-1e300f64) as i32 == i32::MIN, "saturation is wrong");
    x87()?;
    if std::is_x86_feature_detected!("avx2") {
        avx()?;
    }
    state_is_private()
}

/// pi as the x87 has it, stored with all its 80 bits.
fn x87() -> Check {
    let mut pi = [0u8; 10];
    // SAFETY: pushes one value and pops it into ten bytes that belong to us.
    unsafe {
        asm!("fldpi", "fstp tbyte ptr [{}]", in(reg) pi.as_mut_ptr(), out("st(0)") _, out("st(1)") _,
            out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
    }
    ensure!(pi == [0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0x00, 0x40], "the x87's pi is {pi:x?}");
    Ok(())
}

fn avx() -> Check {
    let a: [u64; 4] = black_box([1, 2, 3, u64::MAX]);
    let mut sum = [0u64; 4];
    // SAFETY: AVX2 is there; 32 bytes are read and written at our own arrays.
    unsafe {
        asm!("vmovdqu ymm0, [{a}]", "vpaddq ymm0, ymm0, ymm0", "vmovdqu [{s}], ymm0", "vzeroupper",
            a = in(reg) a.as_ptr(), s = in(reg) sum.as_mut_ptr(), out("ymm0") _);
    }
    ensure!(sum == [2, 4, 6, u64::MAX - 1], "256-bit addition gives {sum:x?}");
    Ok(())
}

/// Two processes compute side by side with different values in the same registers.
fn state_is_private() -> Check {
    let compute = |seed: f64| {
        let mut x = black_box(seed);
        for i in 0..20_000u32 {
            x = x * 1.000_000_1 + 1e-9;
            if i % 100 == 0 {
                // SAFETY: gives the processor away, nothing else.
                unsafe { libc::sched_yield() };
            }
        }
        x.to_bits()
    };
    let (expect_child, expect_parent) = (compute(3.0), compute(5.0));
    // SAFETY: the child computes and leaves with _exit.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork failed");
    if pid == 0 {
        let ok = compute(3.0) == expect_child;
        // SAFETY: ends the child.
        unsafe { libc::_exit(!ok as i32) }
    }
    let mine = compute(5.0);
    let mut status = 0;
    // SAFETY: waits for our own child; status is a valid place.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    ensure!(mine == expect_parent && status == 0, "another process's floating-point registers were seen");
    Ok(())
}
