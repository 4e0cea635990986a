//! Port I/O that the client serves.
use iced_x86::code_asm::*;

use crate::{
    device::Device,
    runner::{Case, case},
    vm::{CODE, Exit, RealMode},
};

pub(super) const CASES: &[Case] = &[case("in-and-out-of-every-size", "A06", every_size)];

fn every_size(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.in_(al, 0x10).unwrap();
        a.out(0x20, al).unwrap();
        a.hlt().unwrap();
    });
    let vcpu = &machine.vcpu;
    assert_eq!(vcpu.run(), Exit::input(0x10, 1));
    vcpu.answer(&[0x5a]);
    assert_eq!(vcpu.run(), Exit::out8(0x20, 0x5a));
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rip, CODE + 5);
}
