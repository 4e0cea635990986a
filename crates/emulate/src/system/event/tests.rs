use x86::{Cr4, Exception, Mode, Vector, exception::pf, flags};

use super::{Delivery, Event, deliver_event, deliver_exception};
use crate::{
    Stop,
    system::testing::*,
    testing::{Page, TestCpu},
};

const INTERRUPT: u16 = 14;
const TRAP: u16 = 15;

/// The eight-byte values from `rsp` on.
fn stack64(cpu: &TestCpu, count: u64) -> std::vec::Vec<u64> {
    (0..count).map(|n| cpu.peek(cpu.state.gpr[4] + n * 8)).collect()
}

fn stack32(cpu: &TestCpu, count: u64) -> std::vec::Vec<u32> {
    (0..count).map(|n| cpu.peek((cpu.state.gpr[4] & 0xffff_ffff) + n * 4)).collect()
}

#[test]
fn long_mode_interrupt_from_user() {
    let mut cpu = long(3);
    set_idt64(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0), 0);
    let image = flags::IF | flags::TF | flags::NT | flags::AC | flags::CF | flags::FIXED;
    cpu.state.flags.set(image);
    cpu.state.gpr[4] -= 3;
    let rsp = cpu.state.gpr[4];
    assert_eq!(deliver_event(&mut cpu, Event::Interrupt(0x20)), Delivery::Delivered);
    assert_eq!((cpu.state.cpl, cpu.state.rip, cpu.state.gpr[4]), (0, HANDLER, KERNEL_STACK - 40));
    assert_eq!(stack64(&cpu, 5), [CODE, USER_CODE as u64, image, rsp, USER_DATA as u64]);
    assert_eq!((cpu.state.seg[2].selector, cpu.state.seg[1].selector), (0, KERNEL_CODE));
    assert!(cpu.state.seg[2].attr.unusable());
    assert_eq!(cpu.state.flags.get(), flags::AC | flags::CF | flags::FIXED);
}

#[test]
fn long_mode_within_the_kernel_aligns_the_stack_and_uses_ist() {
    for (ist, top) in [(0, KERNEL_STACK - 0x108), (1, KERNEL_STACK - 0x800)] {
        let mut cpu = long(0);
        set_idt64(&mut cpu, 14, gate(TRAP, KERNEL_CODE, HANDLER, 0, ist), 0);
        cpu.state.flags.set(flags::IF);
        cpu.state.gpr[4] = KERNEL_STACK - 0x108;
        let fault = Exception::page_fault(0xdead_0000, pf::WRITE);
        assert_eq!(deliver_exception(&mut cpu, fault), Delivery::Delivered);
        assert_eq!(cpu.state.gpr[4], (top & !15) - 48, "ist {ist}");
        let image = flags::IF | flags::RF | flags::FIXED;
        let pushed = [pf::WRITE as u64, CODE, KERNEL_CODE as u64, image, KERNEL_STACK - 0x108, KERNEL_DATA as u64];
        assert_eq!(stack64(&cpu, 6), pushed);
        assert_eq!(cpu.state.cr2, 0xdead_0000);
        assert!(cpu.state.flags.control(flags::IF), "a trap gate leaves IF");
        assert_eq!(cpu.state.seg[2].selector, KERNEL_DATA);
    }
}

#[test]
fn long_mode_gate_faults() {
    let good = gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0);
    // Gate, its upper half, the event, the expected fault.
    let external = Event::Interrupt(0x20);
    let software = Event::Software { vector: 0x20, len: 2, int3_or_into: false };
    let cases = [
        (0, 0, external, Vector::GP, 0x103),
        (good, 0, software, Vector::GP, 0x102),
        (good & !(1 << 47), 0, external, Vector::NP, 0x103),
        (gate(12, KERNEL_CODE, HANDLER, 0, 0), 0, external, Vector::GP, 0x103),
        (gate(INTERRUPT, 0, HANDLER, 0, 0), 0, external, Vector::GP, 1),
        (gate(INTERRUPT, 0x1008, HANDLER, 0, 0), 0, external, Vector::GP, 0x1009),
        (gate(INTERRUPT, KERNEL_DATA, HANDLER, 0, 0), 0, external, Vector::GP, KERNEL_DATA as u32 | 1),
        (gate(INTERRUPT, OTHER_CODE, HANDLER, 0, 0), 0, external, Vector::GP, OTHER_CODE as u32 | 1),
        (good, 0x8000_0000, external, Vector::GP, 1),
    ];
    for (low, high, event, vector, code) in cases {
        let mut cpu = long(3);
        set_idt64(&mut cpu, 0x20, low, high);
        let expected = Stop::fault_code(vector, code);
        assert_eq!(super::deliver(&mut cpu, event), Err(expected), "{low:#x} {event:?}");
        assert_eq!((cpu.state.cpl, cpu.state.rip, cpu.state.gpr[4]), (3, CODE, USER_STACK));
    }
}

#[test]
fn double_fault_and_shutdown() {
    // #GP's gate is absent, so is #NP's: contributory twice. #DF has one.
    let mut cpu = long(3);
    set_idt64(&mut cpu, 8, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 1), 0);
    let gp = Exception::with_code(Vector::GP, 0);
    assert_eq!(deliver_exception(&mut cpu, gp), Delivery::Delivered);
    assert_eq!((cpu.state.rip, cpu.peek::<u64>(cpu.state.gpr[4])), (HANDLER, 0));

    let mut cpu = long(3);
    let before = std::format!("{:?}", cpu.state);
    assert_eq!(deliver_exception(&mut cpu, gp), Delivery::Shutdown);
    assert_eq!(before, std::format!("{:?}", cpu.state));

    // A page fault while an external interrupt is delivered is just a page fault.
    let mut cpu = long(3);
    set_idt64(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0), 0);
    set_idt64(&mut cpu, 14, gate(INTERRUPT, KERNEL_CODE, HANDLER + 0x100, 0, 1), 0);
    cpu.write(TSS + 4, &(MEMORY as u64 + 0x1000).to_le_bytes());
    assert_eq!(deliver_event(&mut cpu, Event::Interrupt(0x20)), Delivery::Delivered);
    assert_eq!(cpu.state.rip, HANDLER + 0x100);
    assert_eq!(cpu.state.cr2, MEMORY as u64 + 0x1000 - 8);

    // A page fault while a page fault is delivered is a double fault, and CR2 tells about the second.
    let mut cpu = long(3);
    set_idt64(&mut cpu, 8, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 1), 0);
    set_idt64(&mut cpu, 14, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0), 0);
    cpu.write(TSS + 4, &(MEMORY as u64 + 0x1000).to_le_bytes());
    assert_eq!(deliver_exception(&mut cpu, Exception::page_fault(5, 4)), Delivery::Delivered);
    assert_eq!((cpu.state.rip, cpu.state.cr2), (HANDLER, MEMORY as u64 + 0x1000 - 8));
}

#[test]
fn debug_exceptions_report_in_dr6_and_disarm_general_detect() {
    let mut cpu = long(0);
    set_idt64(&mut cpu, 1, gate(TRAP, KERNEL_CODE, HANDLER, 0, 0), 0);
    cpu.state.dr6 = x86::debug::DR6_FIXED | 3;
    cpu.state.dr7 = x86::debug::DR7_FIXED | x86::debug::DR7_GD;
    let step = Exception::debug(x86::debug::DR6_BS);
    assert_eq!(deliver_exception(&mut cpu, step), Delivery::Delivered);
    assert_eq!(cpu.state.dr6, x86::debug::DR6_FIXED | x86::debug::DR6_BS);
    assert_eq!(cpu.state.dr7, x86::debug::DR7_FIXED);
    assert_eq!(stack64(&cpu, 3)[2] & flags::RF, 0, "a trap leaves RF");
}

#[test]
fn a_fault_on_the_second_push_leaves_the_registers() {
    let mut cpu = long(3);
    set_idt64(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0), 0);
    cpu.write(TSS + 4, &(KERNEL_STACK + 16).to_le_bytes());
    cpu.pages.insert((KERNEL_STACK >> 12) - 1, Page::ReadOnly);
    let before = std::format!("{:?}", cpu.state);
    assert!(super::deliver(&mut cpu, Event::Interrupt(0x20)).is_err());
    assert_eq!(before, std::format!("{:?}", cpu.state));
}

#[test]
fn protected_mode_levels() {
    // Level before, gate's code segment, level after, new stack.
    for (cpl, code, level, inner) in [(3, KERNEL_CODE, 0, true), (3, CODE1, 1, true), (0, KERNEL_CODE, 0, false)] {
        let mut cpu = legacy(cpl);
        set_idt(&mut cpu, 13, gate(INTERRUPT, code, HANDLER, 0, 0));
        let (ss, esp) = (cpu.state.seg[2].selector as u32, cpu.state.gpr[4]);
        let cs = cpu.state.seg[1].selector as u32;
        let fault = Exception::with_code(Vector::GP, 0x1234);
        assert_eq!(deliver_exception(&mut cpu, fault), Delivery::Delivered);
        assert_eq!((cpu.state.cpl, cpu.state.rip), (level, HANDLER));
        assert_eq!(cpu.state.seg[1].selector, code | level as u16);
        let image = (flags::RF | flags::FIXED) as u32;
        let mut pushed = std::vec![0x1234, CODE as u32, cs, image];
        if inner {
            pushed.extend([esp as u32, ss]);
        }
        assert_eq!(stack32(&cpu, pushed.len() as u64), pushed);
        let top = if level == 1 {
            KERNEL_STACK - 0x800
        } else if inner {
            KERNEL_STACK
        } else {
            esp
        };
        assert_eq!(cpu.state.gpr[4], top - pushed.len() as u64 * 4);
        assert_eq!(cpu.state.seg[3].selector, if cpl == 3 { USER_DATA } else { KERNEL_DATA });
    }
}

/// A handler never runs with fewer privileges than what it interrupts.
#[test]
fn gates_do_not_lead_outwards() {
    for (mut cpu, wide) in [(long(0), true), (legacy(0), false)] {
        let outwards = gate(INTERRUPT, USER_CODE, HANDLER, 3, 0);
        if wide {
            set_idt64(&mut cpu, 0x20, outwards, 0)
        } else {
            set_idt(&mut cpu, 0x20, outwards)
        }
        let fault = Stop::fault_code(Vector::GP, USER_CODE as u32 & !3 | 1);
        assert_eq!(super::deliver(&mut cpu, Event::Interrupt(0x20)), Err(fault));
    }
}

/// The last byte of a gate may be the last of the table, in each mode.
#[test]
fn gates_may_end_with_their_table() {
    let event = Event::Interrupt(0x20);
    for last in [0x107, 0x106] {
        let mut cpu = legacy(3);
        set_idt(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0));
        cpu.state.idtr.limit = last;
        assert_eq!(super::deliver(&mut cpu, event).is_ok(), last == 0x107);
    }
    for last in [0x20f, 0x20e] {
        let mut cpu = long(3);
        set_idt64(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0), 0);
        cpu.state.idtr.limit = last;
        assert_eq!(super::deliver(&mut cpu, event).is_ok(), last == 0x20f);
    }
    for last in [0x83, 0x82] {
        let mut cpu = real();
        cpu.state.idtr.limit = last;
        assert_eq!(super::deliver(&mut cpu, event).is_ok(), last == 0x83);
    }
}

#[test]
fn protected_mode_faults() {
    let interrupt = Event::Interrupt(0x20);
    type Prepare = fn(&mut TestCpu);
    let cases: [(Prepare, Vector, u32); 9] = [
        (|c| c.state.idtr.limit = 0x106, Vector::GP, 0x103),
        (|c| set_idt(c, 0x20, 0), Vector::GP, 0x103),
        (|c| set_idt(c, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0) & !(1 << 47)), Vector::NP, 0x103),
        (|c| c.state.tr.limit = 10, Vector::TS, TASK as u32 | 1),
        (|c| c.write(TSS + 8, &[0, 0]), Vector::TS, 1),
        (|c| c.write(TSS + 8, &USER_DATA.to_le_bytes()), Vector::TS, USER_DATA as u32 & !3 | 1),
        (|c| c.write(TSS + 8, &KERNEL_CODE.to_le_bytes()), Vector::TS, KERNEL_CODE as u32 | 1),
        (|c| c.write(TSS + 8, &ABSENT.to_le_bytes()), Vector::SS, ABSENT as u32 | 1),
        (
            |c| {
                set_gdt(c, KERNEL_CODE, descriptor(0, 0xfff, 0x49b));
            },
            Vector::GP,
            1,
        ),
    ];
    for (n, (prepare, vector, code)) in cases.into_iter().enumerate() {
        let mut cpu = legacy(3);
        set_idt(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0));
        prepare(&mut cpu);
        let before = std::format!("{:?}", cpu.state);
        assert_eq!(super::deliver(&mut cpu, interrupt), Err(Stop::fault_code(vector, code)), "case {n}");
        assert_eq!(before, std::format!("{:?}", cpu.state), "case {n}");
    }
}

#[test]
fn a_stack_without_room_is_ss() {
    let mut cpu = legacy(3);
    set_idt(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0));
    cpu.write(TSS + 4, &10u32.to_le_bytes());
    let fault = Stop::fault_code(Vector::SS, KERNEL_DATA as u32 | 1);
    assert_eq!(super::deliver(&mut cpu, Event::Interrupt(0x20)), Err(fault));
}

#[test]
fn accessed_bits_are_set() {
    let mut cpu = legacy(3);
    set_gdt(&mut cpu, KERNEL_CODE, flat(10, 0, 0x400));
    set_gdt(&mut cpu, KERNEL_DATA, flat(2, 0, 0x400));
    set_idt(&mut cpu, 0x20, gate(INTERRUPT, KERNEL_CODE, HANDLER, 0, 0));
    cpu.lost_races = 0;
    assert_eq!(deliver_event(&mut cpu, Event::Interrupt(0x20)), Delivery::Delivered);
    assert_eq!(cpu.peek::<u64>(GDT + KERNEL_CODE as u64), flat(11, 0, 0x400));
    assert_eq!(cpu.peek::<u64>(GDT + KERNEL_DATA as u64), flat(3, 0, 0x400));
}

#[test]
fn from_virtual_8086_mode() {
    for (typ, size) in [(INTERRUPT, 4u64), (6, 2)] {
        let mut cpu = v86(0);
        set_idt(&mut cpu, 0x20, gate(typ, KERNEL_CODE, HANDLER, 0, 0));
        for (n, selector) in [(0, 0x101), (3, 0x103), (4, 0x104), (5, 0x105)] {
            cpu.state.seg[n].selector = selector;
        }
        let (ip, sp) = (cpu.state.rip, cpu.state.gpr[4]);
        assert_eq!(deliver_event(&mut cpu, Event::Interrupt(0x20)), Delivery::Delivered);
        assert_eq!((cpu.state.mode, cpu.state.cpl, cpu.state.rip), (Mode::Protected32, 0, HANDLER));
        assert_eq!(cpu.state.gpr[4], KERNEL_STACK - 9 * size);
        let image = (flags::VM | flags::FIXED) & (u64::MAX >> (64 - 8 * size));
        let expected = [ip, 0x100, image, sp, 0x100, 0x101, 0x103, 0x104, 0x105];
        for (n, value) in expected.into_iter().enumerate() {
            let at = cpu.state.gpr[4] + n as u64 * size;
            let found = if size == 4 { cpu.peek::<u32>(at) as u64 } else { cpu.peek::<u16>(at) as u64 };
            assert_eq!(found, value, "value {n} of {size} bytes");
        }
        assert!([0, 3, 4, 5].iter().all(|&n| cpu.state.seg[n].attr.unusable() && cpu.state.seg[n].selector == 0));
        assert_eq!(cpu.state.seg[2].selector, KERNEL_DATA);
    }
    // The handler must be at level 0.
    let mut cpu = v86(0);
    set_idt(&mut cpu, 0x20, gate(INTERRUPT, CODE1, HANDLER, 0, 0));
    let fault = Stop::gp(CODE1 as u32 | 1);
    assert_eq!(super::deliver(&mut cpu, Event::Interrupt(0x20)), Err(fault));
}

#[test]
fn int_n_of_virtual_8086_tasks() {
    const REDIRECTED: u64 = 0x1234_0100;
    // IOPL, VME, bitmap bit, outcome: None is #GP, Some(true) the task's own handler.
    let cases = [
        (3, false, false, Some(false)),
        (0, false, false, None),
        (3, true, true, Some(false)),
        (0, true, true, None),
        (3, true, false, Some(true)),
        (0, true, false, Some(true)),
    ];
    for (iopl, vme, bit, outcome) in cases {
        let mut cpu = v86(iopl);
        set_idt(&mut cpu, 0x21, gate(INTERRUPT, KERNEL_CODE, HANDLER, 3, 0));
        cpu.write(0x21 * 4, &(0x0123_0456u32).to_le_bytes());
        cpu.write(TSS + 102, &(0x68u16 + 32).to_le_bytes());
        cpu.write(TSS + 0x68 + 0x21 / 8, &[(bit as u8) << (0x21 & 7)]);
        cpu.state.tr.limit = 0x200;
        cpu.state.cr4 |= if vme { Cr4::VME.bits() } else { 0 };
        cpu.state.flags.set(cpu.state.flags.get() | flags::VIF | flags::TF);
        let before = cpu.state.clone();
        let result = run(&mut cpu, &[0xcd, 0x21]);
        match outcome {
            None => assert_eq!(result, Err(Stop::GP0)),
            Some(false) => assert_eq!((result, cpu.state.rip, cpu.state.cpl), (Ok(()), HANDLER, 0)),
            Some(true) => {
                assert_eq!((result, cpu.state.rip, cpu.state.cpl), (Ok(()), 0x456, 3), "{REDIRECTED:#x}");
                assert_eq!(cpu.state.seg[1].selector, 0x123);
                assert_eq!(cpu.state.gpr[4], before.gpr[4] - 6);
                let at = 0x1000 + cpu.state.gpr[4];
                assert_eq!((cpu.peek::<u16>(at) as u64, cpu.peek::<u16>(at + 2)), (before.rip + 2, 0x100));
                let image = cpu.peek::<u16>(at + 4) as u64;
                assert_eq!(image & flags::IOPL, flags::IOPL);
                assert_eq!(image & flags::IF != 0, iopl == 0, "the image shows the virtual flag");
                assert_eq!(cpu.state.flags.control(flags::VIF), iopl == 3);
                assert!(!cpu.state.flags.control(flags::TF) && cpu.state.flags.control(flags::VM));
            }
        }
    }
}

#[test]
fn real_mode_vectors() {
    let mut cpu = real();
    cpu.write(0x10 * 4, &0x0abc_1234u32.to_le_bytes());
    cpu.state.flags.set(flags::IF | flags::TF | flags::AC | flags::ZF);
    assert_eq!(run(&mut cpu, &[0xcd, 0x10]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.seg[1].selector, cpu.state.seg[1].base), (0x1234, 0xabc, 0xabc0));
    assert_eq!(cpu.state.flags.get(), flags::ZF | flags::FIXED);
    let sp = cpu.state.gpr[4];
    assert_eq!(sp, USER_STACK - 6);
    assert_eq!((cpu.peek::<u16>(sp) as u64, cpu.peek::<u16>(sp + 2)), (CODE + 2, 0));
    assert_eq!(cpu.peek::<u16>(sp + 4) as u64, flags::IF | flags::TF | flags::ZF | flags::FIXED);

    let mut cpu = real();
    cpu.state.idtr.limit = 0x30;
    assert_eq!(stops(&mut cpu, &[0xcd, 0x10]), Stop::gp(0x82));
    // #GP's vector is not inside the table, but the double fault's is.
    cpu.write(8 * 4, &0x0000_0700u32.to_le_bytes());
    assert_eq!(deliver_event(&mut cpu, Event::Interrupt(0x70)), Delivery::Delivered);
    assert_eq!(cpu.state.rip, 0x700);
    cpu.state.idtr.limit = 0x20;
    assert_eq!(deliver_event(&mut cpu, Event::Interrupt(0x70)), Delivery::Shutdown);
}

#[test]
fn software_interrupts_check_the_gate() {
    for (bytes, dpl, ok) in [
        (&[0xcdu8, 0x30][..], 0, false),
        (&[0xcd, 0x30], 3, true),
        (&[0xcc], 0, false),
        (&[0xcc], 3, true),
        (&[0xf1], 0, true),
    ] {
        let mut cpu = long(3);
        for vector in [1, 3, 0x30] {
            set_idt64(&mut cpu, vector, gate(INTERRUPT, KERNEL_CODE, HANDLER, dpl, 0), 0);
        }
        let result = run(&mut cpu, bytes);
        assert_eq!(result.is_ok(), ok, "{bytes:x?} {dpl}");
        if ok {
            assert_eq!(cpu.peek::<u64>(cpu.state.gpr[4]), CODE + bytes.len() as u64);
        } else {
            let vector = if bytes[0] == 0xcc { 3 } else { 0x30 };
            assert_eq!(result, Err(Stop::gp(vector * 8 + 2)));
        }
    }
}

#[test]
fn a_reinjected_software_interrupt_returns_behind_its_instruction() {
    let mut cpu = long(3);
    set_idt64(&mut cpu, 0x80, gate(INTERRUPT, KERNEL_CODE, HANDLER, 3, 0), 0);
    let event = Event::Software { vector: 0x80, len: 2, int3_or_into: false };
    assert_eq!(deliver_event(&mut cpu, event), Delivery::Delivered);
    assert_eq!(cpu.peek::<u64>(cpu.state.gpr[4]), CODE + 2);
}
