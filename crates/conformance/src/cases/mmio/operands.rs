//! Operand shapes that read or write a device once.
use iced_x86::code_asm::*;

use super::string::at_devices;
use crate::{
    device::Device,
    vm::{Exit, RealMode, at},
};

pub(super) fn every_size(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(al, byte_ptr(0x10))?;
        a.mov(byte_ptr(bx + 1), al)?;
        a.mov(cx, word_ptr(bx + si + 2))?;
        a.mov(word_ptr(di + 3), cx)?;
        a.mov(edx, dword_ptr(bx + di + 5))?;
        a.mov(dword_ptr(si + 7), edx)?;
        a.mov(byte_ptr(0x30), 0x12)?;
        a.mov(word_ptr(0x32), 0x3456)?;
        a.mov(dword_ptr(0x34), 0x789a_bcdeu32)?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rbx, r.rsi, r.rdi) = (0x100, 0x20, 0x40));
    for (from, to, data) in [
        (0x20010, 0x20101, &[0x77u8][..]),
        (0x20122, 0x20043, &[0x34, 0x12]),
        (0x20145, 0x20027, &[0xef, 0xbe, 0xad, 0xde]),
    ] {
        assert_eq!(vcpu.run(), Exit::Read { gpa: from, len: data.len() as u32 });
        vcpu.answer(data);
        assert_eq!(vcpu.run(), Exit::write(to, data));
    }
    assert_eq!(vcpu.run(), Exit::write(0x20030, &[0x12]));
    assert_eq!(vcpu.run(), Exit::write(0x20032, &[0x56, 0x34]));
    assert_eq!(vcpu.run(), Exit::write(0x20034, &[0xde, 0xbc, 0x9a, 0x78]));
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rax & 0xff, regs.rcx & 0xffff, regs.rdx), (0x77, 0x1234, 0xdead_beef));
}

pub(super) fn extension(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.movzx(ax, byte_ptr(0))?;
        a.movsx(ecx, byte_ptr(1))?;
        a.movzx(edx, word_ptr(2))?;
        a.movsx(ebx, word_ptr(4))?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    for (offset, data) in [(0, &[0x80u8][..]), (1, &[0x80]), (2, &[0, 0x80]), (4, &[0, 0x80])] {
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000 + offset, len: data.len() as u32 });
        vcpu.answer(data);
    }
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rax & 0xffff, regs.rcx, regs.rdx, regs.rbx), (0x80, 0xffff_ff80, 0x8000, 0xffff_8000));
}

pub(super) fn moffs(device: &Device) {
    let machine = RealMode::new(device, |a| {
        // MOV EAX, moffs32 and MOV moffs32, EAX; the second with FS.
        a.db(&[0x66, 0xa1, 0x34, 0x12])?;
        a.db(&[0x64, 0x66, 0xa3, 0x78, 0x56])?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_sregs(|s| at(&mut s.fs, 0x40000));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x21234, len: 4 });
    vcpu.answer(&[1, 2, 3, 4]);
    assert_eq!(vcpu.run(), Exit::write(0x45678, &[1, 2, 3, 4]));
    vcpu.run_to_hlt();
}

pub(super) fn read_only(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.cmp(byte_ptr(0), 0x41)?;
        a.setz(bl)?;
        a.test(word_ptr(2), 0x8000u32)?;
        a.setnz(bh)?;
        a.bt(dword_ptr(4), 31)?;
        a.setb(cl)?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    for (gpa, data) in [(0x20000, &[0x41u8][..]), (0x20002, &[0, 0x80]), (0x20004, &[0, 0, 0, 0x80])] {
        assert_eq!(vcpu.run(), Exit::Read { gpa, len: data.len() as u32 });
        vcpu.answer(data);
    }
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rbx & 0xffff, regs.rcx & 0xff), (0x101, 1));
}

pub(super) fn push_pop(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.push(word_ptr(0))?;
        a.pop(word_ptr(2))?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000, len: 2 });
    vcpu.answer(&[0x21, 0x43]);
    assert_eq!(vcpu.run(), Exit::write(0x20002, &[0x21, 0x43]));
    vcpu.run_to_hlt();
    assert_eq!((machine.memory.u16(0x7ffe), vcpu.regs().rsp), (0x4321, 0x8000));
}

pub(super) fn stack(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.push(ax)?;
        a.pop(cx)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.ss, 0x50000));
    vcpu.edit_regs(|r| (r.rax, r.rsp) = (0x1234, 0x100));
    assert_eq!(vcpu.run(), Exit::write(0x500fe, &[0x34, 0x12]));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x500fe, len: 2 });
    vcpu.answer(&[0x78, 0x56]);
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rcx & 0xffff, regs.rsp), (0x5678, 0x100));
}

pub(super) fn far_call(device: &Device) {
    let machine = RealMode::new(device, |a| {
        // CALL FAR [0x10]
        a.db(&[0xff, 0x1e, 0x10, 0x00])?;
        a.nop()
    });
    machine.put_code(0x3000, |a| a.hlt());
    let vcpu = at_devices(&machine);
    // The pointer is four bytes; in how many accesses they are read is not promised.
    let pointer = [0x00u8, 0x10, 0x00, 0x02];
    loop {
        match vcpu.run() {
            Exit::Read { gpa, len } => {
                let from = (gpa - 0x20010) as usize;
                vcpu.answer(&pointer[from..from + len as usize]);
            }
            Exit::Hlt => break,
            other => panic!("{other:?}"),
        }
    }
    // 0x200:0x1000 is 0x3000.
    assert_eq!((vcpu.regs().rip, vcpu.sregs().cs.selector), (0x1001, 0x200));
    assert_eq!(machine.memory.u32(0x7ffc), 0x1004);
}

pub(super) fn sixteen_bytes(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.movdqu(xmm0, xmmword_ptr(0x10))?;
        a.movdqu(xmmword_ptr(0x40), xmm0)?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.support_all(device);
    vcpu.edit_sregs(|s| s.cr4 |= 1 << 9);
    let data: Vec<u8> = (1..17).collect();
    for half in 0..2 {
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20010 + 8 * half, len: 8 });
        vcpu.answer(&data[8 * half as usize..][..8]);
    }
    for half in 0..2 {
        assert_eq!(vcpu.run(), Exit::write(0x20040 + 8 * half, &data[8 * half as usize..][..8]));
    }
    vcpu.run_to_hlt();
}

pub(super) fn xlat_lods(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.xlatb()?;
        a.mov(bl, al)?;
        a.lodsd()?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rax, r.rbx, r.rsi) = (5, 0x100, 0x20));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20105, len: 1 });
    vcpu.answer(&[0x99]);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20020, len: 4 });
    vcpu.answer(&[1, 0, 0, 2]);
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rbx & 0xff, regs.rax, regs.rsi), (0x99, 0x0200_0001, 0x24));
}
