//! IRET, SYSCALL and its kin, far jumps, calls and returns.
use x86::{Attr, Cr0, Cr4, Efer, Features, Mode, Segment, Vector, flags};

use super::testing::*;
use crate::{Stop, testing::TestCpu};

fn push64(cpu: &mut TestCpu, values: &[u64]) {
    cpu.state.gpr[4] -= values.len() as u64 * 8;
    for (n, value) in values.iter().enumerate() {
        cpu.write(cpu.state.gpr[4] + n as u64 * 8, &value.to_le_bytes());
    }
}

fn push32(cpu: &mut TestCpu, values: &[u64]) {
    cpu.state.gpr[4] -= values.len() as u64 * 4;
    let at = cpu.state.gpr[4] + cpu.state.seg[2].base;
    for (n, &value) in values.iter().enumerate() {
        cpu.write(at + n as u64 * 4, &(value as u32).to_le_bytes());
    }
}

fn push16(cpu: &mut TestCpu, values: &[u64]) {
    cpu.state.gpr[4] -= values.len() as u64 * 2;
    let at = cpu.state.gpr[4] + cpu.state.seg[2].base;
    for (n, &value) in values.iter().enumerate() {
        cpu.write(at + n as u64 * 2, &(value as u16).to_le_bytes());
    }
}

const IRETQ: &[u8] = &[0x48, 0xcf];
const IRET: &[u8] = &[0xcf];
const IRET16: &[u8] = &[0x66, 0xcf];

#[test]
fn iretq_to_user_and_to_kernel() {
    let mut cpu = long(0);
    let image = flags::IF | flags::IOPL | flags::AC | flags::ID | flags::RF | flags::TF | flags::ZF;
    push64(&mut cpu, &[0x5555, USER_CODE as u64, image | flags::VM, 0x7fff_0000, USER_DATA as u64]);
    cpu.state.seg[0] = Segment::from_descriptor(KERNEL_DATA, flat(3, 0, 0));
    cpu.state.seg[5] = Segment { base: 0x1234_5678_9abc, ..cpu.state.seg[0] };
    assert_eq!(run(&mut cpu, IRETQ), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.rip, cpu.state.gpr[4]), (3, 0x5555, 0x7fff_0000));
    assert_eq!(cpu.state.flags.get(), image | flags::FIXED);
    assert_eq!((cpu.state.seg[0].selector, cpu.state.seg[0].attr.unusable()), (0, true), "kernel data is not kept");
    let gs = cpu.state.seg[5];
    assert_eq!((gs.selector, gs.base), (0, 0x1234_5678_9abc), "but the bases are");

    // Within the kernel SS may be null, as an interrupt has left it.
    let mut cpu = long(0);
    push64(&mut cpu, &[0x5555, KERNEL_CODE as u64, 0, 0x6000, 0]);
    assert_eq!(run(&mut cpu, IRETQ), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.gpr[4], cpu.state.mode), (0, 0x6000, Mode::Long64));

    // To compatibility mode.
    let mut cpu = long(0);
    push64(&mut cpu, &[0x5555, OTHER_CODE as u64 | 3, 0, 0x6000, USER_DATA as u64]);
    assert_eq!(run(&mut cpu, IRETQ), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.mode), (3, Mode::Protected32));
}

#[test]
fn iretq_refuses() {
    let (user, data) = (USER_CODE as u64, USER_DATA as u64);
    let cases: [([u64; 5], Stop); 10] = [
        ([1 << 47, user, 0, 0x6000, data], Stop::GP0),
        ([0, 0, 0, 0x6000, data], Stop::GP0),
        ([0, 0x1003, 0, 0x6000, data], Stop::gp(0x1000)),
        ([0, data, 0, 0x6000, data], Stop::gp(USER_DATA as u32 & !3)),
        ([0, KERNEL_CODE as u64 | 3, 0, 0x6000, data], Stop::gp(KERNEL_CODE as u32)),
        ([0, user, 0, 0x6000, 3], Stop::GP0),
        ([0, user, 0, 0x6000, KERNEL_DATA as u64], Stop::gp(KERNEL_DATA as u32)),
        ([0, user, 0, 0x6000, KERNEL_DATA as u64 | 3], Stop::gp(KERNEL_DATA as u32)),
        ([0, user, 0, 0x6000, user], Stop::gp(USER_CODE as u32 & !3)),
        ([0, KERNEL_CODE as u64, 0, 0x6000, ABSENT as u64], Stop::fault_code(Vector::SS, ABSENT as u32)),
    ];
    for (n, (frame, expected)) in cases.into_iter().enumerate() {
        let mut cpu = long(0);
        push64(&mut cpu, &frame);
        assert_eq!(stops(&mut cpu, IRETQ), expected, "case {n}");
    }
    // A user program cannot return inwards, nor from a nested task.
    let mut cpu = long(3);
    push64(&mut cpu, &[0, KERNEL_CODE as u64, 0, 0x6000, KERNEL_DATA as u64]);
    assert_eq!(stops(&mut cpu, IRETQ), Stop::gp(KERNEL_CODE as u32));
    let mut cpu = long(0);
    cpu.state.flags.set(flags::NT);
    assert_eq!(stops(&mut cpu, IRETQ), Stop::GP0);
}

#[test]
fn what_iret_may_change_depends_on_the_level() {
    let all = flags::WRITABLE & !flags::VM;
    // Level, IOPL, 16-bit operand, bits that follow the image.
    let user32 = all & !(flags::IF | flags::IOPL | flags::VIF | flags::VIP);
    let cases = [
        (0, 0, false, all),
        (0, 0, true, all & 0xffff),
        (3, 0, false, user32),
        (3, 3, false, user32 | flags::IF),
        (3, 0, true, user32 & 0xffff),
    ];
    for (cpl, iopl, small, writable) in cases {
        for image in [0, all] {
            let mut cpu = legacy(cpl);
            let old = flags::FIXED | iopl << 12;
            cpu.state.flags.set(old);
            let frame = [0x100, cpu.state.seg[1].selector as u64, image];
            if small {
                push16(&mut cpu, &frame)
            } else {
                push32(&mut cpu, &frame)
            }
            assert_eq!(run(&mut cpu, if small { IRET16 } else { IRET }), Ok(()));
            let expected = old & !writable | image & writable;
            assert_eq!(cpu.state.flags.get(), expected, "level {cpl} IOPL {iopl} {image:#x} {small}");
        }
    }
}

#[test]
fn iret_to_an_outer_level_and_to_virtual_8086() {
    let mut cpu = legacy(0);
    push32(&mut cpu, &[0x100, USER_CODE as u64, flags::IF, 0x8888, USER_DATA as u64]);
    assert_eq!(run(&mut cpu, IRET), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.rip, cpu.state.gpr[4]), (3, 0x100, 0x8888));
    assert!(cpu.state.seg[3].attr.unusable());

    let mut cpu = legacy(0);
    let image = flags::VM | flags::IF | flags::IOPL;
    push32(&mut cpu, &[0x1234, 0x200, image, 0x4321, 0x300, 0x400, 0x500, 0x600, 0x700]);
    assert_eq!(run(&mut cpu, IRET), Ok(()));
    assert_eq!((cpu.state.mode, cpu.state.cpl), (Mode::Virtual8086, 3));
    assert_eq!((cpu.state.rip, cpu.state.gpr[4]), (0x1234, 0x4321));
    assert_eq!(cpu.state.seg.map(|s| s.selector), [0x400, 0x200, 0x300, 0x500, 0x600, 0x700]);
    assert!(cpu.state.seg.iter().all(|s| s.base == (s.selector as u64) << 4 && s.limit == 0xffff));
    assert_eq!(cpu.state.flags.get(), image | flags::FIXED);

    let mut cpu = legacy(0);
    push32(&mut cpu, &[0x1_0000, 0x200, image, 0x4321, 0x300, 0x400, 0x500, 0x600, 0x700]);
    assert_eq!(stops(&mut cpu, IRET), Stop::GP0);
}

#[test]
fn iret_of_virtual_8086_tasks() {
    let image = flags::IF | flags::CF | flags::IOPL;
    let mut cpu = v86(3);
    push16(&mut cpu, &[0x77, 0x222, image & !flags::IOPL]);
    assert_eq!(run(&mut cpu, IRET), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.seg[1].selector, cpu.state.seg[1].base), (0x77, 0x222, 0x2220));
    assert_eq!(cpu.state.flags.get(), image | flags::VM | flags::FIXED, "IOPL is not theirs");

    let mut cpu = v86(0);
    push16(&mut cpu, &[0x77, 0x222, image]);
    assert_eq!(stops(&mut cpu, IRET), Stop::GP0);
    cpu.state.cr4 |= Cr4::VME.bits();
    assert_eq!(run(&mut cpu, IRET), Ok(()));
    assert_eq!(cpu.state.flags.get(), flags::CF | flags::VIF | flags::VM | flags::FIXED);

    for (image, old) in [(flags::TF, 0), (flags::IF, flags::VIP)] {
        let mut cpu = v86(0);
        cpu.state.cr4 |= Cr4::VME.bits();
        cpu.state.flags.set(cpu.state.flags.get() | old);
        push16(&mut cpu, &[0x77, 0x222, image]);
        assert_eq!(stops(&mut cpu, IRET), Stop::GP0);
    }
}

#[test]
fn iret_in_real_mode() {
    let mut cpu = real();
    push16(&mut cpu, &[0x77, 0x222, flags::IF | flags::IOPL | flags::NT]);
    assert_eq!(run(&mut cpu, IRET), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.seg[1].base, cpu.state.gpr[4]), (0x77, 0x2220, USER_STACK));
    assert_eq!(cpu.state.flags.get(), flags::IF | flags::IOPL | flags::NT | flags::FIXED);
}

#[test]
fn a_16_bit_outer_stack_keeps_the_upper_half_of_esp() {
    let mut cpu = legacy(0);
    set_gdt(&mut cpu, FREE, flat(3, 3, 0));
    cpu.state.gpr[4] = KERNEL_STACK;
    push32(&mut cpu, &[0x100, USER_CODE as u64, 0, 0xabcd_8888, (FREE | 3) as u64]);
    assert_eq!(run(&mut cpu, IRET), Ok(()));
    assert_eq!(cpu.state.gpr[4], 0x8888);
}

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSRETL: &[u8] = &[0x0f, 0x07];

#[test]
fn syscall_and_sysret() {
    let mut cpu = long(3);
    cpu.state.star = 0x0013_0008 << 32;
    cpu.state.lstar = 0xffff_8000_0000_1000;
    cpu.state.sfmask = flags::IF | flags::TF | flags::AC;
    let image = flags::IF | flags::AC | flags::CF | flags::FIXED;
    cpu.state.flags.set(image);
    assert_eq!(run(&mut cpu, SYSCALL), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.rip), (0, 0xffff_8000_0000_1000));
    assert_eq!((cpu.state.gpr[1], cpu.state.gpr[11]), (CODE + 2, image));
    assert_eq!(cpu.state.flags.get(), flags::CF | flags::FIXED);
    assert_eq!((cpu.state.seg[1].selector, cpu.state.seg[2].selector), (8, 16));
    assert_eq!((cpu.state.mode, cpu.state.gpr[4]), (Mode::Long64, USER_STACK));

    cpu.state.rip = CODE;
    cpu.state.gpr[11] |= flags::RF | flags::VM;
    assert_eq!(run(&mut cpu, SYSRETQ), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.rip, cpu.state.mode), (3, CODE + 2, Mode::Long64));
    assert_eq!(cpu.state.flags.get(), image);
    assert_eq!((cpu.state.seg[1].selector, cpu.state.seg[2].selector), (0x23, 0x1b));

    let mut cpu = long(0);
    cpu.state.star = 0x0013_0008 << 32;
    cpu.state.gpr[1] = 0x1234_5678_9abc;
    assert_eq!(run(&mut cpu, SYSRETL), Ok(()));
    assert_eq!((cpu.state.mode, cpu.state.rip, cpu.state.seg[1].selector), (Mode::Protected32, 0x5678_9abc, 0x13));
}

/// The trap flag that SYSRET restores traps before the user's next instruction, not behind it.
#[test]
fn sysret_into_single_step_traps_at_once() {
    for (image, rip) in [(flags::TF, HANDLER), (0, CODE)] {
        let mut cpu = long(0);
        set_idt64(&mut cpu, 1, gate(14, KERNEL_CODE, HANDLER, 0, 0), 0);
        cpu.state.star = 0x0013_0008 << 32;
        (cpu.state.gpr[1], cpu.state.gpr[11]) = (CODE, image);
        assert_eq!(run(&mut cpu, SYSRETQ), Ok(()));
        assert_eq!(cpu.state.rip, rip);
        if image != 0 {
            // RIP and CS of the user.
            assert_eq!((cpu.peek::<u64>(KERNEL_STACK - 40), cpu.peek::<u64>(KERNEL_STACK - 32)), (CODE, 0x23));
            assert_eq!(cpu.state.dr6 & x86::debug::DR6_BS, x86::debug::DR6_BS);
        }
    }
}

#[test]
fn syscall_refuses() {
    for amd in [false, true] {
        let feature = if amd { Features::AMD } else { Features::empty() };
        let mut cpu = long(3);
        cpu.features |= feature;
        cpu.state.efer &= !Efer::SCE.bits();
        assert_eq!(stops(&mut cpu, SYSCALL), Stop::UD);
        // Outside of 64-bit mode only AMD has it.
        let mut cpu = legacy(3);
        cpu.features |= feature;
        cpu.state.efer |= Efer::SCE.bits();
        cpu.state.star = 0x8_0000_1234;
        let result = run(&mut cpu, SYSCALL);
        assert_eq!(result, if amd { Ok(()) } else { Err(Stop::UD) });
        if amd {
            assert_eq!((cpu.state.rip, cpu.state.cpl, cpu.state.gpr[1]), (0x1234, 0, CODE + 2));
        }
        // A return address that is not canonical: Intel faults in the kernel.
        let mut cpu = long(0);
        cpu.features |= feature;
        cpu.state.gpr[1] = 1 << 47;
        assert_eq!(run(&mut cpu, SYSRETQ), if amd { Ok(()) } else { Err(Stop::GP0) });
    }
    assert_eq!(stops(&mut long(3), SYSRETQ), Stop::GP0);
    assert_eq!(stops(&mut real(), SYSCALL), Stop::UD);
}

const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];

#[test]
fn sysenter_and_sysexit() {
    for (mut cpu, exit, user) in [(legacy(3), SYSEXIT, 0x1b), (long(3), SYSEXITQ, 0x2b)] {
        cpu.state.sysenter_cs = 8;
        (cpu.state.sysenter_eip, cpu.state.sysenter_esp) = (CODE + 0x100, KERNEL_STACK);
        cpu.state.flags.set(flags::IF | flags::CF);
        let mode = cpu.state.mode;
        assert_eq!(run(&mut cpu, SYSENTER), Ok(()));
        assert_eq!((cpu.state.rip, cpu.state.gpr[4], cpu.state.cpl), (CODE + 0x100, KERNEL_STACK, 0));
        assert_eq!((cpu.state.flags.get(), cpu.state.mode), (flags::CF | flags::FIXED, mode));
        (cpu.state.gpr[2], cpu.state.gpr[1]) = (CODE + 0x200, USER_STACK);
        assert_eq!(run(&mut cpu, exit), Ok(()));
        assert_eq!((cpu.state.rip, cpu.state.gpr[4], cpu.state.cpl), (CODE + 0x200, USER_STACK, 3));
        assert_eq!((cpu.state.seg[1].selector, cpu.state.seg[2].selector), (user, user + 8));
        assert_eq!(cpu.state.mode, mode);
        assert_eq!(stops(&mut cpu, exit), Stop::GP0);
        cpu.state.sysenter_cs = 3;
        assert_eq!(stops(&mut cpu, SYSENTER), Stop::GP0);
    }
    assert_eq!(stops(&mut real(), SYSENTER), Stop::GP0);
    let mut cpu = long(3);
    cpu.features |= Features::AMD;
    assert_eq!(stops(&mut cpu, SYSENTER), Stop::UD);
    // Privilege comes first.
    assert_eq!(stops(&mut cpu, SYSEXIT), Stop::GP0);
    let mut cpu = long(0);
    cpu.features |= Features::AMD;
    assert_eq!(stops(&mut cpu, SYSEXIT), Stop::UD);
}

#[test]
fn swapgs_exchanges_the_bases() {
    const SWAPGS: &[u8] = &[0x0f, 0x01, 0xf8];
    let mut cpu = long(0);
    (cpu.state.seg[5].base, cpu.state.kernel_gs_base) = (1, 2);
    assert_eq!(run(&mut cpu, SWAPGS), Ok(()));
    assert_eq!((cpu.state.seg[5].base, cpu.state.kernel_gs_base), (2, 1));
    assert_eq!(stops(&mut long(3), SWAPGS), Stop::GP0);
    assert_eq!(stops(&mut legacy(0), SWAPGS), Stop::UD);
}

fn ljmp(selector: u16, offset: u32) -> std::vec::Vec<u8> {
    far(0xea, selector, offset)
}

fn lcall(selector: u16, offset: u32) -> std::vec::Vec<u8> {
    far(0x9a, selector, offset)
}

fn far(opcode: u8, selector: u16, offset: u32) -> std::vec::Vec<u8> {
    [&[opcode], &offset.to_le_bytes()[..], &selector.to_le_bytes()].concat()
}

#[test]
fn far_jumps_within_a_level() {
    for (cpl, selector, result) in [
        (0, KERNEL_CODE, KERNEL_CODE),
        (0, CONFORMING, CONFORMING),
        (3, USER_CODE & !3, USER_CODE),
        (3, CONFORMING, CONFORMING | 3),
        (3, CONFORMING | 3, CONFORMING | 3),
        (0, OTHER_CODE, OTHER_CODE),
    ] {
        let mut cpu = legacy(cpl);
        assert_eq!(run(&mut cpu, &ljmp(selector, 0x1234)), Ok(()), "{selector:#x}");
        assert_eq!((cpu.state.rip, cpu.state.seg[1].selector, cpu.state.cpl), (0x1234, result, cpl));
        assert_eq!(cpu.state.mode, if selector == OTHER_CODE { Mode::Protected16 } else { Mode::Protected32 });
    }
    for (cpl, selector, stop) in [
        (3, KERNEL_CODE, Stop::gp(KERNEL_CODE as u32)),
        (0, USER_CODE, Stop::gp(USER_CODE as u32 & !3)),
        (0, KERNEL_CODE | 3, Stop::gp(KERNEL_CODE as u32)),
        (0, KERNEL_DATA, Stop::gp(KERNEL_DATA as u32)),
        (0, 3, Stop::GP0),
        (0, 0x108, Stop::gp(0x108)),
        (0, 4, Stop::gp(4)),
        (0, TASK, Stop::fault_code(Vector::NP, TASK as u32)),
    ] {
        let mut cpu = legacy(cpl);
        cpu.state.ldtr.attr = Attr(Attr::UNUSABLE);
        set_gdt(&mut cpu, TASK, descriptor(TSS, 0x67, 9));
        assert_eq!(stops(&mut cpu, &ljmp(selector, 0)), stop, "{selector:#x}");
    }
    let mut cpu = legacy(0);
    set_gdt(&mut cpu, FREE, descriptor(0, 0xfff, 0x49b));
    assert_eq!(stops(&mut cpu, &ljmp(FREE, 0x1000)), Stop::GP0);
}

#[test]
fn far_calls_and_returns() {
    let mut cpu = legacy(3);
    assert_eq!(run(&mut cpu, &lcall(CONFORMING, 0x4100)), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.gpr[4]), (0x4100, USER_STACK - 8));
    assert_eq!(cpu.peek::<u64>(USER_STACK - 8), (USER_CODE as u64) << 32 | (CODE + 7));
    assert_eq!(run(&mut cpu, &[0xcb]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.seg[1].selector, cpu.state.gpr[4]), (CODE + 7, USER_CODE, USER_STACK));

    // No room on the stack.
    let mut cpu = legacy(3);
    cpu.state.seg[2].limit = 0x10ff;
    cpu.state.gpr[4] = 4;
    assert_eq!(stops(&mut cpu, &lcall(CONFORMING, 0x4100)), Stop::SS0);

    // RETF imm16 to an outer level releases the parameters on both stacks.
    let mut cpu = legacy(0);
    push32(&mut cpu, &[0x100, USER_CODE as u64, 0xaaaa, 0xbbbb, 0x8000, USER_DATA as u64]);
    assert_eq!(run(&mut cpu, &[0xca, 8, 0]), Ok(()));
    assert_eq!((cpu.state.cpl, cpu.state.rip, cpu.state.gpr[4]), (3, 0x100, 0x8008));

    // 64-bit far return, as kernels use it to load CS.
    let mut cpu = long(0);
    push64(&mut cpu, &[0x1234, KERNEL_CODE as u64]);
    assert_eq!(run(&mut cpu, &[0x48, 0xcb]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.mode), (0x1234, Mode::Long64));

    let mut cpu = real();
    assert_eq!(run(&mut cpu, &[0x9a, 0x34, 0x12, 0x00, 0xf0]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.seg[1].base), (0x1234, 0xf_0000));
    assert_eq!(cpu.peek::<u32>(USER_STACK - 4) as u64, CODE + 5);
}

#[test]
fn from_real_to_protected_to_long_mode() {
    let mut cpu = legacy(0);
    // lgdt is as the tables are; the code runs at level 0 in 16 bits before the jump.
    cpu.state.seg[1] = Segment::real(0, 0);
    cpu.state.cr0 &= !Cr0::PE.bits();
    cpu.state.refresh();
    assert_eq!(cpu.state.mode, Mode::Real);
    cpu.state.gpr[0] = cpu.state.cr0 | Cr0::PE.bits();
    assert_eq!(run(&mut cpu, &[0x0f, 0x22, 0xc0]), Ok(()));
    assert_eq!((cpu.state.mode, cpu.state.cpl), (Mode::Protected16, 0));
    assert_eq!(run(&mut cpu, &[0x66, 0xea, 0x00, 0x41, 0, 0, 8, 0]), Ok(()));
    assert_eq!((cpu.state.mode, cpu.state.rip), (Mode::Protected32, 0x4100));
    cpu.state.gpr[0] = Cr4::PAE.bits();
    assert_eq!(run(&mut cpu, &[0x0f, 0x22, 0xe0]), Ok(()));
    cpu.state.efer |= Efer::LME.bits();
    cpu.state.gpr[0] = cpu.state.cr0 | Cr0::PG.bits();
    assert_eq!(run(&mut cpu, &[0x0f, 0x22, 0xc0]), Ok(()));
    assert!(cpu.state.long_mode() && cpu.state.mode == Mode::Protected32);
    set_gdt(&mut cpu, KERNEL_CODE, flat(11, 0, Attr::L));
    assert_eq!(run(&mut cpu, &ljmp(KERNEL_CODE, 0x4200)), Ok(()));
    assert_eq!((cpu.state.mode, cpu.state.rip), (Mode::Long64, 0x4200));
}

#[test]
fn call_gates_of_protected_mode() {
    // Gate type, size of its values, parameters.
    for (typ, size, parameters) in [(12, 4u64, 2u64), (4, 2, 3)] {
        let mut cpu = legacy(3);
        set_gdt(&mut cpu, FREE, gate(typ, KERNEL_CODE, HANDLER, 3, parameters));
        let values: std::vec::Vec<u64> = (0..parameters).map(|n| 0x1110 + n).collect();
        if size == 4 {
            push32(&mut cpu, &values)
        } else {
            push16(&mut cpu, &values)
        }
        let esp = cpu.state.gpr[4];
        assert_eq!(run(&mut cpu, &lcall(FREE, 0xdead_beef)), Ok(()));
        assert_eq!((cpu.state.rip, cpu.state.cpl), (HANDLER, 0));
        let expected = [&[CODE + 7, USER_CODE as u64], &values[..], &[esp, USER_DATA as u64]].concat();
        assert_eq!(cpu.state.gpr[4], KERNEL_STACK - expected.len() as u64 * size);
        for (n, value) in expected.into_iter().enumerate() {
            let at = cpu.state.gpr[4] + n as u64 * size;
            let found = if size == 4 { cpu.peek::<u32>(at) as u64 } else { cpu.peek::<u16>(at) as u64 };
            assert_eq!(found, value, "value {n} of {size} bytes");
        }
        // And back.
        let bytes = (parameters * size) as u8;
        let ret = if size == 4 { std::vec![0xca, bytes, 0] } else { std::vec![0x66, 0xca, bytes, 0] };
        assert_eq!(run(&mut cpu, &ret), Ok(()));
        assert_eq!((cpu.state.cpl, cpu.state.rip, cpu.state.gpr[4]), (3, CODE + 7, USER_STACK));
    }
}

#[test]
fn call_gates_refuse() {
    let good = gate(12, KERNEL_CODE, HANDLER, 3, 0);
    let free = FREE as u32;
    let cases = [
        (FREE, gate(12, KERNEL_CODE, HANDLER, 2, 0), Stop::gp(free)),
        (FREE, good & !(1 << 47), Stop::fault_code(Vector::NP, free)),
        (FREE, gate(12, 0, HANDLER, 3, 0), Stop::GP0),
        (FREE, gate(12, 0x1008, HANDLER, 3, 0), Stop::gp(0x1008)),
        (FREE, gate(12, KERNEL_DATA, HANDLER, 3, 0), Stop::gp(KERNEL_DATA as u32)),
        (FREE, gate(14, KERNEL_CODE, HANDLER, 3, 0), Stop::gp(free)),
    ];
    for (selector, gate, stop) in cases {
        let mut cpu = legacy(3);
        set_gdt(&mut cpu, FREE, gate);
        assert_eq!(stops(&mut cpu, &lcall(selector, 0)), stop, "{gate:#x}");
    }
    // A jump cannot reach an inner level.
    let mut cpu = legacy(3);
    set_gdt(&mut cpu, FREE, good);
    assert_eq!(stops(&mut cpu, &ljmp(FREE, 0)), Stop::gp(KERNEL_CODE as u32));
    set_gdt(&mut cpu, FREE, gate(12, CONFORMING, HANDLER, 3, 0));
    assert_eq!(run(&mut cpu, &ljmp(FREE, 0)), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.cpl, cpu.state.seg[1].selector), (HANDLER, 3, CONFORMING | 3));
    // The new stack.
    for (ss, stop) in [
        (0, Stop::fault_code(Vector::TS, 0)),
        (USER_DATA, Stop::fault_code(Vector::TS, USER_DATA as u32 & !3)),
        (ABSENT, Stop::fault_code(Vector::SS, ABSENT as u32)),
    ] {
        let mut cpu = legacy(3);
        set_gdt(&mut cpu, FREE, good);
        cpu.write(TSS + 8, &ss.to_le_bytes());
        assert_eq!(stops(&mut cpu, &lcall(FREE, 0)), stop);
    }
}

#[test]
fn call_gates_of_long_mode() {
    let mut cpu = long(3);
    set_gdt(&mut cpu, FREE, gate(12, KERNEL_CODE, HANDLER, 3, 5));
    set_gdt(&mut cpu, FREE + 8, 0);
    cpu.write(0x800, &[0xef, 0xbe, 0xad, 0xde]);
    cpu.write(0x804, &FREE.to_le_bytes());
    // call far [0x800]
    assert_eq!(run(&mut cpu, &[0xff, 0x1c, 0x25, 0, 8, 0, 0]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.cpl, cpu.state.gpr[4]), (HANDLER, 0, KERNEL_STACK - 32));
    let pushed: [u64; 4] = core::array::from_fn(|n| cpu.peek(KERNEL_STACK - 32 + n as u64 * 8));
    assert_eq!(pushed, [CODE + 7, USER_CODE as u64, USER_STACK, USER_DATA as u64]);
    assert_eq!(cpu.state.seg[2].selector, 0);
    assert_eq!(run(&mut cpu, &[0x48, 0xcb]), Ok(()));
    assert_eq!((cpu.state.rip, cpu.state.cpl, cpu.state.gpr[4]), (CODE + 7, 3, USER_STACK));

    // To code that is not 64-bit, and with a second half that is a descriptor of its own.
    for (gate_code, upper, stop) in [
        (OTHER_CODE, 0, Stop::gp(OTHER_CODE as u32)),
        (KERNEL_CODE, 1 << 40, Stop::gp(FREE as u32)),
        (KERNEL_CODE, 1 << 15, Stop::GP0),
    ] {
        let mut cpu = long(3);
        set_gdt(&mut cpu, FREE, gate(12, gate_code, HANDLER, 3, 0));
        set_gdt(&mut cpu, FREE + 8, upper);
        cpu.write(0x804, &FREE.to_le_bytes());
        assert_eq!(stops(&mut cpu, &[0xff, 0x1c, 0x25, 0, 8, 0, 0]), stop);
    }
}
