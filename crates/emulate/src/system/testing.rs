//! Hand-built tables for the tests of system instructions: a GDT, an IDT, a TSS and stacks in flat memory.
use x86::{Attr, Cr0, Mode, Segment, Table};

use crate::{Res, step, testing::TestCpu};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const CODE: u64 = 0x4000;
pub const LDT: u64 = 0x5000;
pub const KERNEL_STACK: u64 = 0x7000;
pub const USER_STACK: u64 = 0x9000;
pub const HANDLER: u64 = 0xa000;
pub const MEMORY: usize = 0x10000;

/// Selectors of the GDT that [`legacy`] and [`long`] make. In long mode the code segments are 64-bit ones.
pub const KERNEL_CODE: u16 = 0x08;
pub const KERNEL_DATA: u16 = 0x10;
pub const USER_DATA: u16 = 0x18 | 3;
pub const USER_CODE: u16 = 0x20 | 3;
/// Conforming, level 0.
pub const CONFORMING: u16 = 0x28;
/// 32-bit code of level 3 in long mode, 16-bit code of level 0 else.
pub const OTHER_CODE: u16 = 0x30;
/// Kernel data that is not present.
pub const ABSENT: u16 = 0x38;
/// 16 bytes.
pub const TASK: u16 = 0x40;
/// Data of level 1.
pub const DATA1: u16 = 0x50;
/// Code of level 1.
pub const CODE1: u16 = 0x58;
/// Where tests put descriptors of their own.
pub const FREE: u16 = 0x60;

const P: u16 = Attr::P | Attr::S;

pub fn descriptor(base: u64, limit: u32, attr: u16) -> u64 {
    Segment { selector: 0, attr: Attr(attr), limit, base }.to_descriptor()
}

pub fn flat(typ: u16, dpl: u8, size: u16) -> u64 {
    descriptor(0, u32::MAX, Attr(P | Attr::G | size | typ).with_dpl(dpl).0)
}

pub fn gate(typ: u16, selector: u16, offset: u64, dpl: u16, extra: u64) -> u64 {
    offset & 0xffff
        | (selector as u64) << 16
        | extra << 32
        | ((Attr::P | dpl << 5 | typ) as u64) << 40
        | (offset >> 16 & 0xffff) << 48
}

pub fn set_gdt(cpu: &mut TestCpu, selector: u16, value: u64) {
    cpu.write(GDT + (selector & 0xfff8) as u64, &value.to_le_bytes());
}

pub fn set_idt(cpu: &mut TestCpu, vector: u64, value: u64) {
    cpu.write(IDT + vector * 8, &value.to_le_bytes());
}

pub fn set_idt64(cpu: &mut TestCpu, vector: u64, low: u64, high: u64) {
    cpu.write(IDT + vector * 16, &low.to_le_bytes());
    cpu.write(IDT + vector * 16 + 8, &high.to_le_bytes());
}

/// Loads the segment register `n` from the descriptor of `selector`, unchecked.
pub fn load_register(cpu: &mut TestCpu, n: usize, selector: u16) {
    let raw: u64 = cpu.peek(GDT + (selector & 0xfff8) as u64);
    cpu.state.seg[n] = Segment::from_descriptor(selector, raw);
}

fn common(mut cpu: TestCpu, cpl: u8, code_size: u16) -> TestCpu {
    let db = Attr::DB;
    set_gdt(&mut cpu, KERNEL_CODE, flat(11, 0, code_size));
    set_gdt(&mut cpu, KERNEL_DATA, flat(3, 0, db));
    set_gdt(&mut cpu, USER_DATA, flat(3, 3, db));
    set_gdt(&mut cpu, USER_CODE, flat(11, 3, code_size));
    set_gdt(&mut cpu, CONFORMING, flat(15, 0, code_size));
    set_gdt(&mut cpu, ABSENT, flat(3, 0, db) & !(1 << 47));
    set_gdt(&mut cpu, DATA1, flat(3, 1, db));
    set_gdt(&mut cpu, CODE1, flat(11, 1, code_size));
    cpu.state.gdtr = Table { base: GDT, limit: 0xff };
    cpu.state.idtr = Table { base: IDT, limit: 0xfff };
    let (code, data, stack) = match cpl {
        0 => (KERNEL_CODE, KERNEL_DATA, KERNEL_STACK),
        1 => (CODE1 | 1, DATA1 | 1, KERNEL_STACK),
        _ => (USER_CODE, USER_DATA, USER_STACK),
    };
    for n in 0..6 {
        load_register(&mut cpu, n, if n == 1 { code } else { data });
    }
    cpu.state.gpr[4] = stack;
    cpu.state.flags.set(0);
    cpu.state.rip = CODE;
    // No I/O permission bitmap: it would begin behind the limit.
    cpu.write(TSS + 102, &0x68u16.to_le_bytes());
    cpu.state.refresh();
    assert_eq!(cpu.state.cpl, cpl);
    cpu
}

/// Long mode: RSP0 is [`KERNEL_STACK`], the first interrupt stack 0x800 below it.
pub fn long(cpl: u8) -> TestCpu {
    let mut cpu = common(TestCpu::in_mode(Mode::Long64, cpl, MEMORY), cpl, Attr::L);
    set_gdt(&mut cpu, OTHER_CODE, flat(11, 3, Attr::DB));
    cpu.write(TSS + 4, &KERNEL_STACK.to_le_bytes());
    cpu.write(TSS + 36, &(KERNEL_STACK - 0x800).to_le_bytes());
    set_gdt(&mut cpu, TASK, descriptor(TSS, 0x67, Attr::P | 11));
    load_register(&mut cpu, 0, KERNEL_DATA);
    cpu.state.tr = Segment::from_descriptor(TASK, cpu.peek(GDT + TASK as u64));
    load_register(&mut cpu, 0, USER_DATA);
    cpu
}

/// 32-bit protected mode without paging: SS0:ESP0 is [`KERNEL_STACK`], SS1:ESP1 0x800 below it.
pub fn legacy(cpl: u8) -> TestCpu {
    let mut cpu = common(TestCpu::in_mode(Mode::Protected32, cpl, MEMORY), cpl, Attr::DB);
    set_gdt(&mut cpu, OTHER_CODE, flat(11, 0, 0));
    cpu.write(TSS + 4, &(KERNEL_STACK as u32).to_le_bytes());
    cpu.write(TSS + 8, &KERNEL_DATA.to_le_bytes());
    cpu.write(TSS + 12, &(KERNEL_STACK as u32 - 0x800).to_le_bytes());
    cpu.write(TSS + 16, &(DATA1 | 1).to_le_bytes());
    set_gdt(&mut cpu, TASK, descriptor(TSS, 0x67, Attr::P | 11));
    cpu.state.tr = Segment::from_descriptor(TASK, cpu.peek(GDT + TASK as u64));
    cpu
}

/// Virtual-8086 mode under the tables of [`legacy`]: CS and SS are 0x100, so code and stack lie in the first 70 KiB.
pub fn v86(iopl: u64) -> TestCpu {
    let mut cpu = legacy(0);
    cpu.state.flags.set(x86::flags::VM | iopl << 12);
    cpu.state.seg = [Segment::real(0x100, 3); 6];
    cpu.state.rip = CODE - 0x1000;
    cpu.state.gpr[4] = USER_STACK - 0x1000;
    cpu.state.refresh();
    assert_eq!(cpu.state.mode, Mode::Virtual8086);
    cpu
}

/// Real mode with code at [`CODE`] and stack at [`USER_STACK`], all segments 0, interrupt vectors at 0.
pub fn real() -> TestCpu {
    let mut cpu = TestCpu::in_mode(Mode::Real, 0, MEMORY);
    cpu.state.cr0 &= !Cr0::PE.bits();
    cpu.state.rip = CODE;
    cpu.state.gpr[4] = USER_STACK;
    cpu.state.flags.set(0);
    cpu.state.idtr = Table { base: 0, limit: 0x3ff };
    cpu
}

/// Executes the instruction `bytes`, which is put at CS:RIP.
pub fn run(cpu: &mut TestCpu, bytes: &[u8]) -> Res {
    let base = if cpu.state.mode == Mode::Long64 { 0 } else { cpu.state.seg[1].base };
    cpu.write(base.wrapping_add(cpu.state.rip), bytes);
    step(cpu)
}

/// Executes `bytes`, which must stop, and checks that no register has changed.
pub fn stops(cpu: &mut TestCpu, bytes: &[u8]) -> crate::Stop {
    let before = std::format!("{:?}", cpu.state);
    let stop = run(cpu, bytes).expect_err("it should not succeed");
    assert_eq!(before, std::format!("{:?}", cpu.state), "registers changed");
    stop
}
