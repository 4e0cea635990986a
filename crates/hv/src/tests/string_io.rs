//! INS and OUTS: what fits goes through the data page at once, and the registers are right at every stop.
use abi::*;
use std::{vec, vec::Vec};
use x86::{Segment, Vector, flags};

use crate::{
    Errno,
    backend::{Event, EventKind, Exit, PioExit},
    testing::{CODE, Machine},
};

const PORT: u64 = 0x1f0;
const REP_OUTSB: &[u8] = &[0xf3, 0x6e];
const REP_OUTSW: &[u8] = &[0xf3, 0x6f];
const REP_INSB: &[u8] = &[0xf3, 0x6c];
const REP_INSW: &[u8] = &[0xf3, 0x6d];

/// A machine at a string instruction with a count and an index, DS and ES at 0.
fn machine(code: &[u8], count: u64, index: u64) -> Machine {
    let m = Machine::new();
    set(&m, code, count, index);
    m
}

fn set(m: &Machine, code: &[u8], count: u64, index: u64) {
    m.poke(CODE, code);
    m.state(|s| {
        s.rip = CODE;
        (s.gpr[1], s.gpr[2], s.gpr[6], s.gpr[7]) = (count, PORT, index, index);
    });
}

/// Runs up to the exit, which the processor makes for the instruction.
fn step(m: &Machine) -> KvmRunIo {
    let write = m.peek::<u8>(CODE + u64::from(m.peek::<u8>(CODE) == 0xf3)) & 2 != 0;
    m.script.exit(Exit::Pio(PioExit { port: PORT as u16, size: 1, write, string: true, len: 2 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    let io: KvmRunIo = m.payload();
    assert_eq!((u64::from(io.port), io.direction, io.data_offset), (PORT, u8::from(write), 4096));
    io
}

fn data(m: &Machine, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| m.run_field::<u8>(4096 + n)).collect()
}

/// RCX, the index register that counts, and RIP.
fn registers(m: &Machine, index: usize) -> (u64, u64, u64) {
    m.state(|s| (s.gpr[1], s.gpr[index], s.rip))
}

#[test]
fn output_goes_out_page_by_page() {
    let m = machine(REP_OUTSW, 0x900, 0x3000);
    let bytes: Vec<u8> = (0..0x1200u32).map(|n| (n * 7) as u8).collect();
    m.poke(0x3000, &bytes);
    let io = step(&m);
    assert_eq!((io.size, io.count, data(&m, 4096)), (2, 0x800, bytes[..4096].to_vec()));
    assert_eq!(registers(&m, 6), (0x100, 0x4000, CODE));
    let io = step(&m);
    assert_eq!((io.count, data(&m, 0x200)), (0x100, bytes[4096..].to_vec()));
    m.run().unwrap();
    assert_eq!(registers(&m, 6), (0, 0x4200, CODE + 2));
}

#[test]
fn input_lands_in_memory_when_the_client_has_filled_the_page() {
    let m = machine(REP_INSW, 3, 0x600);
    let io = step(&m);
    assert_eq!((io.size, io.count), (2, 3));
    // Nothing has happened yet, and the client may look.
    assert_eq!(registers(&m, 7), (3, 0x600, CODE));
    assert_eq!(m.get::<KvmRegs>(KVM_GET_REGS).rcx, 3);
    m.set_run_field(4096, [1u16, 2, 3, 4]);
    // What the client leaves in the exit itself means nothing.
    m.set_run_field(KVM_RUN_UNION_OFFSET as u64, [0xffu8; 16]);
    m.set_run_field(KVM_RUN_IMMEDIATE_EXIT_OFFSET as u64, 1u8);
    assert_eq!(m.run(), Err(Errno::EINTR));
    assert_eq!(m.peek::<[u16; 4]>(0x600), [1, 2, 3, 0]);
    assert_eq!(registers(&m, 7), (0, 0x606, CODE + 2));
}

#[test]
fn a_single_one_and_a_count_of_zero() {
    let m = machine(&[0x6d], 9, 0x600); // insw, without REP
    let io = step(&m);
    assert_eq!((io.size, io.count), (2, 1));
    m.set_run_field(4096, 0x1234u16);
    m.run().unwrap();
    assert_eq!((m.peek::<u32>(0x600), registers(&m, 7)), (0x1234, (9, 0x602, CODE + 1)));
    let m = machine(REP_OUTSB, 0, 0x600);
    m.script.exit(Exit::Pio(PioExit { port: PORT as u16, size: 1, write: true, string: true, len: 2 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    assert_eq!(registers(&m, 6), (0, 0x600, CODE + 2));
}

#[test]
fn an_element_over_two_pages_goes_alone_and_all_or_nothing() {
    let m = machine(REP_OUTSW, 3, 0x2ffd);
    m.poke(0x2ffd, &[1, 2, 3, 4, 5, 6]);
    let counts: Vec<_> = (0..3).map(|_| (step(&m).count, data(&m, 2))).collect();
    assert_eq!(counts, [(1, vec![1, 2]), (1, vec![3, 4]), (1, vec![5, 6])]);
    // The same at the end of memory, with a page behind it that is not there: the second half of the first element
    // is never asked of the device, and of an INS nothing is written.
    let m = machine(REP_INSW, 1, 0);
    m.state(|s| {
        // Protected mode, a segment that ends in the middle of an element.
        s.cr0 |= 1;
        s.seg[1].attr = x86::Attr(0x9b);
        s.seg[0] = Segment { selector: 8, attr: x86::Attr(0x93), limit: 0xfff, base: 0x2000 };
        s.gpr[7] = 0xfff;
        s.refresh();
    });
    m.script.exit(Exit::Pio(PioExit { port: PORT as u16, size: 2, write: false, string: true, len: 2 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    let injected = m.script.take_injected();
    assert!(
        matches!(injected[..], [Event { kind: EventKind::Exception(x) }] if x.vector == Vector::GP),
        "{injected:?}"
    );
}

#[test]
fn a_fault_midway_finds_what_was_done_before_it() {
    // The segment ends after 5 bytes; 16 are asked for.
    let m = machine(REP_INSB, 16, 0xffb);
    m.state(|s| {
        s.cr0 |= 1;
        s.seg[1].attr = x86::Attr(0x9b);
        s.seg[0] = Segment { selector: 8, attr: x86::Attr(0x93), limit: 0xfff, base: 0x2000 };
        s.refresh();
    });
    let io = step(&m);
    assert_eq!(io.count, 5);
    m.set_run_field(4096, [1u8, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    assert_eq!(registers(&m, 7), (11, 0x1000, CODE));
    assert_eq!(m.peek::<[u8; 6]>(0x2ffb), [1, 2, 3, 4, 5, 0]);
    assert_eq!(m.script.take_injected().len(), 1);
}

#[test]
fn offsets_wrap_in_16_bits() {
    let m = machine(REP_OUTSB, 4, 0xfffe);
    m.poke(0xfffe, &[1, 2]);
    m.poke(0, &[3, 4]);
    let mut sent = Vec::new();
    while registers(&m, 6).0 != 0 {
        let io = step(&m);
        sent.extend(data(&m, io.count as usize));
    }
    assert_eq!((sent, registers(&m, 6).1), (vec![1, 2, 3, 4], 2));
}

#[test]
fn downwards_and_stepwise_means_one_by_one() {
    for flag in [flags::DF, flags::TF] {
        let m = machine(REP_OUTSB, 2, 0x500);
        m.poke(0x4ff, &[1, 2, 3]);
        m.state(|s| s.flags.set(flag));
        assert_eq!((step(&m).count, data(&m, 1)), (1, vec![2]));
        let next = if flag == flags::DF { (0x4ff, vec![1]) } else { (0x501, vec![3]) };
        assert_eq!((registers(&m, 6), m.run().is_ok()), ((1, next.0, CODE), true));
        assert_eq!((step(&m).count, data(&m, 1)), (1, next.1));
    }
}

#[test]
fn where_others_take_part_elements_go_one_by_one() {
    // A port of the hypervisor's own.
    let m = Machine::with_irqchip();
    m.poke(0x500, &[0x11, 0x30, 4, 1]);
    set(&m, REP_OUTSB, 4, 0x500);
    m.state(|s| s.gpr[2] = 0x20);
    m.script.exit(Exit::Pio(PioExit { port: 0x20, size: 1, write: true, string: true, len: 2 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    assert_eq!(registers(&m, 6), (0, 0x504, CODE + 2));
    // Device memory as source.
    let m = machine(REP_OUTSB, 2, 0);
    m.state(|s| s.seg[3] = Segment::real(0x2000, 0));
    m.script.exit(Exit::Pio(PioExit { port: PORT as u16, size: 1, write: true, string: true, len: 2 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_MMIO));
    m.answer_mmio(0x77);
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    assert_eq!((m.payload::<KvmRunIo>().count, data(&m, 1)), (1, vec![0x77]));
}

#[test]
fn a_vcpu_that_the_client_has_moved_takes_no_elements() {
    let m = machine(REP_INSB, 4, 0x600);
    step(&m);
    m.set_run_field(4096, [1u8; 4]);
    let mut regs: KvmRegs = m.get(KVM_GET_REGS);
    regs.rip = 0x1800;
    m.ioctl(KVM_SET_REGS, &mut regs).unwrap();
    m.run().unwrap();
    assert_eq!((m.peek::<u32>(0x600), registers(&m, 7)), (0, (4, 0x600, 0x1800)));
}
