//! Single step and breakpoints, the guest's and the client's.
mod common;

use common::{CODE, DATA, Guest};
use hv::backend::{BackendVcpu, Exit, Groups, GuestDebug};
use iced_x86::code_asm::*;
use x86::{Exception, Vector, flags};

const HANDLER: u64 = 0x11_0000 + 16;

fn guest(f: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let g = Guest::new();
    g.descriptors(|v| 0x11_0000 + 16 * v);
    // #DB counts in RBX, keeps DR6 in R8 and the interrupted RIP in R9.
    g.code(HANDLER, |a| a.jmp(0x12_0000).unwrap());
    g.code(0x12_0000, |a| {
        a.inc(rbx).unwrap();
        a.mov(r8, dr6).unwrap();
        a.mov(r9, qword_ptr(rsp)).unwrap();
        a.iretq().unwrap();
    });
    g.code(CODE, f);
    g
}

#[test]
fn the_trap_flag_traps_behind_each_instruction() {
    let g = guest(|a| {
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.pushfq().unwrap();
        a.and(qword_ptr(rsp), !0x100).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    // Two NOPs, PUSHF, AND, and the POPF that clears the flag.
    assert_eq!((s.gpr[3], s.gpr[8] & 0x400f), (5, 0x4000));
    assert!(!s.flags.control(flags::TF));
}

#[test]
fn data_breakpoints_trap_behind_the_access() {
    let g = guest(|a| {
        a.mov(rsi, DATA).unwrap();
        a.mov(eax, dword_ptr(rsi + 6)).unwrap();
        a.mov(dword_ptr(rsi + 12), eax).unwrap();
        a.mov(byte_ptr(rsi + 11), al).unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    let s = v.registers_mut(Groups::ALL);
    // DR1: writes to the four bytes at DATA + 8.
    s.dr[1] = DATA + 8;
    s.dr7 = 0x400 | 1 << 2 | 0b1101 << 20;
    let exit = g.enter(&mut v);
    let s = v.registers(Groups::ALL);
    assert_eq!((exit, s.gpr[3], s.gpr[8] & 0x400f), (Exit::Hlt { len: 1 }, 1, 2));
    assert_eq!(g.read64(s.gpr[9]) as u8, 0x90, "the return address is behind the access");
}

#[test]
fn code_breakpoints_fault_once() {
    let g = guest(|a| {
        a.nop().unwrap();
        a.inc(eax).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    let s = v.registers_mut(Groups::ALL);
    s.dr[0] = CODE + 1;
    s.dr7 = 0x400 | 1;
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.gpr[3], s.gpr[8] & 0x400f, s.gpr[9], s.gpr[0]), (1, 1, CODE + 1, 1));
}

#[test]
fn the_client_steps_and_breaks() {
    let g = guest(|a| {
        a.nop().unwrap();
        a.int3().unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    v.set_debug(GuestDebug { single_step: true, software_breakpoints: true, ..Default::default() });
    assert!(matches!(g.enter(&mut v), Exit::Debug { dr6: bits } if bits & 0x4000 != 0));
    assert_eq!(v.registers(Groups::ALL).rip, CODE + 1);
    let stop = Exit::Exception { exception: Exception::plain(Vector::BP) };
    assert_eq!(g.enter(&mut v), stop);
    assert_eq!(v.registers(Groups::ALL).rip, CODE + 1);
    v.set_debug(GuestDebug { software_breakpoints: true, ..Default::default() });
    assert_eq!(g.enter(&mut v), stop);
    v.registers_mut(Groups::ALL).rip = CODE;
    let hardware = Some(([CODE + 1, 0, 0, 0], 0x401));
    v.set_debug(GuestDebug { hardware, ..Default::default() });
    assert!(matches!(g.enter(&mut v), Exit::Debug { dr6: bits } if bits & 0xf == 1));
    assert_eq!(v.registers(Groups::ALL).rip, CODE + 1);
}

#[test]
fn code_breakpoints_behind_mov_ss_are_amds() {
    for (amd, hits) in [(false, 0), (true, 1)] {
        let g = guest(|a| {
            a.mov(eax, ss).unwrap();
            a.mov(ss, eax).unwrap();
            a.inc(ecx).unwrap();
            a.hlt().unwrap();
        });
        let mut v = g.long(0);
        let features = x86::Features::all().difference(x86::Features::AMD);
        v.set_features(if amd { x86::Features::all() } else { features }, 7, 40);
        let s = v.registers_mut(Groups::ALL);
        s.gpr[1] = 0;
        s.dr[0] = CODE + 4;
        s.dr7 = 0x400 | 1;
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        let s = v.registers(Groups::ALL);
        assert_eq!((s.gpr[3], s.gpr[1]), (hits, 1), "AMD: {amd}");
    }
}

#[test]
fn a_data_breakpoint_that_waits_behind_mov_ss_is_one_exception_with_int1() {
    let g = guest(|a| {
        a.mov(ss, word_ptr(rsi)).unwrap();
        a.int1().unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    let s = v.registers_mut(Groups::ALL);
    (s.gpr[6], s.gpr[3]) = (DATA, 0);
    s.dr[0] = DATA;
    // Reads and writes of 4 bytes.
    s.dr7 = 0x400 | 1 | 0b1111 << 16;
    let selector = s.seg[2].selector;
    g.write(DATA, &selector.to_le_bytes());
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.gpr[3], s.gpr[8] & 0x400f), (1, 1));
}
