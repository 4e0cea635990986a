//! KVM_GET_REGS, KVM_GET_SREGS and their likes.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno},
    vm::{CODE, RealMode},
};

fn halt(device: &Device) -> RealMode {
    RealMode::new(device, |a| a.hlt())
}

pub(super) fn general(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.xchg(eax, ebx)?;
        a.hlt()
    });
    let mut regs = KvmRegs::default();
    for (n, chunk) in regs.bytes_mut().chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&(0x1234_5678_0000_0000 + 0x0101_0101 * n as u64).to_le_bytes());
    }
    (regs.rip, regs.rflags) = (CODE, 0x0ed7 & !0x300);
    machine.vcpu.set_regs(&regs);
    assert_eq!(machine.vcpu.regs(), regs);
    machine.vcpu.run_to_hlt();
    // A 32-bit operand clears the upper half; everything else is as it was.
    let expected = KvmRegs { rax: regs.rbx & 0xffff_ffff, rbx: regs.rax & 0xffff_ffff, rip: CODE + 4, ..regs };
    let mut after = machine.vcpu.regs();
    // Outside of 64-bit mode the upper halves are nobody's.
    (after.rax, after.rbx) = (after.rax & 0xffff_ffff, after.rbx & 0xffff_ffff);
    assert_eq!(after, expected);
}

pub(super) fn rflags(device: &Device) {
    let machine = halt(device);
    machine.vcpu.edit_regs(|r| r.rflags = 0);
    assert_eq!(machine.vcpu.regs().rflags & 2, 2);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rflags & !0x1_0000, 2);
}

pub(super) fn system(device: &Device) {
    let vcpu = halt(device).vcpu;
    let mut sregs = vcpu.sregs();
    sregs.cr2 = 0x1234_5678_9abc;
    sregs.cr3 = 0x5000;
    sregs.cr8 = 5;
    sregs.gdt = KvmDtable { base: 0x6000, limit: 0x77, ..KvmDtable::default() };
    sregs.idt = KvmDtable { base: 0x100, limit: 0x2ff, ..KvmDtable::default() };
    vcpu.set_sregs(&sregs);
    assert_eq!(vcpu.sregs(), sregs);
}

pub(super) fn segments(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(ax, fs)?;
        a.mov(bl, byte_ptr(0x10).fs())?;
        a.hlt()
    });
    machine.memory.set_u8(0x4010, 0x66);
    machine.vcpu.edit_sregs(|s| (s.fs.selector, s.fs.base) = (0x400, 0x4000));
    let before = machine.vcpu.sregs();
    machine.vcpu.run_to_hlt();
    let (regs, sregs) = (machine.vcpu.regs(), machine.vcpu.sregs());
    assert_eq!((regs.rax & 0xffff, regs.rbx & 0xff), (0x400, 0x66));
    for (after, before) in [(sregs.fs, before.fs), (sregs.ds, before.ds), (sregs.cs, before.cs)] {
        assert_eq!((after.base, after.limit, after.selector), (before.base, before.limit, before.selector));
    }
}

pub(super) fn control_current(device: &Device) {
    let machine = RealMode::new(device, |a| {
        // CR0.EM, CR4.DE, CR2, CR3
        a.mov(eax, cr0)?;
        a.or(eax, 4)?;
        a.mov(cr0, eax)?;
        a.mov(eax, 8)?;
        a.mov(cr4, eax)?;
        a.mov(eax, 0x1234_5000)?;
        a.mov(cr2, eax)?;
        a.mov(cr3, eax)?;
        a.hlt()?;
        a.mov(eax, cr0)?;
        a.and(eax, !4)?;
        a.mov(cr0, eax)?;
        a.mov(ebx, cr0)?;
        a.hlt()
    });
    machine.vcpu.support_all(device);
    let start = machine.vcpu.sregs().cr0;
    machine.vcpu.run_to_hlt();
    let sregs = machine.vcpu.sregs();
    assert_eq!((sregs.cr0, sregs.cr4, sregs.cr2, sregs.cr3), (start | 4, 8, 0x1234_5000, 0x1234_5000));
    machine.vcpu.run_to_hlt();
    let (regs, sregs) = (machine.vcpu.regs(), machine.vcpu.sregs());
    assert_eq!((sregs.cr0, regs.rbx), (start & !4, start & !4));
}

pub(super) fn impossible(device: &Device) {
    let vcpu = halt(device).vcpu;
    vcpu.support_all(device);
    let good = vcpu.sregs();
    type Edit = fn(&mut KvmSregs);
    let edits: [(&str, Edit); 6] = [
        ("NW without CD", |s| s.cr0 = 1 << 29 | 0x10),
        ("paging without protection", |s| s.cr0 = 1 << 31 | 0x10),
        ("upper half of CR0", |s| s.cr0 |= 1 << 40),
        ("reserved bit of CR4", |s| s.cr4 |= 1 << 31),
        ("long mode active without paging", |s| s.efer = 0x500),
        ("long mode without PAE", |s| (s.cr0, s.cr4, s.efer) = (0x8000_0011, 0, 0x500)),
    ];
    for (what, edit) in edits {
        let mut sregs = good;
        edit(&mut sregs);
        assert_eq!(vcpu.fd.put(KVM_SET_SREGS, &sregs), Err(Errno::EINVAL), "{what}");
        assert_eq!(vcpu.sregs(), good, "{what}: something was changed");
    }
    vcpu.run_to_hlt();
}

pub(super) fn reset(device: &Device) {
    let vcpu = device.vm().vcpu(0);
    let (regs, s) = (vcpu.regs(), vcpu.sregs());
    // SDM vol. 3, 10.1.1, table 10-1.
    assert_eq!((regs.rip, regs.rflags, regs.rax, regs.rsp), (0xfff0, 2, 0, 0));
    assert_eq!((s.cs.selector, s.cs.base, s.cs.limit), (0xf000, 0xffff_0000, 0xffff));
    for segment in [s.ds, s.es, s.fs, s.gs, s.ss] {
        assert_eq!((segment.selector, segment.base, segment.limit, segment.present), (0, 0, 0xffff, 1));
    }
    assert_eq!((s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit), (0, 0xffff, 0, 0xffff));
    assert_eq!((s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer), (0x6000_0010, 0, 0, 0, 0, 0));
    assert_eq!(s.apic_base & !0x800, 0xfee0_0100);
    // The second is no bootstrap processor.
    let vm = device.vm();
    let _first = vm.vcpu(0);
    assert_eq!(vm.vcpu(1).sregs().apic_base & !0x800, 0xfee0_0000);
}

pub(super) fn reset_fpu(device: &Device) {
    let vcpu = device.vm().vcpu(0);
    let fpu: KvmFpu = vcpu.fd.get(KVM_GET_FPU).expect("KVM_GET_FPU");
    // As after FNINIT, not as after a processor's RESET.
    assert_eq!((fpu.fcw, fpu.fsw, fpu.ftwx), (0x37f, 0, 0));
    assert_eq!((fpu.fpr, fpu.xmm), ([[0; 16]; 8], [[0; 16]; 16]));
}

pub(super) fn sregs2(device: &Device) {
    let machine = halt(device);
    let vcpu = &machine.vcpu;
    vcpu.support_all(device);
    let mut sregs: KvmSregs2 = vcpu.fd.get(KVM_GET_SREGS2).expect("KVM_GET_SREGS2");
    assert_eq!(sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID, 0);
    assert_eq!(sregs.cs, vcpu.sregs().cs);
    // PAE paging: the four entries are part of the state, wherever CR3 points.
    (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8000_0011, 0x5000, 0x20);
    (sregs.flags, sregs.pdptrs) = (KVM_SREGS2_FLAGS_PDPTRS_VALID, [0x6001, 0x7001, 0, 0x8001]);
    vcpu.fd.put(KVM_SET_SREGS2, &sregs).expect("KVM_SET_SREGS2");
    let back: KvmSregs2 = vcpu.fd.get(KVM_GET_SREGS2).expect("KVM_GET_SREGS2");
    assert_eq!((back.flags & 1, back.pdptrs), (1, sregs.pdptrs));
    sregs.flags = 1 << 63;
    assert_eq!(vcpu.fd.put(KVM_SET_SREGS2, &sregs), Err(Errno::EINVAL));
}
