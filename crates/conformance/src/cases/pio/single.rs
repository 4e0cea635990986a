//! IN and OUT of one item.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::Device,
    vm::{CODE, Exit, RealMode},
};

pub(super) fn every_size(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.in_(al, 0x10)?;
        a.out(0x20, al)?;
        a.in_(ax, 0x11)?;
        a.out(0x21, ax)?;
        a.in_(eax, 0x13)?;
        a.out(0x23, eax)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    for (size, port) in [(1u8, 0x10u16), (2, 0x11), (4, 0x13)] {
        let data = &[0x51, 0x62, 0x73, 0x84][..size as usize];
        // An odd port is not split: what a bus would make of it is the client's business.
        assert_eq!(vcpu.run(), Exit::input(port, size));
        vcpu.answer(data);
        assert_eq!(vcpu.run(), Exit::Out { port: port + 0x10, size, data: data.to_vec() });
    }
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax, 0x8473_6251);
}

pub(super) fn port_in_dx(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.mov(dx, 0xffffu32)?;
        a.in_(eax, dx)?;
        a.mov(dx, 0xfffeu32)?;
        a.out(dx, ax)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    assert_eq!(vcpu.run(), Exit::input(0xffff, 4));
    vcpu.answer(&[1, 2, 3, 4]);
    assert_eq!(vcpu.run(), Exit::Out { port: 0xfffe, size: 2, data: vec![1, 2] });
    vcpu.run_to_hlt();
}

pub(super) fn part_of_register(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.in_(al, 0x10)?;
        a.hlt()?;
        a.in_(ax, 0x10)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| r.rax = 0x1122_3344_5566_7788);
    vcpu.run();
    vcpu.answer(&[0xaa]);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax, 0x1122_3344_5566_77aa);
    vcpu.run();
    vcpu.answer(&[0xbb, 0xcc]);
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax, 0x1122_3344_5566_ccbb);
}

pub(super) fn data_inside_mapping(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.out(0x20, al)?;
        a.rep().outsb()?;
        a.hlt()
    });
    let (vcpu, bytes) = (&machine.vcpu, device.run_bytes() as u64);
    vcpu.edit_regs(|r| (r.rcx, r.rdx) = (0x4000, 0x30));
    while vcpu.run() != Exit::Hlt {
        let io: KvmRunIo = vcpu.page.payload();
        // Behind kvm_run itself, which has its place in the first page.
        assert!(io.data_offset >= KVM_RUN_SIZE as u64, "data at {:#x}", io.data_offset);
        let end = io.data_offset + u64::from(io.size) * u64::from(io.count);
        assert!(end <= bytes, "data up to {end:#x} in {bytes:#x}");
    }
}

pub(super) fn answer_late(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.in_(al, 0x10)?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.run();
    vcpu.answer(&[1]);
    vcpu.answer(&[2]);
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rax & 0xff, regs.rip), (2, CODE + 3));
}
