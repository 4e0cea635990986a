//! Modes, privileges, several processors, memory slots.
mod common;

use common::{CODE, DATA, Guest, MIB, STACK};
use hv::backend::{Access, Backend, BackendVcpu, Event, EventKind, Exit, FlushTlb, Groups};
use iced_x86::code_asm::*;
use platform::MaySleep;
use std::sync::atomic::AtomicU32;
use x86::{Cr4, Mode, Segment, flags};

#[test]
fn real_mode_runs_from_the_reset_vector_with_segments() {
    let g = Guest::new();
    // The top of the first 4 GiB shows the beginning of RAM.
    g.slot(1, 0xffff_0000, 0x1_0000, 0);
    g.code_bits(16, 0xfff0, 0xfff0, |a| {
        a.mov(ax, 0x2000).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(es, ax).unwrap();
        a.mov(bx, 0x1234).unwrap();
        a.mov(word_ptr(0x10), bx).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.vcpu(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(g.read64(0x2_0010), 0x1234);
    assert_eq!(v.registers(Groups::ALL).mode, Mode::Real);
}

#[test]
fn running_over_the_end_of_a_code_segment_is_a_general_protection_fault() {
    let g = Guest::new();
    g.write(0xfffe, &[0x90, 0x90, 0x90, 0x90]);
    // Vector 13 in the table of real mode: a HLT at 0:0x500.
    g.write64(13 * 4, 0x500);
    g.write(0x500, &[0xf4]);
    let mut v = g.vcpu(0);
    let s = v.registers_mut(Groups::ALL);
    s.seg[1] = Segment { attr: s.seg[1].attr, ..Segment::real(0, 0) };
    s.rip = 0xfffe;
    s.gpr[4] = 0x8000;
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(v.registers(Groups::ALL).rip, 0x500);
    assert_eq!(g.read64(0x7ff8) >> 16 & 0xffff, 0, "the pushed IP wraps to what the fault's IP is cut to");
}

#[test]
fn two_vcpus_count_together() {
    let g = Guest::new();
    const N: u32 = 200_000;
    g.code(CODE, |a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA).unwrap();
        a.mov(ecx, N).unwrap();
        a.mov(edx, 1).unwrap();
        a.set_label(&mut again).unwrap();
        a.lock().inc(qword_ptr(rbx)).unwrap();
        a.mov(eax, edx).unwrap();
        a.lock().xadd(dword_ptr(rbx + 64), eax).unwrap();
        a.inc(qword_ptr(rbx + 128)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let (mut a, mut b) = (g.long(0), g.long(1));
    let never = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(g.enter_as(0, &mut a, &never), Exit::Hlt { len: 1 }));
        scope.spawn(|| assert_eq!(g.enter_as(1, &mut b, &never), Exit::Hlt { len: 1 }));
    });
    assert_eq!((g.read64(DATA), g.read64(DATA + 64)), (2 * N as u64, 2 * N as u64));
}

/// The kernel's side of a small user program: SYSCALL to CODE + 0x1000, exceptions to 0x11_0000 + 16 * vector.
fn user_guest(program: impl FnOnce(&mut CodeAssembler)) -> (Guest, soft::SoftVcpu<common::Test>) {
    let g = Guest::new();
    g.descriptors(|v| 0x11_0000 + 16 * v);
    let user = 0x50_0000;
    for page in 0..16 {
        let at = user + 0x1000 * page;
        g.write64(Guest::pte(at), at | 7);
    }
    g.code(user, program);
    g.code(CODE, |a| {
        a.mov(rcx, user).unwrap();
        a.mov(r11d, 0x202).unwrap();
        a.sysretq().unwrap();
    });
    let mut v = g.long(0);
    let s = v.registers_mut(Groups::ALL);
    s.star = 0x20 << 48 | 0x10 << 32;
    s.lstar = CODE + 0x1000;
    s.sfmask = 0x4_0700;
    (g, v)
}

#[test]
fn user_code_is_kept_from_supervisor_pages() {
    let (g, mut v) = user_guest(|a| {
        a.mov(rax, DATA).unwrap();
        a.mov(rbx, qword_ptr(rax)).unwrap();
    });
    g.code(0x11_0000 + 16 * 14, |a| a.hlt().unwrap());
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.cr2, s.cpl, s.gpr[4]), (DATA, 0, STACK - 0x8000 - 48));
    assert_eq!(g.read64(STACK - 0x8000 - 48), 5, "present, user");
    assert_eq!(g.read64(STACK - 0x8000 - 40), 0x50_000a);
}

#[test]
fn system_calls_go_and_come_back() {
    let (g, mut v) = user_guest(|a| {
        let mut again = a.create_label();
        a.mov(ebx, 1000).unwrap();
        a.set_label(&mut again).unwrap();
        a.syscall().unwrap();
        a.dec(ebx).unwrap();
        a.jne(again).unwrap();
        a.ud2().unwrap();
    });
    g.code(CODE + 0x1000, |a| {
        a.inc(qword_ptr(DATA)).unwrap();
        a.sysretq().unwrap();
    });
    g.code(0x11_0000 + 16 * 6, |a| a.hlt().unwrap());
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    assert_eq!(g.read64(DATA), 1000);
    assert!(v.stats().blocks < 20, "{:?}", v.stats());
}

#[test]
fn smap_keeps_the_kernel_from_user_pages_until_ac_is_set() {
    let (g, mut v) = user_guest(|a| a.syscall().unwrap());
    g.code(CODE + 0x1000, |a| {
        a.mov(rbx, 0x50_1000u64).unwrap();
        a.stac().unwrap();
        a.mov(qword_ptr(rbx), rbx).unwrap();
        a.inc(qword_ptr(rbx)).unwrap();
        // And its own pages as ever.
        a.inc(qword_ptr(DATA)).unwrap();
        a.clac().unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
    });
    g.code(0x11_0000 + 16 * 14, |a| a.hlt().unwrap());
    let s = v.registers_mut(Groups::ALL);
    s.cr4 |= Cr4::SMAP.bits() | Cr4::SMEP.bits();
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    let s = v.registers(Groups::ALL);
    assert_eq!((s.cr2, s.gpr[0]), (0x50_1000, 0));
    assert_eq!((g.read64(0x50_1000), g.read64(DATA)), (0x50_1001, 1));
}

#[test]
fn accessed_and_dirty_bits_are_set_when_they_are_due() {
    let g = Guest::new();
    g.code(CODE, |a| {
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA + 0x1000), rax).unwrap();
        a.hlt().unwrap();
        a.mov(qword_ptr(DATA), rax).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    g.enter(&mut v);
    let bits = |gva| g.read64(Guest::pte(gva)) & 0x60;
    assert_eq!((bits(DATA), bits(DATA + 0x1000), bits(CODE), bits(DATA + 0x2000)), (0x20, 0x60, 0x20, 0));
    v.registers_mut(Groups::ALL).rip += 1;
    g.enter(&mut v);
    assert_eq!(bits(DATA), 0x60, "the first write after a read");
}

#[test]
fn slots_that_change_are_seen_after_a_flush() {
    let g = Guest::new();
    g.slot(1, 0x1_0000_0000, MIB, 0);
    g.write64(Guest::pte(DATA), 0x1_0000_0000 | 3);
    g.code(CODE, |a| {
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA + 8), rax).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
    g.slot(1, 0, 0, 0);
    g.slot(1, 0x1_0000_0000, MIB, abi::KVM_MEM_READONLY);
    v.flush(FlushTlb::Physical);
    v.registers_mut(Groups::ALL).rip = CODE;
    assert_eq!(g.enter(&mut v), Exit::NestedPageFault { gpa: 0x1_0000_0008, access: Access::Write, table_walk: false });
    g.slot(1, 0, 0, 0);
    v.flush(FlushTlb::Physical);
    v.registers_mut(Groups::ALL).rip = CODE;
    assert_eq!(g.enter(&mut v), Exit::NestedPageFault { gpa: 0x1_0000_0000, access: Access::Read, table_walk: false });
}

#[test]
fn each_write_after_a_flush_is_in_the_dirty_log() {
    let g = Guest::new();
    g.slot(1, 0x1_0000_0000, 16 * 4096, abi::KVM_MEM_LOG_DIRTY_PAGES);
    g.write64(Guest::pte(DATA), 0x1_0000_b000 | 3);
    g.code(CODE, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA), rcx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    for _ in 0..3 {
        v.registers_mut(Groups::ALL).rip = CODE;
        assert_eq!(g.enter(&mut v), Exit::Hlt { len: 1 });
        let mut log = [0u64; 1];
        let arg = abi::KvmDirtyLog { slot: 1, dirty_bitmap: log.as_mut_ptr() as u64, ..Default::default() };
        assert!(g.memory.get_dirty_log(&arg, &MaySleep::at_entry(), |_, _| {}).unwrap());
        assert_eq!(log[0], 1 << 11);
        v.flush(FlushTlb::Physical);
    }
}

#[test]
fn sti_holds_back_interrupts_for_one_instruction() {
    let g = Guest::new();
    g.code(CODE, |a| {
        a.sti().unwrap();
        a.inc(eax).unwrap();
        a.inc(eax).unwrap();
        a.hlt().unwrap();
    });
    let mut v = g.long(0);
    v.request_window(true, false);
    assert_eq!(g.enter(&mut v), Exit::InterruptWindow);
    let s = v.registers(Groups::ALL);
    assert_eq!((s.gpr[0], s.flags.control(flags::IF)), (1, true));
}

#[test]
fn an_nmi_blocks_others_until_iret() {
    let g = Guest::new();
    g.descriptors(|v| 0x11_0000 + 16 * v);
    g.code(0x11_0000 + 16 * 2, |a| {
        a.inc(rbx).unwrap();
        a.iretq().unwrap();
    });
    g.code(CODE, |a| a.hlt().unwrap());
    let mut v = g.long(0);
    v.inject(Event { kind: EventKind::Nmi });
    v.request_window(false, true);
    assert_eq!(g.enter(&mut v), Exit::NmiWindow);
    let s = v.registers(Groups::ALL);
    assert_eq!((s.rip, s.gpr[3]), (CODE, 1));
    assert!(!v.nmi_blocked());
    v.inject(Event { kind: EventKind::Nmi });
    v.request_window(false, false);
    g.requests.store(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(g.enter(&mut v), Exit::Interrupted);
    assert!(v.nmi_blocked());
}

#[test]
fn an_event_that_cannot_be_delivered_yet_is_given_back() {
    let g = Guest::new();
    g.code(CODE, |a| a.hlt().unwrap());
    // The IDT is in device memory.
    g.write64(Guest::pte(common::IDT), 0x1_0000_0000 | 3);
    let mut v = g.long(0);
    let event = Event { kind: EventKind::Interrupt(0x40) };
    v.inject(event);
    assert!(matches!(g.enter(&mut v), Exit::NestedPageFault { gpa: 0x1_0000_0400, .. }));
    assert_eq!(v.take_unfinished_event(), Some(event));
    assert_eq!(v.take_unfinished_event(), None);
    assert_eq!(v.registers(Groups::ALL).rip, CODE);
}

#[test]
fn the_features_are_what_the_emulator_and_the_host_have() {
    let g = Guest::new();
    let features = g.backend.features();
    assert!(features.contains(x86::Features::LM | x86::Features::PAE | x86::Features::CX8));
    assert_eq!(g.backend.xcr0() & 1, 1);
}
