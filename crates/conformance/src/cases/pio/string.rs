//! INS and OUTS. How many items an exit carries is the hypervisor's choice; their order is not.
use iced_x86::code_asm::*;

use crate::{
    device::Device,
    vm::{Exit, RealMode, Vcpu, at},
};

/// Runs until HLT and collects what OUTS wrote to `port` in items of `size` bytes.
fn collect(vcpu: &Vcpu, port: u16, size: u8) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match vcpu.run() {
            Exit::Out { port: p, size: s, data } if (p, s) == (port, size) => all.extend(data),
            Exit::Hlt => return all,
            other => panic!("{other:?}"),
        }
    }
}

/// Runs until another exit, serving INS from `port` with `source`. Items served.
fn serve(vcpu: &Vcpu, port: u16, size: u8, mut source: impl FnMut(usize) -> u8) -> (usize, Exit) {
    let mut bytes = 0;
    loop {
        match vcpu.run() {
            Exit::In { port: p, size: s, count } if (p, s) == (port, size) => {
                let n = count as usize * usize::from(size);
                vcpu.answer(&(bytes..bytes + n).map(&mut source).collect::<Vec<_>>());
                bytes += n;
            }
            other => return (bytes / usize::from(size), other),
        }
    }
}

pub(super) fn outs(device: &Device) {
    for (size, text) in [(1u8, "byte"), (2, "word"), (4, "doubleword")] {
        let machine = RealMode::new(device, |a| {
            match size {
                1 => a.rep().outsb(),
                2 => a.rep().outsw(),
                _ => a.rep().outsd(),
            }?;
            a.hlt()
        });
        let data: Vec<u8> = (0..7 * size).map(|i| i * 3 + 1).collect();
        machine.memory.write(0x4001, &data);
        machine.vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdx) = (7, 0x4001, 0x3f8));
        assert_eq!(collect(&machine.vcpu, 0x3f8, size), data, "{text}");
        let regs = machine.vcpu.regs();
        assert_eq!((regs.rcx, regs.rsi), (0, 0x4001 + 7 * u64::from(size)), "{text}");
    }
}

pub(super) fn ins(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().insb()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| (r.rcx, r.rdi, r.rdx) = (100, 0x4001, 0x60));
    assert_eq!(serve(vcpu, 0x60, 1, |i| i as u8 ^ 0x55), (100, Exit::Hlt));
    let regs = vcpu.regs();
    assert_eq!((regs.rcx, regs.rdi), (0, 0x4065));
    assert_eq!(machine.memory.read(0x4001, 100), (0..100).map(|i| i ^ 0x55).collect::<Vec<u8>>());
    assert_eq!((machine.memory.u8(0x4000), machine.memory.u8(0x4065)), (0, 0));
}

pub(super) fn ins_wide(device: &Device) {
    for size in [2u8, 4] {
        let machine = RealMode::new(device, |a| {
            if size == 2 { a.rep().insw() } else { a.rep().insd() }?;
            a.hlt()
        });
        let vcpu = &machine.vcpu;
        vcpu.edit_regs(|r| (r.rcx, r.rdi, r.rdx) = (5, 0x4003, 0x1f0));
        assert_eq!(serve(vcpu, 0x1f0, size, |i| i as u8 + 1), (5, Exit::Hlt));
        assert_eq!(machine.memory.read(0x4003, 5 * size as usize), (1..=5 * size).collect::<Vec<_>>());
        assert_eq!(machine.memory.u32(0x4003 + 5 * size as usize), 0);
    }
}

pub(super) fn downwards(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.std()?;
        a.rep().outsw()?;
        a.mov(ecx, 3)?;
        a.rep().insb()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    machine.memory.write(0x4000, &[1, 2, 3, 4, 5, 6]);
    vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdi, r.rdx) = (3, 0x4004, 0x5002, 0x70));
    let mut out = Vec::new();
    let mut input = Vec::new();
    loop {
        match vcpu.run() {
            Exit::Out { data, .. } => out.extend(data),
            Exit::In { count, .. } => {
                let data: Vec<u8> = (0..count as usize).map(|i| 0x10 + (input.len() + i) as u8).collect();
                vcpu.answer(&data);
                input.extend(data);
            }
            Exit::Hlt => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(out, [5, 6, 3, 4, 1, 2]);
    assert_eq!(machine.memory.read(0x5000, 4), [0x12, 0x11, 0x10, 0]);
    let regs = vcpu.regs();
    assert_eq!((regs.rsi, regs.rdi), (0x3ffe, 0x4fff));
}

pub(super) fn no_items(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().insb()?;
        a.rep().outsd()?;
        a.hlt()
    });
    machine.vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdi) = (0, 0x4000, 0x5000));
    machine.vcpu.run_to_hlt();
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rsi, regs.rdi), (0x4000, 0x5000));
}

pub(super) fn long_outs(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().outsw()?;
        a.hlt()
    });
    let data: Vec<u8> = (0..0x5000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
    // Words that straddle each page boundary.
    machine.memory.write(0x9001, &data);
    machine.vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdx) = (0x2800, 0x9001, 0x80));
    assert!(collect(&machine.vcpu, 0x80, 2) == data, "the items are not those in memory");
}

pub(super) fn long_ins(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().insd()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    let value = |i: usize| (i * 11 + (i >> 8)) as u8;
    vcpu.edit_regs(|r| (r.rcx, r.rdi, r.rdx) = (0x1400, 0x9002, 0x1f0));
    assert_eq!(serve(vcpu, 0x1f0, 4, value), (0x1400, Exit::Hlt));
    assert!(machine.memory.read(0x9002, 0x5000) == (0..0x5000).map(value).collect::<Vec<_>>(), "other items in memory");
}

/// A string with 32-bit addresses that runs into the segment limit after eight bytes, with a handler for #GP.
fn limited(device: &Device, input: bool) -> RealMode {
    let machine = RealMode::new(device, |a| {
        // The address-size prefix, F3, INSB or OUTSB: the assembler has no name for 32-bit addresses in real mode.
        a.db(&[0x67, 0xf3, if input { 0x6c } else { 0x6e }])?;
        a.hlt()
    });
    machine.set_vector(13, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(bx, 0x1234u32)?;
        a.hlt()
    });
    machine.vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdi, r.rdx) = (20, 0xfff8, 0xfff8, 0x60));
    machine
}

pub(super) fn ins_limit(device: &Device) {
    let machine = limited(device, true);
    // How many items are asked for is not: Linux reads some that it cannot store.
    assert_eq!(serve(&machine.vcpu, 0x60, 1, |i| i as u8 + 1).1, Exit::Hlt);
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rbx, regs.rcx, regs.rdi), (0x1234, 12, 0x1_0000));
    assert_eq!(machine.memory.read(0xfff8, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    // The fault's return address is the string instruction's.
    assert_eq!(machine.memory.u16(0x7ffa), 0x1000);
}

pub(super) fn outs_limit(device: &Device) {
    let machine = limited(device, false);
    machine.memory.write(0xfff8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(collect(&machine.vcpu, 0x60, 1), [1, 2, 3, 4, 5, 6, 7, 8]);
    let regs = machine.vcpu.regs();
    assert_eq!((regs.rbx, regs.rcx, regs.rsi), (0x1234, 12, 0x1_0000));
}

pub(super) fn outs_from_device(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().outsb()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdx) = (3, 0, 0x60));
    for i in 0..3 {
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000 + i, len: 1 });
        vcpu.answer(&[i as u8 + 7]);
        assert_eq!(vcpu.run(), Exit::out8(0x60, i as u8 + 7));
    }
    vcpu.run_to_hlt();
}

pub(super) fn ins_into_device(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.insw()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.es, 0x20000));
    vcpu.edit_regs(|r| (r.rdi, r.rdx) = (8, 0x60));
    assert_eq!(vcpu.run(), Exit::input(0x60, 2));
    vcpu.answer(&[7, 8]);
    assert_eq!(vcpu.run(), Exit::write(0x20008, &[7, 8]));
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rdi, 10);
}

pub(super) fn outs_split(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.outsw()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    machine.memory.set_u8(0xffff, 0x11);
    vcpu.edit_sregs(|s| at(&mut s.ds, 0xf000));
    vcpu.edit_regs(|r| (r.rsi, r.rdx) = (0xfff, 0x60));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x10000, len: 1 });
    vcpu.answer(&[0x22]);
    assert_eq!(vcpu.run(), Exit::Out { port: 0x60, size: 2, data: vec![0x11, 0x22] });
    vcpu.run_to_hlt();
}

pub(super) fn ins_split(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.insw()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.es, 0xf000));
    vcpu.edit_regs(|r| (r.rdi, r.rdx) = (0xfff, 0x60));
    assert_eq!(vcpu.run(), Exit::input(0x60, 2));
    vcpu.answer(&[0x33, 0x44]);
    assert_eq!(vcpu.run(), Exit::write(0x10000, &[0x44]));
    vcpu.run_to_hlt();
    assert_eq!(machine.memory.u8(0xffff), 0x33);
}
