//! Code that is written while it runs: by itself, by another vCPU, by the client.
mod common;

use common::{CODE, DATA, Guest};
use hv::backend::{BackendVcpu, Exit, Groups};
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

#[test]
fn a_block_sees_its_own_store_at_the_next_instruction() {
    let g = Guest::new();
    g.code(CODE, |a| {
        let mut target = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut again).unwrap();
        a.lea(rbx, ptr(target)).unwrap();
        // The immediate of the next instruction, in the same block.
        a.mov(byte_ptr(rbx + 1), cl).unwrap();
        a.set_label(&mut target).unwrap();
        a.mov(al, 0x55).unwrap();
        a.movzx(eax, al).unwrap();
        a.add(rdx, rax).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(v.registers(Groups::ALL).gpr[2], 3 + 2 + 1);
    assert!(v.stats().code_writes >= 3);
}

#[test]
fn code_is_seen_to_change_through_another_mapping() {
    let g = Guest::new();
    let alias = 0xffff_8000_0000_0000 + CODE;
    g.code(CODE, |a| {
        let mut target = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 100).unwrap();
        a.mov(r8, 0xffff_8000_0000_0000u64).unwrap();
        a.set_label(&mut again).unwrap();
        a.call(target).unwrap();
        a.add(rdx, rax).unwrap();
        a.lea(rbx, ptr(target)).unwrap();
        a.mov(byte_ptr(rbx + r8 + 1), cl).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
        // In a granule of its own.
        for _ in 0..64 {
            a.nop().unwrap();
        }
        a.set_label(&mut target).unwrap();
        a.mov(eax, 7).unwrap();
        a.ret().unwrap();
    });
    let mut v = g.long(0);
    let _ = alias;
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(v.registers(Groups::ALL).gpr[2], 7 + (2..=100).sum::<u64>());
}

#[test]
fn data_beside_code_costs_no_blocks() {
    let g = Guest::new();
    g.code(CODE, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 10_000).unwrap();
        a.mov(rbx, CODE + 0x800).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(qword_ptr(rbx), rcx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let stats = v.stats();
    assert!(stats.blocks < 10 && stats.code_writes == 0, "{stats:?}");
}

#[test]
fn what_the_client_writes_is_seen_after_the_next_entry() {
    let g = Guest::new();
    g.code(CODE, |a| {
        a.mov(eax, 1).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    for n in 0..5u8 {
        g.write(CODE + 1, &[n]);
        v.registers_mut(Groups::ALL).rip = CODE;
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[0], n as u64);
    }
}

#[test]
fn invlpg_makes_other_code_appear() {
    let g = Guest::new();
    // Two versions of a function, at CODE + 0x1000 and DATA; the page of the first is mapped to the second.
    for (at, value) in [(CODE + 0x1000, 5), (DATA, 50)] {
        g.code(at, |a| {
            a.add(eax, value).unwrap();
            a.ret().unwrap();
        });
    }
    g.code(CODE, |a| {
        a.mov(rbx, CODE + 0x1000).unwrap();
        a.mov(rsi, Guest::pte(CODE + 0x1000)).unwrap();
        a.mov(edi, (DATA | 3) as u32).unwrap();
        a.call(rbx).unwrap();
        a.call(rbx).unwrap();
        a.mov(qword_ptr(rsi), rdi).unwrap();
        a.invlpg(byte_ptr(rbx)).unwrap();
        a.call(rbx).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(v.registers(Groups::ALL).gpr[0], 60);
}

#[test]
fn another_vcpu_sees_new_code_when_it_is_told_of_it() {
    // vCPU 1 calls a function whenever the counter at DATA moves, and answers with what it returned at DATA + 8. vCPU 0
    // writes the function's immediate, then the counter.
    let g = Guest::new();
    let function = CODE + 0x3000;
    g.code(function, |a| {
        a.mov(eax, 0).unwrap();
        a.ret().unwrap();
    });
    g.code(CODE, |a| {
        let mut again = a.create_label();
        let mut wait = a.create_label();
        let mut out = a.create_label();
        a.mov(r8, DATA).unwrap();
        a.mov(ecx, 1).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(dword_ptr(function + 1), ecx).unwrap();
        a.mov(dword_ptr(r8), ecx).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.mov(eax, dword_ptr(r8 + 8)).unwrap();
        a.cmp(eax, ecx).unwrap();
        a.jb(wait).unwrap();
        a.jne(out).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, 2000).unwrap();
        a.jne(again).unwrap();
        a.set_label(&mut out).unwrap();
        a.hlt().unwrap();
    });
    g.code(CODE + 0x1000, |a| {
        let mut again = a.create_label();
        a.mov(r8, DATA).unwrap();
        a.mov(rbx, function).unwrap();
        a.xor(edx, edx).unwrap();
        a.set_label(&mut again).unwrap();
        a.pause().unwrap();
        a.mov(ecx, dword_ptr(r8)).unwrap();
        a.cmp(ecx, edx).unwrap();
        a.je(again).unwrap();
        a.mov(edx, ecx).unwrap();
        a.call(rbx).unwrap();
        // An old value would be smaller: answer with what lets vCPU 0 stop.
        a.cmp(eax, ecx).unwrap();
        let mut good = a.create_label();
        a.je(good).unwrap();
        a.mov(eax, 0x7fff_ffff).unwrap();
        a.set_label(&mut good).unwrap();
        a.mov(dword_ptr(r8 + 8), eax).unwrap();
        a.jmp(again).unwrap();
    });
    let (mut a, mut b) = (g.long(0), g.long(1));
    b.registers_mut(Groups::ALL).rip = CODE + 0x1000;
    let stop = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let handle = scope.spawn(|| {
            loop {
                match g.enter_as(1, &mut b, &stop) {
                    Exit::Interrupted => break,
                    Exit::Pause { len } => {
                        b.registers_mut(Groups::ALL).rip += len as u64;
                        std::thread::yield_now();
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        loop {
            match g.enter_as(0, &mut a, &g.requests) {
                Exit::Hlt { .. } => break,
                Exit::Pause { len } => {
                    a.registers_mut(Groups::ALL).rip += len as u64;
                    std::thread::yield_now();
                }
                other => panic!("{other:?}"),
            }
        }
        stop.store(1, SeqCst);
        handle.join().unwrap();
    });
    assert_eq!(a.registers(Groups::ALL).gpr[1], 2000);
}

#[test]
fn a_cache_that_is_full_starts_over() {
    let g = Guest::new();
    // 2 MiB of five-byte instructions and a jump back: more than the cache holds.
    let start = 0x60_0000u64;
    let count = 300_000u64;
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.extend_from_slice(&[0x05, 1, 0, 0, 0]);
    }
    bytes.extend_from_slice(&[0xff, 0xc9, 0x75, 0x03, 0xf4, 0x90, 0x90]);
    let back = start.wrapping_sub(start + bytes.len() as u64 + 5) as u32;
    bytes.push(0xe9);
    bytes.extend_from_slice(&back.to_le_bytes());
    g.write(start, &bytes);
    let mut v = g.long(0);
    let s = v.registers_mut(Groups::ALL);
    s.rip = start;
    s.gpr[1] = 3;
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(v.registers(Groups::ALL).gpr[0], 3 * count);
    assert!(v.stats().cache_flushes > 0);
}
