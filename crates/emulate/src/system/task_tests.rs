//! Hardware task switches.
use x86::{Attr, Cr0, Exception, Mode, Vector, debug, flags};

use super::{
    event::{Delivery, deliver_exception},
    testing::*,
};
use crate::{Stop, testing::TestCpu};

const NEW_TSS: u64 = 0xb000;
const NEW_STACK: u32 = 0xd000;

fn far(opcode: u8, selector: u16) -> std::vec::Vec<u8> {
    [&[opcode, 0, 0, 0, 0], &selector.to_le_bytes()[..]].concat()
}

fn jmp(selector: u16) -> std::vec::Vec<u8> {
    far(0xea, selector)
}

fn call(selector: u16) -> std::vec::Vec<u8> {
    far(0x9a, selector)
}

fn poke32(cpu: &mut TestCpu, offset: u64, value: u32) {
    cpu.write(NEW_TSS + offset, &value.to_le_bytes());
}

/// [`legacy`] with a second 32-bit task at [`FREE`] that runs at level 0, or at level 3.
fn two_tasks(level: u16) -> TestCpu {
    let mut cpu = legacy(0);
    set_gdt(&mut cpu, FREE, descriptor(NEW_TSS, 0x67, Attr::P | 9));
    let (cs, ss) = if level == 0 { (KERNEL_CODE, KERNEL_DATA) } else { (USER_CODE, USER_DATA) };
    poke32(&mut cpu, 28, 0x5000);
    poke32(&mut cpu, 32, HANDLER as u32);
    poke32(&mut cpu, 36, (flags::IF | flags::CF) as u32);
    for n in 0..8 {
        poke32(&mut cpu, 40 + n * 4, 0x100 + n as u32);
    }
    poke32(&mut cpu, 56, NEW_STACK);
    for (n, selector) in [ss, cs, ss, ss, 0, ss].into_iter().enumerate() {
        poke32(&mut cpu, 72 + n as u64 * 4, selector as u32);
    }
    cpu.state.gpr[0] = 0xaaaa;
    cpu
}

fn busy(cpu: &TestCpu, selector: u16) -> bool {
    cpu.peek::<u8>(GDT + selector as u64 + 5) & 2 != 0
}

#[test]
fn jump_to_a_task() {
    let mut cpu = two_tasks(3);
    cpu.state.dr7 = debug::DR7_FIXED | 3;
    assert_eq!(run(&mut cpu, &jmp(FREE)), Ok(()));
    let s = &cpu.state;
    assert_eq!((s.rip, s.cpl, s.gpr[4], s.gpr[0], s.gpr[7]), (HANDLER, 3, NEW_STACK as u64, 0x100, 0x107));
    assert_eq!((s.tr.selector, s.tr.base, s.tr.attr.typ()), (FREE, NEW_TSS, 11));
    assert_eq!(s.flags.get(), flags::IF | flags::CF | flags::FIXED);
    assert_eq!((s.cr0 & Cr0::TS.bits() != 0, s.dr7), (true, debug::DR7_FIXED | 2));
    assert!(s.seg[4].attr.unusable() && s.ldtr.attr.unusable());
    assert_eq!(s.cr3, 0, "without paging CR3 stays");
    assert_eq!((busy(&cpu, TASK), busy(&cpu, FREE)), (false, true));
    // What was saved of the old task.
    let saved: [u32; 5] = [32, 36, 40, 56, 76].map(|offset| cpu.peek(TSS + offset));
    assert_eq!(saved, [CODE as u32 + 7, 2, 0xaaaa, KERNEL_STACK as u32, KERNEL_CODE as u32]);
}

#[test]
fn call_nests_and_iret_returns() {
    let mut cpu = two_tasks(0);
    assert_eq!(run(&mut cpu, &call(FREE)), Ok(()));
    assert!(cpu.state.flags.control(flags::NT));
    assert_eq!((cpu.peek::<u16>(NEW_TSS), busy(&cpu, TASK), busy(&cpu, FREE)), (TASK, true, true));
    assert_eq!(run(&mut cpu, &[0xcf]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.tr.selector, cpu.state.gpr[0]), (CODE + 7, TASK, 0xaaaa));
    assert_eq!((busy(&cpu, TASK), busy(&cpu, FREE)), (true, false));
    assert_eq!(cpu.peek::<u32>(NEW_TSS + 36) as u64 & flags::NT, 0, "NT is cleared in what is saved");
    // Through a task gate, which the program may use if its own level allows.
    let mut cpu = two_tasks(0);
    set_gdt(&mut cpu, DATA1, gate(5, FREE, 0, 0, 0));
    assert_eq!(run(&mut cpu, &call(DATA1)), Ok(()));
    assert_eq!(cpu.state.tr.selector, FREE);
}

#[test]
fn refused_before_anything_is_changed() {
    type Prepare = fn(&mut TestCpu);
    let free = FREE as u32;
    let cases: [(Prepare, Stop); 6] = [
        (|c| set_gdt(c, FREE, descriptor(NEW_TSS, 0x67, Attr::P | 11)), Stop::gp(free)),
        (|c| set_gdt(c, FREE, descriptor(NEW_TSS, 0x67, 9)), Stop::fault_code(Vector::NP, free)),
        (|c| set_gdt(c, FREE, descriptor(NEW_TSS, 0x66, Attr::P | 9)), Stop::fault_code(Vector::TS, free)),
        (|c| set_gdt(c, FREE, descriptor(NEW_TSS, 0x2a, Attr::P | 1)), Stop::fault_code(Vector::TS, free)),
        (|c| c.state.tr.limit = 0x5e, Stop::fault_code(Vector::TS, TASK as u32)),
        (|c| set_gdt(c, FREE, descriptor(MEMORY as u64, 0x67, Attr::P | 9)), Stop::fault_code(Vector::PF, 0)),
    ];
    for (n, (prepare, stop)) in cases.into_iter().enumerate() {
        let mut cpu = two_tasks(0);
        prepare(&mut cpu);
        let (tss, gdt) = (cpu.peek::<u128>(TSS + 32), cpu.peek::<u64>(GDT + TASK as u64));
        assert_eq!(stops(&mut cpu, &jmp(FREE)), stop, "case {n}");
        assert_eq!((tss, gdt), (cpu.peek(TSS + 32), cpu.peek(GDT + TASK as u64)), "case {n}: memory");
    }
    // IRET speaks of an invalid TSS.
    let mut cpu = two_tasks(0);
    cpu.state.flags.set(flags::NT);
    cpu.write(TSS, &FREE.to_le_bytes());
    assert_eq!(stops(&mut cpu, &[0xcf]), Stop::fault_code(Vector::TS, free));
    assert_eq!(stops(&mut legacy(3), &jmp(TASK)), Stop::gp(TASK as u32));
}

#[test]
fn a_bad_segment_faults_in_the_new_task() {
    // Offset in the TSS, selector, vector, error code.
    let cases = [
        (96, KERNEL_DATA, Vector::TS, KERNEL_DATA),
        (76, 0, Vector::TS, 0),
        (76, KERNEL_DATA, Vector::TS, KERNEL_DATA),
        (76, KERNEL_CODE | 3, Vector::TS, KERNEL_CODE),
        (80, 0, Vector::TS, 0),
        (80, USER_DATA, Vector::TS, USER_DATA & !3),
        (80, ABSENT, Vector::SS, ABSENT),
        (84, TASK, Vector::TS, TASK),
        (88, ABSENT, Vector::NP, ABSENT),
    ];
    for (offset, selector, vector, code) in cases {
        let mut cpu = two_tasks(0);
        poke32(&mut cpu, offset, selector as u32);
        let (rip, flags) = (cpu.state.rip, cpu.state.flags.get());
        let raised = super::task::switch(&mut cpu, FREE, super::task::Reason::Jump, rip, flags);
        assert_eq!(raised, Ok(Some(Exception::with_code(vector, code as u32))), "{offset} {selector:#x}");
        assert_eq!((cpu.state.tr.selector, cpu.state.rip), (FREE, HANDLER));
    }
    let mut cpu = two_tasks(0);
    set_gdt(&mut cpu, KERNEL_CODE, descriptor(0, 0x4fff, 0x49b));
    let raised = super::task::switch(&mut cpu, FREE, super::task::Reason::Jump, 0, 2);
    assert_eq!(raised, Ok(Some(Exception::with_code(Vector::GP, 0))));
    let mut cpu = two_tasks(0);
    poke32(&mut cpu, 100, 1);
    let raised = super::task::switch(&mut cpu, FREE, super::task::Reason::Jump, 0, 2);
    assert_eq!(raised, Ok(Some(Exception::debug(debug::DR6_BT))));
}

#[test]
fn exceptions_through_task_gates() {
    let mut cpu = two_tasks(0);
    set_idt(&mut cpu, 8, gate(5, FREE, 0, 0, 0));
    assert_eq!(deliver_exception(&mut cpu, Exception::with_code(Vector::DF, 0x55)), Delivery::Delivered);
    assert_eq!((cpu.state.tr.selector, cpu.state.gpr[4]), (FREE, NEW_STACK as u64 - 4));
    assert_eq!(cpu.peek::<u32>(NEW_STACK as u64 - 4), 0x55);
    assert_eq!(cpu.peek::<u32>(TSS + 32) as u64, CODE, "the fault's own address");
    assert!(cpu.state.flags.control(flags::NT));
    // The gate's errors carry EXT; a task found wanting doubles the fault.
    let mut cpu = two_tasks(0);
    set_idt(&mut cpu, 13, gate(5, FREE | 4, 0, 0, 0));
    let gp = Exception::with_code(Vector::GP, 0);
    assert_eq!(super::event::deliver(&mut cpu, super::event::Event::Exception(gp)), Err(Stop::gp(FREE as u32 | 5)));
    let mut cpu = two_tasks(0);
    poke32(&mut cpu, 84, ABSENT as u32);
    set_idt(&mut cpu, 13, gate(5, FREE, 0, 0, 0));
    set_idt(&mut cpu, 8, gate(14, KERNEL_CODE, HANDLER + 0x100, 0, 0));
    assert_eq!(deliver_exception(&mut cpu, gp), Delivery::Delivered);
    assert_eq!((cpu.state.rip, cpu.state.tr.selector), (HANDLER + 0x100, FREE));
}

#[test]
fn sixteen_bit_and_virtual_8086_tasks() {
    let mut cpu = two_tasks(0);
    set_gdt(&mut cpu, FREE, descriptor(NEW_TSS, 0x2b, Attr::P | 1));
    let words = [0x1234u16, 2, 1, 2, 3, 4, 0x800, 6, 7, 8, KERNEL_DATA, KERNEL_CODE, KERNEL_DATA, KERNEL_DATA, 0];
    for (n, word) in words.into_iter().enumerate() {
        cpu.write(NEW_TSS + 14 + n as u64 * 2, &word.to_le_bytes());
    }
    assert_eq!(run(&mut cpu, &call(FREE)), Ok(()));
    let registers = (cpu.state.gpr[0], cpu.state.gpr[4], cpu.state.gpr[7]);
    assert_eq!(registers, (0xffff_0001, 0xffff_0800, 0xffff_0008));
    assert_eq!((cpu.state.rip, cpu.state.tr.attr.typ()), (0x1234, 3));
    cpu.state.gpr[3] = 0x1_5555;
    assert_eq!(run(&mut cpu, &[0xcf]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.tr.selector), (CODE + 7, TASK));
    assert_eq!(cpu.peek::<u16>(NEW_TSS + 24), 0x5555);

    let mut cpu = two_tasks(0);
    poke32(&mut cpu, 36, flags::VM as u32);
    poke32(&mut cpu, 76, 0x123);
    poke32(&mut cpu, 32, 0x456);
    assert_eq!(run(&mut cpu, &jmp(FREE)), Ok(()));
    assert_eq!((cpu.state.mode, cpu.state.cpl, cpu.state.seg[1].base), (Mode::Virtual8086, 3, 0x1230));
}
