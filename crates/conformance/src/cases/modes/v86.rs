//! Virtual-8086 mode (SDM vol. 3, chapter 20).
use iced_x86::code_asm::*;

use crate::{
    Device,
    guest::{
        Live, Machine, Mode, cr4,
        layout::{DATA, STACK, TSS, sel},
        segments::descriptor,
    },
    runner::{Case, Target, case},
    vm::Exit,
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("segments-are-those-of-real-mode", "C04 C09", segments),
    case("interrupts-leave-with-all-segments-saved", "C04 C09", leaves),
    case("sensitive-instructions-without-iopl", "C04 C09", sensitive),
    case("sensitive-instructions-with-iopl-3", "C04 C09", with_iopl),
    case("privileged-instructions", "C04 C09", privileged),
    case("ports-by-the-permission-map", "C04 C09", ports),
    case("words-over-the-segment-limit", "C04 C09", limit)
        .fails_below(Target::IN_QEMU, crate::cases::cpu::exceptions::NO_LIMITS),
    case("vme-interrupts-by-the-redirection-map", "C04 C09", vme),
];

/// Where the code of virtual-8086 mode lies: segment and offset.
const SEGMENT: u16 = 0xe00;
const CODE: u64 = 0xe000;
const V86_STACK: u16 = 0x9f0;

/// A machine whose first code goes to virtual-8086 mode, at `SEGMENT:0`, with `flags`. The handlers stop there.
fn machine(flags: u32, write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Machine {
    let mut m = Machine::new(Mode::LEGACY);
    m.assemble(16, CODE, |a| write(a).map(|()| []));
    let mut code = Vec::new();
    // GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP
    for word in [0x4444, 0x3333, 0xa00, 0x1111, 0x900, u32::from(V86_STACK), flags | 1 << 17 | 2, SEGMENT.into(), 0] {
        code.push(0x68);
        code.extend(word.to_le_bytes());
    }
    code.push(0xcf);
    m.bytes(&code);
    // Real mode's data segment of the code: page 0xa000 is the user's.
    m
}

/// The frame that leaving virtual-8086 mode pushes: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS.
fn frame(live: &Live) -> [u32; 9] {
    std::array::from_fn(|n| live.memory.u32((STACK - 36) as usize + 4 * n))
}

fn segments(device: &Device) {
    let m = machine(0x3000, |a| {
        a.mov(bx, cs)?;
        a.mov(word_ptr(0x10), bx)?; // DS is DATA's
        a.mov(ax, ss)?;
        a.mov(cx, es)?;
        a.push(ax)?;
        a.pop(dx)?;
        a.int(0x80)
    });
    let live = m.run(device);
    let (regs, event) = (live.vcpu.regs(), live.event());
    assert_eq!((regs.rax as u16, regs.rbx as u16, regs.rcx as u16, regs.rdx as u16), (0x900, SEGMENT, 0x1111, 0x900));
    assert_eq!(live.memory.u16(DATA as usize + 0x10), SEGMENT);
    assert_eq!((event.vector, event.rsp, event.ss), (0x80, V86_STACK.into(), 0x900));
}

fn leaves(device: &Device) {
    let m = machine(0x3000, |a| {
        a.nop()?;
        a.int(0x80)
    });
    let live = m.run(device);
    let flags = 0x3002 | 1 << 17;
    let expected = [3, SEGMENT.into(), flags, V86_STACK.into(), 0x900, 0x1111, 0xa00, 0x3333, 0x4444];
    assert_eq!(frame(&live).map(|word| word & 0x3_ffff), expected);
    let (regs, s) = (live.vcpu.regs(), live.vcpu.sregs());
    assert_eq!(regs.rflags & 1 << 17, 0);
    assert_eq!((s.cs.selector, s.ss.selector, s.fs.selector, s.gs.selector), (sel::CODE32, sel::DATA, 0, 0));
}

/// Each of these is #GP(0) when IOPL is less than 3.
fn sensitive(device: &Device) {
    for code in [&[0xfau8][..], &[0xfb], &[0x9c], &[0x9d], &[0xcd, 0x80], &[0xcd, 0x10], &[0xcf], &[0x66, 0x9c]] {
        let event = machine(0, |a| a.db(code)).run(device).event();
        assert_eq!((event.vector, event.code, event.rip, event.cs), (13, 0, 0, SEGMENT), "{code:02x?}");
        assert_ne!(event.rflags & 1 << 17, 0);
    }
    // INT3 is not sensitive, nor is INTO.
    let event = machine(0, |a| a.int3()).run(device).event();
    assert_eq!((event.vector, event.rip), (3, 1));
}

fn with_iopl(device: &Device) {
    let m = machine(0x3000, |a| {
        a.cli()?;
        a.pushf()?;
        a.pop(ax)?;
        a.sti()?;
        a.pushf()?;
        a.pop(bx)?;
        a.push(0x2)?;
        a.popf()?;
        a.pushf()?;
        a.pop(cx)?;
        // IRET within virtual-8086 mode.
        a.pushf()?;
        a.push(i32::from(SEGMENT))?;
        a.push(0x40)?;
        a.iret()?;
        Ok(())
    });
    let mut m = m;
    m.assemble(16, CODE + 0x40, |a| {
        a.mov(dx, 0x5a5a)?;
        a.int(0x80)?;
        Ok([])
    });
    let live = m.run(device);
    let regs = live.vcpu.regs();
    assert_eq!((regs.rax & 0x3200, regs.rbx & 0x3200, regs.rcx & 0x3200), (0x3000, 0x3200, 0x3000));
    assert_eq!((regs.rdx as u16, live.event().rip), (0x5a5a, 0x45));
}

fn privileged(device: &Device) {
    for code in
        [&[0xf4u8][..], &[0x0f, 0x20, 0xc0], &[0x0f, 0x22, 0xc0], &[0x0f, 0x30], &[0x0f, 0x06], &[0x0f, 0x01, 0xf0]]
    {
        let event = machine(0x3000, |a| a.db(code)).run(device).event();
        assert_eq!((event.vector, event.code, event.rip), (13, 0, 0), "{code:02x?}");
    }
    // Instructions that do not exist there.
    for code in [&[0x0fu8, 0x00, 0xd8][..], &[0x63, 0xc0], &[0x0f, 0x02, 0xc0]] {
        let event = machine(0x3000, |a| a.db(code)).run(device).event();
        assert_eq!((event.vector, event.rip), (6, 0), "{code:02x?}");
    }
}

/// The map decides whatever IOPL is.
fn ports(device: &Device) {
    let mut m = machine(0x3000, |a| {
        a.out(0x10, al)?;
        a.out(0x11, al)
    });
    let mut map = [0xff; 9];
    map[2] = 0xfe;
    m.image.write(TSS + 0x68, &map);
    m.descriptor(sel::TSS, descriptor(TSS as u32, 0x68 + 8, 0x8b, 0));
    let live = m.start(device);
    live.edit_sregs(|s| s.tr.limit = 0x68 + 8);
    assert_eq!(live.vcpu.run(), Exit::out8(0x10, 0));
    live.vcpu.run_to_hlt();
    assert_eq!((live.event().vector, live.event().rip), (13, 2));
}

fn limit(device: &Device) {
    // A word at offset 0xffff is #GP, through the stack segment #SS.
    let event = machine(0x3000, |a| a.mov(ax, word_ptr(0xffff))).run(device).event();
    assert_eq!((event.vector, event.code, event.rip), (13, 0, 0));
    let event = machine(0x3000, |a| {
        a.mov(bp, 0xffffu32)?;
        a.mov(ax, word_ptr(bp))
    })
    .run(device)
    .event();
    assert_eq!((event.vector, event.code, event.rip), (12, 0, 3));
}

/// With CR4.VME and a clear bit in the redirection map, INT goes to the 8086 program's own handler.
fn vme(device: &Device) {
    let table = crate::vm::cpuid2(&device.fd, abi::KVM_GET_SUPPORTED_CPUID);
    if !table.iter().any(|e| e.function == 1 && e.edx & 2 != 0) {
        crate::runner::not_applicable("no VME");
    }
    let mut m = machine(0x3000, |a| {
        a.int(0x21)?;
        a.mov(cx, 0x77)?;
        a.int(0x80)
    });
    m.cr4 |= cr4::VME;
    // The program's handler; the vectors at 0 must be the user's to read.
    m.assemble(16, CODE + 0x80, |a| {
        a.mov(bx, 0x2121)?;
        a.iret()?;
        Ok([])
    });
    m.image.write32(4 * 0x21, u32::from(SEGMENT) << 16 | 0x80);
    m.change(0, 1, 0, x86::paging::U);
    // The redirection map lies before the I/O map: bit 0x21 clear, bit 0x80 set.
    let mut redirection = [0u8; 32];
    redirection[0x10] = 1;
    m.image.write(TSS + 0x68, &redirection);
    m.image.write(TSS + 0x88, &[0xff; 9]);
    m.image.write32(TSS + 0x64, 0x88 << 16);
    m.descriptor(sel::TSS, descriptor(TSS as u32, 0x90, 0x8b, 0));
    let live = m.start(device);
    live.edit_sregs(|s| s.tr.limit = 0x90);
    live.vcpu.run_to_hlt();
    let regs = live.vcpu.regs();
    assert_eq!((regs.rbx as u16, regs.rcx as u16, live.vectors()), (0x2121, 0x77, vec![0x80]));
}
