//! Read-modify-write of a device: one read, then one write.
use abi::KvmRegs;
use iced_x86::{IcedError, code_asm::*};

use super::string::at_devices;
use crate::{
    device::Device,
    vm::{Exit, RealMode},
};

/// Executes one instruction whose operand is the doubleword at 0x20010, which reads as `old` and must be written as `new`.
fn modify(
    device: &Device,
    prepare: impl FnOnce(&mut KvmRegs),
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    old: &[u8],
    new: &[u8],
) -> KvmRegs {
    let machine = RealMode::new(device, |a| {
        code(a)?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.support_all(device);
    vcpu.edit_regs(prepare);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20010, len: old.len() as u32 });
    vcpu.answer(old);
    assert_eq!(vcpu.run(), Exit::write(0x20010, new));
    vcpu.run_to_hlt();
    vcpu.regs()
}

const ZF: u64 = 1 << 6;
const CF: u64 = 1;

pub(super) fn add(device: &Device) {
    let code = |a: &mut CodeAssembler| a.add(dword_ptr(0x10), eax);
    let regs = modify(device, |r| r.rax = 2, code, &[0xfe, 0xff, 0xff, 0xff], &[0, 0, 0, 0]);
    assert_eq!(regs.rflags & (ZF | CF), ZF | CF);
}

pub(super) fn locked_add(device: &Device) {
    let code = |a: &mut CodeAssembler| a.lock().add(word_ptr(0x10), ax);
    let regs = modify(device, |r| r.rax = 0x101, code, &[0xff, 0x10], &[0x00, 0x12]);
    assert_eq!(regs.rflags & (ZF | CF), 0);
}

pub(super) fn unary(device: &Device) {
    modify(device, |_| (), |a| a.lock().inc(byte_ptr(0x10)), &[0x7f], &[0x80]);
    modify(device, |_| (), |a| a.not(dword_ptr(0x10)), &[0, 0xff, 0x0f, 1], &[0xff, 0, 0xf0, 0xfe]);
    modify(device, |_| (), |a| a.neg(word_ptr(0x10)), &[1, 0], &[0xff, 0xff]);
    let regs = modify(device, |_| (), |a| a.shl(byte_ptr(0x10), 3), &[0x21], &[0x08]);
    assert_eq!(regs.rflags & CF, CF);
    modify(device, |r| r.rcx = 4, |a| a.ror(word_ptr(0x10), cl), &[0x34, 0x12], &[0x23, 0x41]);
}

pub(super) fn xchg(device: &Device) {
    let code = |a: &mut CodeAssembler| a.xchg(dword_ptr(0x10), edx);
    let regs = modify(device, |r| r.rdx = 0x1122_3344, code, &[1, 2, 3, 4], &[0x44, 0x33, 0x22, 0x11]);
    assert_eq!(regs.rdx, 0x0403_0201);
}

pub(super) fn xadd(device: &Device) {
    let code = |a: &mut CodeAssembler| a.lock().xadd(dword_ptr(0x10), edx);
    let regs = modify(device, |r| r.rdx = 0x10, code, &[1, 2, 3, 4], &[0x11, 2, 3, 4]);
    assert_eq!(regs.rdx, 0x0403_0201);
}

pub(super) fn cmpxchg_equal(device: &Device) {
    let code = |a: &mut CodeAssembler| a.lock().cmpxchg(dword_ptr(0x10), ecx);
    let prepare = |r: &mut KvmRegs| (r.rax, r.rcx) = (0x0403_0201, 0x0807_0605);
    let regs = modify(device, prepare, code, &[1, 2, 3, 4], &[5, 6, 7, 8]);
    assert_eq!((regs.rflags & ZF, regs.rax), (ZF, 0x0403_0201));
}

pub(super) fn cmpxchg_other(device: &Device) {
    let code = |a: &mut CodeAssembler| a.cmpxchg(dword_ptr(0x10), ecx);
    let prepare = |r: &mut KvmRegs| (r.rax, r.rcx) = (0xffff_ffff, 0x0807_0605);
    // The destination is written in any case (SDM vol. 2, CMPXCHG), with what was read.
    let regs = modify(device, prepare, code, &[1, 2, 3, 4], &[1, 2, 3, 4]);
    assert_eq!((regs.rflags & ZF, regs.rax), (0, 0x0403_0201));
}

pub(super) fn cmpxchg8b(device: &Device) {
    let code = |a: &mut CodeAssembler| a.lock().cmpxchg8b(qword_ptr(0x10));
    let prepare = |r: &mut KvmRegs| (r.rax, r.rdx, r.rbx, r.rcx) = (0x0403_0201, 0x0807_0605, 0x1413_1211, 0x1817_1615);
    let new = [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18];
    let regs = modify(device, prepare, code, &[1, 2, 3, 4, 5, 6, 7, 8], &new);
    assert_eq!(regs.rflags & ZF, ZF);
}

pub(super) fn bts(device: &Device) {
    // Bit 0x83 of a word at 0 is bit 3 of the word at 0x10.
    let code = |a: &mut CodeAssembler| a.lock().bts(word_ptr(0), ax);
    let regs = modify(device, |r| r.rax = 0x83, code, &[0x10, 0], &[0x18, 0]);
    assert_eq!(regs.rflags & CF, 0);
    // A negative one goes the other way: bit -128 of a doubleword at 0x20.
    let code = |a: &mut CodeAssembler| a.btr(dword_ptr(0x20), eax);
    let regs = modify(device, |r| r.rax = -128i64 as u32 as u64, code, &[0xff, 0, 0, 0], &[0xfe, 0, 0, 0]);
    assert_eq!(regs.rflags & CF, CF);
}
