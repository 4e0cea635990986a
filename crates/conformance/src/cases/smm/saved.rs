//! The state save area.
use super::*;
use crate::vm::at;

pub(super) fn bits64(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    let vcpu = machine.vcpu();
    vcpu.support_all(device);
    vcpu.edit_sregs(|s| {
        at(&mut s.ds, 0x1230);
        (s.gdt.base, s.gdt.limit) = (0x5000, 0x27);
    });
    vcpu.edit_regs(|r| (r.rax, r.rbx, r.r15, r.rflags) = (0x1_2345_6789, 2, 15, 0x46));
    machine.smi();
    machine.run_to_out();
    let area = machine.smram.part(AREA, 0x200);
    assert_eq!((area.u32(0xfc), area.u32(0x100)), (0x2_0064, SMBASE as u32), "revision and SMBASE");
    assert_eq!((area.u64(0x1f8), area.u64(0x1e0), area.u64(0x180)), (0x1_2345_6789, 2, 15), "RAX, RBX, R15");
    assert_eq!((area.u64(0x178), area.u64(0x170)), (CODE, 0x46), "RIP, RFLAGS");
    let sregs_cr0 = area.u64(0x158);
    assert_eq!((sregs_cr0 & 1, area.u64(0x148), area.u64(0xd0)), (0, 0, 0), "CR0, CR4, EFER");
    assert_eq!((area.u32(0x168), area.u32(0x160)), (0xffff_0ff0, 0x400), "DR6, DR7");
    assert_eq!((area.u16(0x30), area.u32(0x34), area.u64(0x38)), (0x123, 0xffff, 0x1230), "DS");
    assert_eq!(area.u16(0x32) & 0x9f, 0x93, "present, code or data, read and write, accessed");
    assert_eq!((area.u16(0x64), area.u64(0x68)), (0x27, 0x5000), "GDTR");
    assert_eq!(area.u16(0x92) & 0x87, 0x83, "TR: present, busy");
    vcpu.run_to_hlt();
}

pub(super) fn bits32(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    let vcpu = machine.vcpu();
    // A processor without long mode.
    vcpu.set_cpuid(&[KvmCpuidEntry2 { function: 0, eax: 1, ..Default::default() }]).expect("KVM_SET_CPUID2");
    vcpu.edit_sregs(|s| {
        at(&mut s.es, 0x1230);
        (s.gdt.base, s.gdt.limit) = (0x5000, 0x27);
    });
    vcpu.edit_regs(|r| (r.rax, r.rbx, r.rdi, r.rflags) = (0x2345_6789, 2, 15, 0x46));
    machine.smi();
    machine.run_to_out();
    let area = machine.smram.part(AREA, 0x200);
    assert_eq!((area.u32(0xfc), area.u32(0xf8)), (0x2_0000, SMBASE as u32), "revision and SMBASE");
    assert_eq!((area.u32(0x1d0), area.u32(0x1dc), area.u32(0x1ec)), (0x2345_6789, 2, 15), "EAX, EBX, EDI");
    assert_eq!((area.u32(0x1f0), area.u32(0x1f4)), (CODE as u32, 0x46), "EIP, EFLAGS");
    assert_eq!((area.u32(0x1fc) & 1, area.u32(0x114)), (0, 0), "CR0, CR4");
    assert_eq!((area.u32(0x1cc), area.u32(0x1c8)), (0xffff_0ff0, 0x400), "DR6, DR7");
    assert_eq!((area.u32(0x1a8), area.u32(0x188), area.u32(0x18c)), (0x123, 0xffff, 0x1230), "ES");
    assert_eq!(area.u32(0x184) & 0x9f00, 0x9300, "present, code or data, read and write, accessed");
    assert_eq!((area.u32(0x170), area.u32(0x174)), (0x27, 0x5000), "GDTR");
    assert_eq!(area.u32(0x15c) & 0x8700, 0x8300, "TR: present, busy");
    vcpu.run_to_hlt();
    assert_eq!((vcpu.regs().rax, vcpu.regs().rbx), (0x2345_6789, 3));
}

pub(super) fn changed(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    machine.real.put_code(0x3000, |a| {
        a.inc(cx)?;
        a.hlt()
    });
    let vcpu = machine.vcpu();
    vcpu.support_all(device);
    machine.smi();
    machine.run_to_out();
    let area = machine.smram.part(AREA, 0x200);
    // RIP, RCX, and R9, which 16-bit code does not reach.
    area.set_u64(0x178, 0x3000);
    area.set_u64(0x1f0, 0x41);
    area.set_u64(0x1b0, 0x9999_9999_9999);
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rip, regs.rcx, regs.r9, regs.rbx), (0x3002, 0x42, 0x9999_9999_9999, 0));
}

/// As SeaBIOS calls 32-bit code from 16-bit code: RSM goes to protected mode.
pub(super) fn other_mode(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    machine.real.memory.write(
        0x3000,
        &assemble(32, 0x3000, |a| {
            a.inc(ecx)?;
            a.hlt()
        }),
    );
    let vcpu = machine.vcpu();
    vcpu.support_all(device);
    machine.smi();
    machine.run_to_out();
    let area = machine.smram.part(AREA, 0x200);
    area.set_u64(0x158, area.u64(0x158) | 1);
    area.set_u64(0x178, 0x3000);
    area.set_u64(0x1f0, 0xffff_ffff);
    for (n, kind) in [0xc093u16, 0xc09b, 0xc093, 0xc093, 0xc093, 0xc093].into_iter().enumerate() {
        area.write(n * 16, &(8 * n as u16).to_le_bytes());
        area.write(n * 16 + 2, &kind.to_le_bytes());
        area.set_u32(n * 16 + 4, u32::MAX);
        area.set_u64(n * 16 + 8, 0);
    }
    vcpu.run_to_hlt();
    let (regs, sregs) = (vcpu.regs(), vcpu.sregs());
    // 32-bit code: the carry does not go to bit 32, and INC is one byte.
    assert_eq!((regs.rip, regs.rcx), (0x3002, 0));
    assert_eq!((sregs.cr0 & 1, sregs.cs.selector, sregs.cs.db, sregs.cs.limit), (1, 8, 1, u32::MAX));
}

pub(super) fn base(device: &Device) {
    let machine = Machine::new(device, count_and_halt, tell(7));
    let vcpu = machine.vcpu();
    vcpu.support_all(device);
    machine.smi();
    machine.run_to_out();
    machine.smram.set_u32(AREA + 0x100, SMBASE as u32 + 0x2000);
    assert_eq!(vcpu.msr(0x9e), Some(SMBASE));
    machine.smram.write(0xa000, &assemble(16, 0x8000, tell(8)));
    // The area of the next SMI is beyond the first's memory.
    let _more = machine.real.vm.memory(1 << 16 | 2, SMBASE + 0x1_0000, 0x4000);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.msr(0x9e), Some(SMBASE + 0x2000));
    machine.smi();
    assert_eq!((machine.run_to_out(), vcpu.sregs().cs.selector), (8, 0x3200));
}

pub(super) fn impossible(device: &Device) {
    // CR0 with paging but without protection, CR4's reserved bits.
    for (at, value) in [(0x158, 0x8000_0010), (0x148, 1 << 26)] {
        let machine = Machine::new(device, count_and_halt, tell(7));
        machine.vcpu().support_all(device);
        machine.smi();
        machine.run_to_out();
        machine.smram.set_u64(AREA + at, value);
        assert_eq!(machine.vcpu().run(), Exit::Shutdown, "{value:#x} at {at:#x}");
    }
}
