//! Hypercalls.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::Device,
    runner::{Case, case},
    vm::{CODE, Exit, RealMode, cpuid2},
};

pub(super) const CASES: &[Case] = &[
    case("unknown-ones-are-refused", "A18", unknown),
    case("registers-survive", "A18", registers),
    case("either-vendors-instruction", "A18", either_instruction),
    case("in-real-mode", "A18", real_mode),
    case("poll-irq-is-nothing", "A18", poll),
    case("not-from-level-3", "A18", privileged),
    case("page-of-2007", "A18 A05", of_2007).dropped("2007's hypercall page"),
    case("page-of-2007-that-is-not-good", "A18", of_2007_bad).dropped("2007's hypercall page"),
];

const ENOSYS: u64 = -KVM_ENOSYS as u64;

/// A loop of VMMCALL and HLT in 64-bit mode, where a processor without the instruction leaves it to the hypervisor.
fn machine(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| a.hlt());
    machine.go_long(device, CODE, |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.vmmcall()?;
        a.hlt()?;
        a.jmp(start)
    });
    machine
}

fn unknown(device: &Device) {
    let machine = machine(device);
    for nr in [0, 2, 77, 0xffff_ffff] {
        machine.vcpu.edit_regs(|r| r.rax = nr);
        machine.vcpu.run_to_hlt();
        assert_eq!(machine.vcpu.regs().rax, ENOSYS, "hypercall {nr}");
    }
}

fn registers(device: &Device) {
    let machine = machine(device);
    machine.vcpu.edit_regs(|r| {
        (r.rax, r.rbx, r.rcx, r.rdx) = (99, 0x1111_1111, 0x2222_2222, 0x3333_3333);
        (r.rsi, r.rdi, r.rbp) = (0x4444_4444, 0x5555_5555, 0x6666_6666);
    });
    let before = machine.vcpu.regs();
    machine.vcpu.run_to_hlt();
    let after = machine.vcpu.regs();
    assert_eq!(after, KvmRegs { rax: ENOSYS, rip: CODE + 4, ..before });
}

const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

fn either_instruction(device: &Device) {
    // The one that the processor does not have is mended by the hypervisor.
    for bytes in [VMCALL, VMMCALL] {
        let machine = RealMode::new(device, |a| a.hlt());
        machine.go_long(device, CODE, |a| {
            a.db(&bytes)?;
            a.hlt()
        });
        machine.vcpu.edit_regs(|r| r.rax = 99);
        machine.vcpu.run_to_hlt();
        assert_eq!((machine.vcpu.regs().rax, machine.vcpu.regs().rip), (ENOSYS, CODE + 4), "{bytes:x?}");
    }
}

fn real_mode(device: &Device) {
    // Only the processor's own: Linux on Intel's answers VMMCALL with #UD outside of protected mode.
    let intel = cpuid2(&device.fd, KVM_GET_SUPPORTED_CPUID)
        .iter()
        .any(|entry| entry.function == 0 && entry.ebx.to_le_bytes() == *b"Genu");
    let machine = RealMode::new(device, |a| {
        a.db(&if intel { VMCALL } else { VMMCALL })?;
        a.hlt()
    });
    machine.vcpu.support_all(device);
    machine.vcpu.edit_regs(|r| r.rax = 99);
    machine.vcpu.run_to_hlt();
    // Outside of 64-bit mode the answer is 32 bits wide.
    assert_eq!((machine.vcpu.regs().rax, machine.vcpu.regs().rip), (ENOSYS & 0xffff_ffff, CODE + 4));
}

fn poll(device: &Device) {
    let machine = machine(device);
    machine.vcpu.edit_regs(|r| r.rax = 1);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rax, 0);
}

fn privileged(device: &Device) {
    let machine = RealMode::new(device, |a| a.hlt());
    machine.go_long(device, CODE, |a| {
        a.vmmcall()?;
        // HLT is not for level 3: a store to a device tells the end.
        a.mov(dword_ptr(0x2_0000), eax)
    });
    // Level 3 by the segments; its pages have to be the user's.
    for (at, entry) in [(0x4000, 0x5007), (0x5000, 0x6007), (0x6000, 0x87)] {
        machine.memory.set_u64(at, entry);
    }
    machine.vcpu.edit_sregs(|s| {
        (s.cs.dpl, s.cs.selector) = (3, 11);
        for segment in [&mut s.ss, &mut s.ds, &mut s.es] {
            (segment.dpl, segment.selector) = (3, 19);
        }
    });
    machine.vcpu.edit_regs(|r| r.rax = 1);
    assert_eq!(machine.vcpu.run(), Exit::write(0x2_0000, &(-KVM_EPERM as u32).to_le_bytes()));
}

/// Announces the page at 0x2000, whose hypercall instruction is to be written to 0x2800, and halts; then calls it.
fn machine_2007(device: &Device, para: &KvmVcpuPara) -> RealMode {
    let machine = RealMode::new(device, |a| {
        a.mov(ecx, MSR_KVM_API_MAGIC)?;
        a.mov(eax, 0x2000)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.hlt()?;
        a.mov(ebx, 42)?;
        a.mov(eax, 1)?;
        a.mov(ecx, 2)?;
        a.mov(edx, 3)?;
        a.mov(di, 0x2800)?;
        a.call(di)?;
        a.hlt()
    });
    machine.vcpu.support_all(device);
    machine.memory.set_pod(0x2000, para);
    // Where the MSR is not known.
    machine.set_vector(13, 0x3000);
    machine.put_code(0x3000, |a| a.hlt());
    machine.vcpu.run_to_hlt();
    machine
}

fn of_2007(device: &Device) {
    let para = KvmVcpuPara { guest_version: 1, size: 4096, ret: 77, hypercall_gpa: 0x2800, ..KvmVcpuPara::default() };
    let machine = machine_2007(device, &para);
    let answer: KvmVcpuPara = machine.memory.pod(0x2000);
    assert_eq!((answer.host_version, answer.ret), (1, 0));
    // The processor's hypercall instruction and a return.
    assert_eq!((machine.memory.read(0x2800, 2), machine.memory.u8(0x2803)), (vec![0x0f, 0x01], 0xc3));
    machine.vcpu.edit_regs(|r| (r.rsi, r.rbp) = (4, 6));
    assert!(matches!(machine.vcpu.run(), Exit::Hypercall(_)));
    let mut call: KvmRunHypercall2007 = machine.vcpu.page.payload();
    assert_eq!((&call.args[..4], call.args[5], call.longmode), (&[1u64, 2, 3, 4][..], 6, 0));
    call.ret = 0x1234;
    machine.vcpu.page.set_payload(&call);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rax, 0x1234);
}

fn of_2007_bad(device: &Device) {
    let para = KvmVcpuPara { guest_version: 0, hypercall_gpa: 0x2800, ..KvmVcpuPara::default() };
    let machine = machine_2007(device, &para);
    let answer: KvmVcpuPara = machine.memory.pod(0x2000);
    assert_eq!(answer.host_version, 1);
    assert_ne!(answer.ret, 0);
    assert_eq!(machine.memory.read(0x2800, 4), [0; 4]);
}
