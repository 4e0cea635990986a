//! Port I/O with its permissions, and the instructions that ask about descriptors.
use x86::{Attr, Seg, Segment, flags};

use super::testing::*;
use crate::{
    Stop,
    testing::{Page, TestCpu},
};

/// A program that may use the ports `allowed` only.
fn with_bitmap(mut cpu: TestCpu, allowed: &[u16]) -> TestCpu {
    let map = TSS + 0x68;
    cpu.write(TSS + 102, &0x68u16.to_le_bytes());
    cpu.write(map, &[0xff; 33]);
    for &port in allowed {
        let at = map + port as u64 / 8;
        let byte: u8 = cpu.peek(at);
        cpu.write(at, &[byte & !(1 << (port & 7))]);
    }
    cpu.state.tr.limit = 0x68 + 32;
    cpu
}

#[test]
fn ports_and_permissions() {
    // The port in DX, the instruction, allowed or not; 7 and 8 are allowed.
    for (port, bytes, ok) in [
        (7, &[0xecu8][..], true),
        (8, &[0xec], true),
        (6, &[0xec], false),
        (7, &[0x66, 0xed], true),
        (8, &[0x66, 0xed], false),
        (7, &[0xed], false),
        (255, &[0xec], false),
        (256, &[0xec], false),
        (7, &[0xee], true),
        (9, &[0xee], false),
    ] {
        for cpu in [legacy(3), long(3), v86(3)] {
            let mut cpu = with_bitmap(cpu, &[7, 8]);
            let v86 = cpu.state.mode == x86::Mode::Virtual8086;
            let bytes = match bytes {
                [0x66, opcode] if v86 => &[*opcode][..],
                [0xed] if v86 => &[0x66, 0xed],
                bytes => bytes,
            };
            cpu.state.gpr[2] = port;
            let result = run(&mut cpu, bytes);
            assert_eq!(result, if ok { Ok(()) } else { Err(Stop::GP0) }, "{port} {bytes:x?} {:?}", cpu.state.mode);
        }
    }
    // IOPL opens everything to protected mode; a TSS without a map nothing.
    let mut cpu = legacy(3);
    assert_eq!(stops(&mut cpu, &[0xe4, 0x60]), Stop::GP0);
    cpu.state.flags.set(flags::IOPL);
    cpu.ports.insert(0x60, 0x1234_56ab);
    cpu.state.gpr[0] = u64::MAX;
    assert_eq!(run(&mut cpu, &[0xe4, 0x60]), Ok(()));
    assert_eq!(cpu.state.gpr[0], 0xffff_ffff_ffff_ffab);
    assert_eq!(run(&mut cpu, &[0xe5, 0x60]), Ok(()));
    assert_eq!(cpu.state.gpr[0], 0x1234_56ab);
    assert_eq!(run(&mut cpu, &[0xe6, 0x61]), Ok(()));
    assert_eq!(cpu.outs, [(0x61, 1, 0xab)]);
}

#[test]
fn string_input_and_output() {
    let mut cpu = long(0);
    cpu.ports.insert(0x1f0, 0xbeef);
    (cpu.state.gpr[1], cpu.state.gpr[2], cpu.state.gpr[7]) = (3, 0x1f0, 0x800);
    let insw = &[0xf3, 0x66, 0x6d];
    for remaining in [2, 1, 0] {
        let result = run(&mut cpu, insw);
        assert_eq!(result, if remaining == 0 { Ok(()) } else { Err(Stop::RESTART) });
        assert_eq!((cpu.state.gpr[1], cpu.state.gpr[7]), (remaining, 0x800 + (3 - remaining) * 2));
    }
    assert_eq!((cpu.peek::<u64>(0x800), cpu.state.rip), (0xbeef_beef_beef, CODE + 3));

    // A count of zero does nothing; downwards; 32-bit addresses.
    cpu.state.gpr[7] = u64::MAX;
    assert_eq!(run(&mut cpu, insw), Ok(()));
    assert_eq!(cpu.state.gpr[7], u64::MAX);
    cpu.state.flags.set(flags::DF);
    cpu.state.gpr[6] = 0xf_0000_0800;
    assert_eq!(run(&mut cpu, &[0x67, 0x6e]), Ok(()));
    assert_eq!((cpu.outs.as_slice(), cpu.state.gpr[6]), (&[(0x1f0, 1, 0xef)][..], 0x7ff));

    // The device is not read if the value cannot be stored.
    cpu.state.gpr[7] = 0xc000;
    cpu.pages.insert(0xc, Page::ReadOnly);
    assert!(run(&mut cpu, &[0x6c]).is_err());
    assert_eq!(cpu.state.gpr[7], 0xc000);
    assert_eq!(stops(&mut long(3), &[0x6c]), Stop::GP0);
    // Permission is asked for even if nothing is to be done.
    for bytes in [&[0xf3, 0x6c][..], &[0xf3, 0x6e]] {
        let mut cpu = long(3);
        cpu.state.gpr[1] = 0;
        assert_eq!(stops(&mut cpu, bytes), Stop::GP0);
    }
}

/// How many elements are asked for at once: (address, count, elements) with 16-bit addresses in flat memory.
#[test]
fn elements_that_lie_together_are_done_at_once() {
    for (bytes, size) in [(&[0xf3u8, 0x67, 0x6c][..], 1), (&[0xf3, 0x67, 0x66, 0x6d], 2), (&[0xf3, 0x67, 0x6d], 4)] {
        // In the middle of a page; up to its end; up to the end of the addresses, behind which they begin again; over it.
        for (at, count, expected) in [
            (0xc000, 8, 8),
            (0xc000, 1, 1),
            (0xd000 - 4 * size, 8, 4),
            (0x1_0000 - 5 * size, 8, 5 - 1),
            (0x1_0000 - size, 8, 1),
        ] {
            let mut cpu = legacy(0);
            (cpu.memory, cpu.bulk) = ([&cpu.memory[..], &[0; 0x1000]].concat(), true);
            cpu.ports.insert(0x60, 0x4433_2211);
            (cpu.state.gpr[1], cpu.state.gpr[2], cpu.state.gpr[7]) = (count, 0x60, at);
            let done = expected.min(count);
            assert_eq!(run(&mut cpu, bytes), if done == count { Ok(()) } else { Err(Stop::RESTART) });
            assert_eq!(
                (cpu.state.gpr[1], cpu.state.gpr[7]),
                (count - done, (at + done * size) & 0xffff),
                "{at:x} {count}"
            );
            let element = &[0x11, 0x22, 0x33, 0x44][..size as usize];
            let written = &cpu.memory[at as usize..][..(done * size) as usize];
            assert_eq!(written, element.repeat(done as usize), "{at:x} {count} {size}");
            assert!(cpu.memory[(at + done * size) as usize..].iter().all(|&byte| byte == 0), "{at:x} {count} {size}");
        }
    }
    // Not with a trap after each, downwards, or where each is checked.
    for flag in [flags::TF, flags::DF] {
        let mut cpu = legacy(0);
        cpu.bulk = true;
        cpu.state.flags.set(flag);
        (cpu.state.gpr[1], cpu.state.gpr[2], cpu.state.gpr[6]) = (4, 0x60, 0xc000);
        assert_eq!(run(&mut cpu, &[0xf3, 0x6e]), Err(Stop::RESTART));
        assert_eq!((cpu.state.gpr[1], cpu.outs.len()), (3, 1));
    }
    let mut cpu = legacy(0);
    cpu.bulk = true;
    cpu.write(0xc000, b"abcd");
    (cpu.state.gpr[1], cpu.state.gpr[2], cpu.state.gpr[6]) = (4, 0x60, 0xc000);
    assert_eq!(run(&mut cpu, &[0xf3, 0x6e]), Ok(()));
    assert_eq!(cpu.outs, b"abcd".map(|byte| (0x60, 1, byte as u32)));
}

#[test]
fn string_input_goes_to_es_whatever_the_prefix() {
    let mut cpu = real();
    cpu.ports.insert(0x60, 0x5a);
    (cpu.state.gpr[2], cpu.state.gpr[7]) = (0x60, 4);
    cpu.state.seg[Seg::Ds as usize] = Segment::real(0x30, 0);
    cpu.state.seg[Seg::Es as usize] = Segment::real(0x40, 0);
    cpu.state.seg[Seg::Fs as usize] = Segment::real(0x50, 0);
    assert_eq!(run(&mut cpu, &[0x6c]), Ok(()));
    assert_eq!(run(&mut cpu, &[0x64, 0x6c]), Ok(()));
    assert_eq!((cpu.peek::<u16>(0x304), cpu.peek::<u16>(0x404), cpu.peek::<u16>(0x504)), (0, 0x5a5a, 0));
}

fn zf(cpu: &TestCpu) -> bool {
    cpu.state.flags.zf()
}

const LAR: &[u8] = &[0x0f, 0x02, 0xc1];
const LSL: &[u8] = &[0x0f, 0x03, 0xc1];
const VERR: &[u8] = &[0x0f, 0x00, 0xe1];
const VERW: &[u8] = &[0x0f, 0x00, 0xe9];

#[test]
fn questions_about_descriptors() {
    // Level, selector, whether LAR, LSL, VERR and VERW say yes.
    let cases = [
        (0, KERNEL_DATA, [true, true, true, true]),
        (0, KERNEL_CODE, [true, true, true, false]),
        (3, KERNEL_DATA, [false; 4]),
        (3, USER_DATA, [true, true, true, true]),
        (0, KERNEL_DATA | 3, [false; 4]),
        (3, CONFORMING | 3, [true, true, true, false]),
        (0, TASK, [true, true, false, false]),
        (0, FREE, [true, false, false, false]),
        (0, FREE + 8, [false; 4]),
        (0, 0, [false; 4]),
        (0, 0x100, [false; 4]),
    ];
    for (cpl, selector, answers) in cases {
        for (bytes, answer) in [LAR, LSL, VERR, VERW].into_iter().zip(answers) {
            let mut cpu = legacy(cpl);
            set_gdt(&mut cpu, FREE, gate(12, KERNEL_CODE, 0, 0, 0));
            set_gdt(&mut cpu, FREE + 8, gate(14, KERNEL_CODE, 0, 0, 0));
            (cpu.state.gpr[0], cpu.state.gpr[1]) = (0x5555, selector as u64);
            cpu.state.flags.set(if answer { 0 } else { flags::ZF });
            assert_eq!(run(&mut cpu, bytes), Ok(()));
            assert_eq!(zf(&cpu), answer, "{selector:#x} {bytes:x?}");
            if !answer || bytes == VERR || bytes == VERW {
                assert_eq!(cpu.state.gpr[0], 0x5555);
            }
        }
    }
    let mut cpu = long(0);
    cpu.state.gpr[1] = KERNEL_DATA as u64;
    assert_eq!(run(&mut cpu, LAR), Ok(()));
    assert_eq!(cpu.state.gpr[0], 0x00cf_9300);
    assert_eq!(run(&mut cpu, LSL), Ok(()));
    assert_eq!(cpu.state.gpr[0], 0xffff_ffff);
    set_gdt(&mut cpu, FREE, descriptor(0, 0xfff, Attr::P | 1));
    cpu.state.gpr[1] = FREE as u64;
    assert_eq!(run(&mut cpu, LAR), Ok(()));
    assert!(!zf(&cpu), "long mode has no 16-bit TSS");
    for cpu in [&mut real(), &mut v86(3)] {
        for bytes in [LAR, LSL, VERR, VERW, &[0x63, 0xc1]] {
            assert_eq!(stops(cpu, bytes), Stop::UD);
        }
    }
}

#[test]
fn arpl() {
    for (old, source, new) in [(0x10u64, 3, 0x13), (0x13, 1, 0x13), (0x12, 2, 0x12), (0xabcd_0011, 2, 0xabcd_0012)] {
        let mut cpu = legacy(3);
        (cpu.state.gpr[1], cpu.state.gpr[0]) = (old, source);
        assert_eq!(run(&mut cpu, &[0x63, 0xc1]), Ok(()));
        assert_eq!((cpu.state.gpr[1], zf(&cpu)), (new, old != new));
        cpu.write(0x800, &(old as u32).to_le_bytes());
        assert_eq!(run(&mut cpu, &[0x63, 0x05, 0, 8, 0, 0]), Ok(()));
        assert_eq!((cpu.peek::<u32>(0x800) as u64, zf(&cpu)), (new, old != new));
    }
    // What cannot be written can be compared.
    let mut cpu = legacy(0);
    cpu.state.seg[3] = Segment::from_descriptor(8, flat(1, 0, 0));
    assert_eq!(run(&mut cpu, &[0x63, 0x05, 0, 8, 0, 0]), Ok(()));
    cpu.state.gpr[0] = 1;
    assert_eq!(stops(&mut cpu, &[0x63, 0x05, 0, 8, 0, 0]), Stop::GP0);
}
