//! KVM_GET_MSRS and KVM_SET_MSRS.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno},
    vm::{RealMode, Vcpu, list_with, read_list},
};

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const EFER: u32 = 0xc000_0080;

fn vcpu(device: &Device) -> Vcpu {
    let vcpu = device.vm().vcpu(0);
    vcpu.support_all(device);
    vcpu
}

fn msrs(vcpu: &Vcpu, nr: u32, entries: &[(u32, u64)]) -> (Result<i32, Errno>, Vec<u64>) {
    let list: Vec<_> = entries.iter().map(|&(index, data)| KvmMsrEntry { index, reserved: 0, data }).collect();
    let mut bytes = list_with(&KvmMsrs { nmsrs: list.len() as u32, pad: 0 }, &list);
    let answer = vcpu.fd.buffer(nr, &mut bytes);
    let back: Vec<KvmMsrEntry> = read_list::<KvmMsrs, _>(&bytes, list.len());
    (answer, back.iter().map(|entry| entry.data).collect())
}

pub(super) fn round_trip(device: &Device) {
    let vcpu = vcpu(device);
    let values = [
        (0x174, 0x10),                  // SYSENTER_CS
        (0x175, 0x1234_5678),           // SYSENTER_ESP
        (0x176, 0x9abc_def0),           // SYSENTER_EIP
        (0x277, 0x0007_0406_0007_0401), // PAT
        (STAR, 0x0023_0010_0000_0000),
        (LSTAR, 0xffff_ffff_8000_0000),
        (0xc000_0083, 0x1000),                // CSTAR
        (0xc000_0084, 0x4_7700),              // SFMASK
        (0xc000_0100, 0x1_0000),              // FS.base
        (0xc000_0101, 0x2_0000),              // GS.base
        (0xc000_0102, 0xffff_8000_0000_0000), // KERNEL_GS_BASE
        (0x2ff, 0xc06),                       // MTRRdefType
        (0x1a0, 1),                           // MISC_ENABLE
    ];
    assert_eq!(msrs(&vcpu, KVM_SET_MSRS, &values).0, Ok(values.len() as i32));
    let (answer, back) = msrs(&vcpu, KVM_GET_MSRS, &values.map(|(index, _)| (index, 0)));
    assert_eq!(answer, Ok(values.len() as i32));
    for ((index, value), back) in values.into_iter().zip(back) {
        assert_eq!(back, value, "MSR {index:#x}");
    }
    // FS.base is the segment's too.
    assert_eq!(vcpu.sregs().fs.base, 0x1_0000);
}

pub(super) fn partial(device: &Device) {
    let vcpu = vcpu(device);
    let entries = [(STAR, 0x11_0000_0000), (0x8888_8888, 1), (LSTAR, 0x22)];
    assert_eq!(msrs(&vcpu, KVM_SET_MSRS, &entries).0, Ok(1));
    assert_eq!((vcpu.msr(STAR), vcpu.msr(LSTAR)), (Some(0x11_0000_0000), Some(0)));
    let (answer, back) = msrs(&vcpu, KVM_GET_MSRS, &entries.map(|(index, _)| (index, 7)));
    assert_eq!(answer, Ok(1));
    assert_eq!((back[0], back[2]), (0x11_0000_0000, 7));
    assert_eq!(msrs(&vcpu, KVM_SET_MSRS, &[]).0, Ok(0));
}

pub(super) fn impossible(device: &Device) {
    let vcpu = vcpu(device);
    for (what, index, value) in [
        ("reserved bits of EFER", EFER, 1u64 << 40),
        ("an LSTAR that is no address", LSTAR, 1 << 60),
        ("a FS.base that is no address", 0xc000_0100, 1 << 60),
        ("a memory type that does not exist", 0x277, 0x0202_0202_0202_0202),
        ("a memory type of MTRRs that does not exist", 0x2ff, 0xc02),
    ] {
        assert!(!vcpu.set_msr(index, value), "{what} was taken");
    }
    assert_eq!((vcpu.msr(LSTAR), vcpu.msr(EFER)), (Some(0), Some(0)));
}

pub(super) fn too_many(device: &Device) {
    let vcpu = vcpu(device);
    for nr in [KVM_GET_MSRS, KVM_SET_MSRS] {
        for nmsrs in [256, 100_000, u32::MAX] {
            let mut bytes = list_with(&KvmMsrs { nmsrs, pad: 0 }, &[KvmMsrEntry::default(); 300]);
            assert_eq!(vcpu.fd.buffer(nr, &mut bytes), Err(Errno::E2BIG), "{nmsrs} MSRs");
        }
        let (answer, _) = msrs(&vcpu, nr, &[(STAR, 0); 255]);
        assert_eq!(answer, Ok(255));
    }
}

/// RDMSR and WRMSR with registers from the client; #GP sets SI.
fn machine(device: &Device) -> RealMode {
    let machine = RealMode::new(device, |a| {
        a.rdmsr()?;
        a.hlt()
    });
    machine.put_code(0x2000, |a| {
        a.wrmsr()?;
        a.hlt()
    });
    machine.set_vector(13, 0x3000);
    machine.put_code(0x3000, |a| {
        a.mov(si, 13)?;
        a.hlt()
    });
    machine.vcpu.support_all(device);
    machine
}

pub(super) fn in_guest(device: &Device) {
    let machine = machine(device);
    let vcpu = &machine.vcpu;
    assert!(vcpu.set_msr(LSTAR, 0xffff_8765_4321_1000));
    vcpu.edit_regs(|r| r.rcx = LSTAR.into());
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rax, regs.rdx), (0x4321_1000, 0xffff_8765));
    vcpu.edit_regs(|r| (r.rip, r.rcx, r.rax, r.rdx) = (0x2000, STAR.into(), 0x1234, 0x5678));
    vcpu.run_to_hlt();
    assert_eq!((vcpu.msr(STAR), vcpu.regs().rsi), (Some(0x5678_0000_1234), 0));
}

pub(super) fn unknown(device: &Device) {
    for ip in [0x1000, 0x2000] {
        let machine = machine(device);
        machine.vcpu.edit_regs(|r| (r.rip, r.rcx) = (ip, 0x8888_8888));
        machine.vcpu.run_to_hlt();
        assert_eq!(machine.vcpu.regs().rsi, 13);
        assert_eq!(machine.memory.u16(0x7ffa), ip as u16);
    }
    let vcpu = vcpu(device);
    assert_eq!((vcpu.msr(0x8888_8888), vcpu.set_msr(0x8888_8888, 0)), (None, false));
}
