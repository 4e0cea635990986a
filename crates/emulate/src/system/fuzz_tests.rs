//! Random instructions, tables, registers and events: nothing panics, and what stops leaves the registers alone.
use std::vec::Vec;

use x86::{CpuState, Exception, Segment, Table, Vector, exception::pf};

use super::{
    event::{Delivery, Event, deliver_event},
    testing::*,
};
use crate::{
    Stop,
    testing::{Random, TestCpu},
};

/// Mostly something that means something.
fn value(r: &mut Random) -> u64 {
    match r.below(8) {
        0 => r.bits(),
        1 => r.below(0x100),
        2 => 1u64.wrapping_shl(r.bits() as u32).wrapping_sub(r.below(3)),
        3 => KERNEL_STACK - r.below(0x40),
        _ => r.below(0x30) * 8 + r.below(8),
    }
}

/// Opcodes of this family, after any prefixes.
const OPCODES: &[&[u8]] = &[
    &[0x06],
    &[0x07],
    &[0x0e],
    &[0x16],
    &[0x17],
    &[0x1e],
    &[0x1f],
    &[0x62],
    &[0x63],
    &[0x6c],
    &[0x6d],
    &[0x6e],
    &[0x6f],
    &[0x8c],
    &[0x8e],
    &[0x9a],
    &[0xc4],
    &[0xc5],
    &[0xca],
    &[0xcb],
    &[0xcc],
    &[0xcd],
    &[0xce],
    &[0xcf],
    &[0xcf],
    &[0xe4],
    &[0xe5],
    &[0xe6],
    &[0xe7],
    &[0xea],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xef],
    &[0xf1],
    &[0xf4],
    &[0xfa],
    &[0xfb],
    &[0xff],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x06],
    &[0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xa0],
    &[0x0f, 0xa1],
    &[0x0f, 0xa8],
    &[0x0f, 0xa9],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x0f, 0xb5],
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x66, 0x0f, 0x38, 0x82],
];

fn instruction(r: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (odds, prefix) in [(3, 0x66), (6, 0x67), (6, 0xf3), (8, 0x65), (4, 0x48)] {
        if r.one_in(odds) {
            bytes.push(prefix);
        }
    }
    bytes.extend(OPCODES[r.below(OPCODES.len() as u64) as usize]);
    // Operands: a ModRM byte, or a selector that exists.
    bytes.extend((0..10).map(|_| value(r) as u8));
    bytes
}

fn machine(r: &mut Random) -> TestCpu {
    let mut cpu = match r.below(6) {
        0 => real(),
        1 => v86(r.below(4)),
        2 => legacy(3),
        3 => legacy(0),
        4 => long(3),
        _ => long(0),
    };
    // Tables: mostly sensible, some descriptors with random attributes, types and targets.
    for _ in 0..12 {
        let selector = (r.below(32) * 8) as u16;
        let value = match r.below(4) {
            0 => r.bits(),
            1 => descriptor(r.below(MEMORY as u64), 0xffff, r.bits() as u16 & 0xfff | 0x80),
            _ => gate(r.below(16) as u16, value(r) as u16, HANDLER, 3, r.below(32)),
        };
        set_gdt(&mut cpu, selector, value);
    }
    for vector in 0..32 {
        let typ = if r.one_in(4) { 5 } else { 14 };
        set_idt(&mut cpu, vector, gate(typ, value(r) as u16, HANDLER, 3, 0));
    }
    for _ in 0..64 {
        let at = r.below(MEMORY as u64 / 8) * 8;
        cpu.write(at, &value(r).to_le_bytes());
    }
    let s = &mut cpu.state;
    for n in 0..16 {
        if n != 4 || r.one_in(4) {
            s.gpr[n] = value(r);
        }
    }
    s.flags.set(s.flags.get() ^ r.bits() & r.bits() & !x86::flags::VM);
    if r.one_in(3) {
        let bits = r.bits() & r.bits() & 0x0037_06ff & !(1 << 17);
        s.cr4 |= bits;
    }
    s.star = value(r) << 32;
    s.sysenter_cs = value(r);
    s.ldtr = Segment { selector: 8, attr: x86::Attr(0x82), limit: 0xff, base: LDT };
    s.idtr = if r.one_in(8) { Table { base: value(r), limit: r.bits() as u16 } } else { s.idtr };
    s.tr.limit = if r.one_in(4) { r.below(0x100) as u32 } else { s.tr.limit };
    s.refresh();
    if r.one_in(4) {
        cpu.pages.insert(r.below(16), crate::testing::Page::ReadOnly);
    }
    if r.one_in(8) {
        cpu.lost_races = r.below(3) as u32;
    }
    cpu
}

/// Everything that an instruction of this family could change.
fn registers(s: &CpuState) -> impl PartialEq + core::fmt::Debug + use<> {
    let control = [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.xcr0, s.dr6, s.dr7, s.rip, s.flags.get()];
    let tables = (s.seg, s.ldtr, s.tr, s.gdtr, s.idtr, s.pdptr);
    (s.gpr, control, tables, (s.dr, s.mode, s.cpl, s.shadow, s.kernel_gs_base))
}

#[test]
fn instructions_commit_all_or_nothing() {
    let mut r = Random::new(&[0x1234_5678_9abc_def1]);
    let mut done = [0u32; 2];
    for n in 0..150_000 {
        let mut cpu = machine(&mut r);
        let bytes = instruction(&mut r);
        let before = registers(&cpu.state);
        let result = run(&mut cpu, &bytes);
        done[result.is_ok() as usize] += 1;
        match result {
            Ok(()) | Err(Stop::RESTART) => {
                let mut fresh = cpu.state.clone();
                fresh.refresh();
                assert_eq!((fresh.mode, fresh.cpl), (cpu.state.mode, cpu.state.cpl), "{n}: stale {bytes:x?}");
            }
            Err(_) => assert_eq!(before, registers(&cpu.state), "{n}: {bytes:x?}"),
        }
    }
    assert!(done.iter().all(|&n| n > 20_000), "too one-sided to say much: {done:?}");
}

#[test]
fn events_end_in_a_handler_or_in_shutdown() {
    let mut r = Random::new(&[0xfeed_5678_9abc_def1]);
    let mut seen = [0u32; 3];
    for n in 0..60_000 {
        let mut cpu = machine(&mut r);
        let vector = r.below(256) as u8;
        let event = match r.below(6) {
            0 => Event::Interrupt(vector),
            1 => Event::Nmi,
            2 => Event::Software { vector, len: 2, int3_or_into: r.one_in(2) },
            3 => Event::Exception(Exception::page_fault(value(&mut r), pf::WRITE)),
            4 => Event::Exception(Exception::with_code(Vector::GP, r.bits() as u32 & 0xffff)),
            _ => Event::Icebp { len: 1 },
        };
        let before = registers(&cpu.state);
        match deliver_event(&mut cpu, event) {
            Delivery::Delivered => seen[0] += 1,
            Delivery::Shutdown => seen[1] += 1,
            Delivery::Stopped(stop) => {
                assert_eq!(stop, Stop::RESTART);
                assert_eq!(before, registers(&cpu.state), "{n}: {event:?}");
                seen[2] += 1;
            }
        }
    }
    assert!(seen[0] > 10_000 && seen[1] > 1_000, "too one-sided to say much: {seen:?}");
}
