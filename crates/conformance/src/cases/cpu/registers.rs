//! What a new processor's registers hold (SDM vol. 3, table 9-1; rows C11, A10).
use abi::*;

use crate::{
    Device,
    runner::{Case, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("general-registers", "C11", general),
    case("segments", "C11", segments),
    case("control-registers-and-tables", "C11", control),
    case("debug-registers", "C11", debug),
    case("x87-and-sse", "C11 C06", fpu),
    case("mxcsr-and-xcr0", "C11 C06", xcr0),
    case("model-specific-registers", "C11 C10", msrs),
    case("the-first-instruction", "C11", first_instruction),
    case("a-second-processor-waits", "C11 D01", second),
];

fn general(device: &Device) {
    let regs = device.vm().vcpu(0).regs();
    let rest = [
        regs.rax, regs.rbx, regs.rcx, regs.rsi, regs.rdi, regs.rsp, regs.rbp, regs.r8, regs.r9, regs.r10, regs.r11,
        regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    assert_eq!(rest, [0; 15]);
    assert_eq!((regs.rip, regs.rflags), (0xfff0, 2));
    // RDX holds the processor's signature; without a CPUID table that of a P6.
    assert_eq!(regs.rdx & !0x0fff_3fff, 0);
    assert_ne!(regs.rdx, 0);
}

fn segments(device: &Device) {
    let s = device.vm().vcpu(0).sregs();
    assert_eq!((s.cs.selector, s.cs.base, s.cs.limit), (0xf000, 0xffff_0000, 0xffff));
    // kvm-amd shows them without the accessed bit.
    assert_eq!((s.cs.type_ | 1, s.cs.s, s.cs.present, s.cs.dpl, s.cs.db, s.cs.l), (11, 1, 1, 0, 0, 0));
    for segment in [s.ds, s.es, s.fs, s.gs, s.ss] {
        assert_eq!((segment.selector, segment.base, segment.limit), (0, 0, 0xffff));
        assert_eq!((segment.type_ | 1, segment.s, segment.present, segment.unusable), (3, 1, 1, 0));
    }
    assert_eq!((s.tr.selector, s.tr.base, s.tr.limit, s.tr.present), (0, 0, 0xffff, 1));
    assert_eq!((s.ldt.selector, s.ldt.base, s.ldt.limit, s.ldt.type_), (0, 0, 0xffff, 2));
}

fn control(device: &Device) {
    let s = device.vm().vcpu(0).sregs();
    assert_eq!((s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer), (0x6000_0010, 0, 0, 0, 0, 0));
    assert_eq!((s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit), (0, 0xffff, 0, 0xffff));
    assert_eq!((s.apic_base, s.interrupt_bitmap), (0xfee0_0900, [0; 4]));
}

fn debug(device: &Device) {
    let debug: KvmDebugregs = device.vm().vcpu(0).fd.get(KVM_GET_DEBUGREGS).expect("KVM_GET_DEBUGREGS");
    assert_eq!((debug.db, debug.dr6, debug.dr7), ([0; 4], 0xffff_0ff0, 0x400));
}

fn fpu(device: &Device) {
    let fpu: KvmFpu = device.vm().vcpu(0).fd.get(KVM_GET_FPU).expect("KVM_GET_FPU");
    // As FNINIT leaves it: a vCPU is no processor that was just switched on.
    assert_eq!((fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_ip, fpu.last_dp), (0x37f, 0, 0, 0, 0));
}

fn xcr0(device: &Device) {
    let vcpu = device.vm().vcpu(0);
    let fpu: KvmFpu = vcpu.fd.get(KVM_GET_FPU).expect("KVM_GET_FPU");
    assert_eq!((fpu.fsw, fpu.xmm), (0, [[0; 16]; 16]));
    if device.cap(KVM_CAP_XSAVE) != 0 {
        let area: KvmXsave = vcpu.fd.get(KVM_GET_XSAVE).expect("KVM_GET_XSAVE");
        assert_eq!(area.region[6], 0x1f80, "MXCSR");
    }
    if device.cap(KVM_CAP_XCRS) != 0 {
        let xcrs: KvmXcrs = vcpu.fd.get(KVM_GET_XCRS).expect("KVM_GET_XCRS");
        let all = &xcrs.xcrs[..xcrs.nr_xcrs as usize];
        assert!(all.iter().all(|x| x.xcr != 0 || x.value == 1), "XCR0 is 1");
    }
}

fn msrs(device: &Device) {
    let vcpu = device.vm().vcpu(0);
    for (index, value) in [
        (0x174, 0),
        (0x175, 0),
        (0x176, 0),
        (0x277, 0x0007_0406_0007_0406),
        (0xc000_0080, 0),
        (0xc000_0081, 0),
        (0xc000_0102, 0),
        (0x17a, 0),
    ] {
        assert_eq!(vcpu.msr(index), Some(value), "{index:#x}");
    }
}

/// It is fetched at 0xfffffff0, and a far jump goes below.
fn first_instruction(device: &Device) {
    let vm = device.vm();
    let rom = vm.memory(0, 0xffff_0000, 0x1_0000);
    let low = vm.memory(1, 0, 0x1000);
    rom.write(0xfff0, &[0xea, 0x00, 0x05, 0x00, 0x00]); // jmp 0:0x500
    low.write(0x500, &[0x8c, 0xc8, 0xb3, 7, 0xf4]); // mov ax, cs; mov bl, 7; hlt
    let vcpu = vm.vcpu(0);
    vcpu.run_to_hlt();
    let (regs, s) = (vcpu.regs(), vcpu.sregs());
    assert_eq!((regs.rax, regs.rbx, regs.rip, s.cs.base, s.cs.limit), (0, 7, 0x505, 0, 0xffff));
}

fn second(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    let (first, second) = (vm.vcpu(0), vm.vcpu(1));
    assert_eq!((first.mp_state(), second.mp_state()), (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED));
    assert_eq!((first.sregs().apic_base, second.sregs().apic_base), (0xfee0_0900, 0xfee0_0800), "BSP");
}
