//! What one instruction costs, handler and stub, without fetching and decoding. Not a test of anything; run it with
//! `cargo test --release -p rekvm-soft native::tests::speed -- --ignored --nocapture`.
use std::time::Instant;

use emulate::{Op, decode};

use super::machine::Machine;

const CASES: &[(&str, &[u8])] = &[
    ("movaps xmm1, xmm2", &[0x0f, 0x28, 0xca]),
    ("movups xmm0, [r10]", &[0x41, 0x0f, 0x10, 0x02]),
    ("movups [r10], xmm0", &[0x41, 0x0f, 0x11, 0x02]),
    ("vmovdqu ymm0, [r10]", &[0xc4, 0xc1, 0x7e, 0x6f, 0x02]),
    ("pxor xmm0, xmm0", &[0x66, 0x0f, 0xef, 0xc0]),
    ("pcmpeqb xmm0, xmm1", &[0x66, 0x0f, 0x74, 0xc1]),
    ("pcmpeqb xmm0, [r10]", &[0x66, 0x41, 0x0f, 0x74, 0x02]),
    ("pmovmskb eax, xmm0", &[0x66, 0x0f, 0xd7, 0xc0]),
    ("vpcmpeqb ymm0, ymm1, ymm2", &[0xc5, 0xf5, 0x74, 0xc2]),
    ("addsd xmm0, xmm1", &[0xf2, 0x0f, 0x58, 0xc1]),
    ("addps xmm0, [r10]", &[0x41, 0x0f, 0x58, 0x02]),
    ("ucomisd xmm0, xmm1", &[0x66, 0x0f, 0x2e, 0xc1]),
    ("cvtsi2sd xmm0, rax", &[0xf2, 0x48, 0x0f, 0x2a, 0xc0]),
    ("vfmadd231pd ymm0, ymm1, ymm2", &[0xc4, 0xe2, 0xf5, 0xb8, 0xc2]),
    ("paddb mm0, mm1", &[0x0f, 0xfc, 0xc1]),
    ("fld qword [r10]; fstp st0", &[0x41, 0xdd, 0x02]),
    ("fadd st0, st0", &[0xd8, 0xc0]),
    ("fxch", &[0xd9, 0xc9]),
    ("fst qword [r10]", &[0x41, 0xdd, 0x12]),
];

#[test]
#[ignore = "a measurement"]
fn cost() {
    let mut m = Machine::new();
    m.state.fpu = x86::Fpu::default();
    m.state.gpr[10] = m.at();
    for i in 0..16 {
        m.state.fpu.legacy.xmm[i] = (1.0f64.to_bits() as u128).to_le_bytes();
    }
    m.state.fpu.legacy.ftw = 0xff;
    for st in &mut m.state.fpu.legacy.st {
        st[7] = 0x80;
        (st[8], st[9]) = (0xff, 0x3f);
    }
    let fstp: Op<Machine> = decode(&[0xdd, 0xd8], m.state.mode, m.features).unwrap();
    for (name, bytes) in CASES {
        let op: Op<Machine> = decode(bytes, m.state.mode, m.features).unwrap();
        let pair = name.contains(';');
        if pair {
            m.state.fpu.legacy.ftw = 0;
        }
        // The best of many short runs: the machine may be busy with other things.
        const N: u32 = 20_000;
        let mut best = f64::MAX;
        for _ in 0..100 {
            let start = Instant::now();
            for _ in 0..N {
                std::hint::black_box(&op).execute(&mut m).unwrap();
                if pair {
                    std::hint::black_box(&fstp).execute(&mut m).unwrap();
                }
            }
            best = best.min(start.elapsed().as_nanos() as f64 / N as f64);
        }
        println!("{name:32} {best:6.1} ns");
        if pair {
            m.state.fpu.legacy.ftw = 0xff;
        }
    }
    println!("{:?} stubs and flushes", m.native.statistics());
}
