//! 64-bit guests.
mod common;

use common::{CODE, DATA, Guest};
use hv::backend::{BackendVcpu, Event, EventKind, Exit, Groups, PioExit};
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering::SeqCst;

#[test]
fn a_loop_ends_at_its_halt() {
    let g = Guest::new();
    let len = g.code(CODE, |a| {
        let mut top = a.create_label();
        a.mov(rcx, 1000u64).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.mov(qword_ptr(DATA), rax).unwrap();
        a.dec(rcx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.gpr[0], s.rip), (500_500, CODE + len - 1));
    assert_eq!(g.read64(DATA), 500_500);
    assert!(v.stats().blocks < 10 && v.stats().instructions > 4000, "{:?}", v.stats());
}

#[test]
fn device_memory_and_ports_leave_before_the_instruction() {
    let g = Guest::new();
    g.write64(Guest::pte(DATA), 0x1_0000_0000 | 3);
    g.code(CODE, |a| {
        a.mov(ebx, 5).unwrap();
        a.mov(rcx, DATA + 8).unwrap();
        a.mov(eax, dword_ptr(rcx)).unwrap();
        a.out(0x70, al).unwrap();
        a.in_(eax, dx).unwrap();
    });
    let mut v = g.long(0);
    let exit = g.enter(&mut v);
    assert_eq!(
        exit,
        Exit::NestedPageFault { gpa: 0x1_0000_0008, access: hv::backend::Access::Read, table_walk: false }
    );
    let s = v.registers_mut(Groups::ALL);
    assert_eq!((s.gpr[3], s.gpr[1]), (5, DATA + 8));
    s.rip += 2;
    assert_eq!(g.enter(&mut v), Exit::Pio(PioExit { port: 0x70, size: 1, write: true, string: false, len: 2 }));
    let s = v.registers_mut(Groups::ALL);
    s.rip += 2;
    s.gpr[2] = 0x3f8;
    assert_eq!(g.enter(&mut v), Exit::Pio(PioExit { port: 0x3f8, size: 4, write: false, string: false, len: 1 }));
}

#[test]
fn interrupts_arrive_between_two_instructions() {
    let g = Guest::new();
    g.descriptors(|v| 0x11_0000 + 16 * v);
    // The handler stores the interrupted RIP and the counter, and returns.
    g.code(0x11_0000 + 16 * 0x30, |a| {
        a.inc(qword_ptr(DATA)).unwrap();
        a.iretq().unwrap();
    });
    g.code(CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.inc(rax).unwrap();
        a.inc(rbx).unwrap();
        a.jmp(top).unwrap();
    });
    let mut v = g.long(0);
    v.registers_mut(Groups::ALL).flags.set(x86::flags::IF);
    for n in 1..100 {
        g.requests.store(1, SeqCst);
        v.inject(Event { kind: EventKind::Interrupt(0x30) });
        assert_eq!(g.enter(&mut v), Exit::Interrupted);
        let s = v.registers(Groups::ALL);
        assert_eq!((s.rip, g.read64(DATA)), (0x11_0000 + 16 * 0x30, n - 1), "at the handler's first instruction");
        v.request_window(true, false);
        g.requests.store(0, SeqCst);
        assert_eq!(g.enter(&mut v), Exit::InterruptWindow);
        v.request_window(false, false);
        let s = v.registers(Groups::ALL);
        assert!(s.rip == CODE && s.gpr[0] == s.gpr[3], "{:x} {} {}", s.rip, s.gpr[0], s.gpr[3]);
        assert_eq!(g.read64(DATA), n);
        std::thread::scope(|scope| {
            scope.spawn(|| g.requests.store(1, SeqCst));
            assert_eq!(g.enter(&mut v), Exit::Interrupted);
        });
        let s = v.registers_mut(Groups::ALL);
        assert!(s.rip == CODE && s.gpr[0] == s.gpr[3]);
    }
}

#[test]
fn a_page_fault_goes_to_the_guest_with_address_and_code() {
    let g = Guest::new();
    g.descriptors(|v| 0x11_0000 + 16 * v);
    g.code(0x11_0000 + 16 * 14, |a| {
        a.mov(rbx, cr2).unwrap();
        a.pop(rcx).unwrap();
        a.hlt().unwrap();
    });
    g.write64(Guest::pte(DATA + 0x1000), 0);
    g.code(CODE, |a| {
        a.mov(rax, DATA + 0xffe).unwrap();
        a.mov(rdx, 0x1111_2222_3333_4444u64).unwrap();
        a.mov(qword_ptr(rax), rdx).unwrap();
    });
    let mut v = g.long(0);
    g.write64(DATA + 0xff8, 0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.gpr[3], s.gpr[1]), (DATA + 0x1000, 2));
    assert_eq!(g.read64(DATA + 0xff8), 0, "nothing of the store was made");
}

#[test]
fn stores_and_loads_cross_pages() {
    let g = Guest::new();
    // The second page is elsewhere.
    g.code(CODE, |a| {
        a.mov(rax, DATA + 0xffd).unwrap();
        a.mov(rdx, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(qword_ptr(rax), rdx).unwrap();
        a.mov(rbx, qword_ptr(rax)).unwrap();
        a.lock().xadd(qword_ptr(rax), rdx).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    g.write64(Guest::pte(DATA + 0x1000), 0x28_0000 | 3);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(v.registers(Groups::ALL).gpr[3], 0x1122_3344_5566_7788);
    let sum = 0x1122_3344_5566_7788u64.wrapping_mul(2);
    assert_eq!(g.read64(DATA + 0xff8) >> 40, sum & 0xff_ffff);
    assert_eq!(g.read64(0x28_0000) & 0xff_ffff_ffff, sum >> 24);
}

#[test]
fn an_instruction_crosses_into_a_page_that_is_elsewhere() {
    let g = Guest::new();
    let at = CODE + 0xffb;
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
    a.hlt().unwrap();
    let bytes = a.assemble(at).unwrap();
    g.write(at, &bytes[..5]);
    let mut v = g.long(0);
    g.write64(Guest::pte(CODE + 0x1000), 0x28_0000 | 3);
    g.write(0x28_0000, &bytes[5..]);
    for n in 0..3u8 {
        g.write(0x28_0000, &[n]);
        v.registers_mut(Groups::ALL).rip = at;
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        assert_eq!(v.registers(Groups::ALL).gpr[0] >> 24 & 0xff, n as u64);
    }
}

#[test]
fn triple_fault_is_shutdown() {
    let g = Guest::new();
    g.code(CODE, |a| a.ud2().unwrap());
    let mut v = g.long(0);
    v.registers_mut(Groups::ALL).idtr.limit = 0;
    assert_eq!(g.enter(&mut v), Exit::Shutdown);
}

#[test]
fn memory_that_the_client_takes_away_is_a_bad_address() {
    let g = Guest::new();
    g.code(CODE, |a| {
        let mut top = a.create_label();
        a.mov(rcx, DATA).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(rax, qword_ptr(rcx)).unwrap();
        a.add(rcx, 8).unwrap();
        a.jmp(top).unwrap();
    });
    let mut v = g.long(0);
    common::unmap(g.hva(DATA + 0x5000));
    assert_eq!(g.enter(&mut v), Exit::BadAddress { gpa: DATA + 0x5000 });
    assert_eq!(v.registers(Groups::ALL).gpr[1], DATA + 0x5000);
    common::unmap(0);
}

#[test]
fn string_instructions_move_whole_pages() {
    let g = Guest::new();
    g.code(CODE, |a| {
        a.mov(rdi, DATA + 8).unwrap();
        a.mov(rax, 0x0102_0304_0506_0708u64).unwrap();
        a.mov(rcx, 0x4000u64).unwrap();
        a.rep().stosq().unwrap();
        a.mov(rsi, DATA + 8).unwrap();
        a.mov(rdi, DATA + 0x8_0003).unwrap();
        a.mov(rcx, 0x1_0000u64).unwrap();
        a.rep().movsb().unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.gpr[1], s.gpr[6], s.gpr[7]), (0, DATA + 0x1_0008, DATA + 0x9_0003));
    assert_eq!(g.read64(DATA + 8 + 0x1_fff8), 0x0102_0304_0506_0708);
    assert_eq!(g.read64(DATA + 8 + 0x2_0000), 0);
    assert_eq!(g.read64(DATA + 0x9_0003 - 8), 0x0102_0304_0506_0708);
    assert_eq!(g.read64(DATA + 0x9_0003), 0);
}
