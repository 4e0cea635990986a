//! Accesses where no memory is, which the client serves.
use crate::{
    device::Device,
    runner::{Case, case},
    vm::{Exit, RealMode},
};

pub(super) const CASES: &[Case] = &[case("device-to-device-move", "A07 C09", device_to_device)];

fn device_to_device(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.movsw().unwrap();
        a.hlt().unwrap();
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| (s.ds.base, s.es.base) = (0x20000, 0x30000));
    vcpu.edit_regs(|r| (r.rsi, r.rdi) = (0x10, 0x20));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20010, len: 2 });
    vcpu.answer(&[0x34, 0x12]);
    assert_eq!(vcpu.run(), Exit::write(0x30020, &[0x34, 0x12]));
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rsi, regs.rdi), (0x12, 0x22));
}
