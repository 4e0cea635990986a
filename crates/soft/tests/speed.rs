//! How fast the interpreter is. Run with `cargo test --release -p rekvm-soft --test speed -- --ignored --nocapture`.
mod common;

use common::{CODE, DATA, Guest};
use hv::backend::{BackendVcpu, Exit, Groups};
use iced_x86::code_asm::*;
use std::time::Instant;

fn measure(name: &str, f: impl FnOnce(&mut CodeAssembler)) {
    let g = Guest::new();
    g.code(CODE, f);
    let mut v = g.long(0);
    let start = Instant::now();
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let time = start.elapsed().as_secs_f64();
    let stats = v.stats();
    println!("{name:24} {:8.1} M instr/s  {stats:?}", stats.instructions as f64 / time / 1e6);
    let _ = v.registers(Groups::ALL);
}

#[test]
#[ignore = "a benchmark"]
fn simple_loops() {
    measure("alu loop", |a| {
        let mut top = a.create_label();
        a.mov(ecx, 5_000_000).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.xor(rdx, rax).unwrap();
        a.lea(rbx, qword_ptr(rdx + rax * 4 + 7)).unwrap();
        a.shl(rdx, 3).unwrap();
        a.sub(rsi, rbx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    measure("memory loop", |a| {
        let mut top = a.create_label();
        a.mov(ecx, 5_000_000).unwrap();
        a.mov(rsi, DATA).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(rax, qword_ptr(rsi + 8)).unwrap();
        a.add(rax, rcx).unwrap();
        a.mov(qword_ptr(rsi + 8), rax).unwrap();
        a.add(dword_ptr(rsi + 0x1000), ecx).unwrap();
        a.movzx(edx, byte_ptr(rsi + 3)).unwrap();
        a.test(edx, edx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    measure("calls", |a| {
        let mut top = a.create_label();
        let mut f = a.create_label();
        a.mov(ecx, 4_000_000).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(f).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut f).unwrap();
        a.push(rbx).unwrap();
        a.mov(rbx, rcx).unwrap();
        a.cmp(rbx, 3).unwrap();
        a.pop(rbx).unwrap();
        a.ret().unwrap();
    });
}
