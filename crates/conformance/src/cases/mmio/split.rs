//! Accesses that lie half in memory and half in a device, or in two devices. Each part is an access of its own.
use iced_x86::code_asm::*;

use crate::{
    device::Device,
    vm::{Exit, RealMode, at},
};

/// DS such that offset 0x10 is the last byte of memory, ES such that offset 0x10 is the last byte of a page of devices.
fn machine(device: &Device, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> RealMode {
    let machine = RealMode::new(device, |a| {
        code(a)?;
        a.hlt()
    });
    machine.vcpu.edit_sregs(|s| {
        at(&mut s.ds, 0xfff0 - 0x10);
        at(&mut s.es, 0x2fff0 - 0x10);
    });
    machine
}

pub(super) fn read_half_in_memory(device: &Device) {
    let machine = machine(device, |a| a.mov(ebx, dword_ptr(0x1e)));
    machine.memory.write(0xfffe, &[0x11, 0x22]);
    assert_eq!(machine.vcpu.run(), Exit::Read { gpa: 0x10000, len: 2 });
    machine.vcpu.answer(&[0x33, 0x44]);
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.vcpu.regs().rbx, 0x4433_2211);
}

pub(super) fn write_half_in_memory(device: &Device) {
    let machine = machine(device, |a| a.mov(dword_ptr(0x1d), 0x4433_2211u32));
    assert_eq!(machine.vcpu.run(), Exit::write(0x10000, &[0x44]));
    machine.vcpu.run_to_hlt();
    assert_eq!(machine.memory.read(0xfffc, 4), [0, 0x11, 0x22, 0x33]);
}

pub(super) fn rmw_half_in_memory(device: &Device) {
    for locked in [false, true] {
        let machine =
            machine(
                device,
                |a| {
                    if locked { a.lock().add(word_ptr(0x1f), 0x0102) } else { a.add(word_ptr(0x1f), 0x0102) }
                },
            );
        machine.memory.set_u8(0xffff, 0xff);
        assert_eq!(machine.vcpu.run(), Exit::Read { gpa: 0x10000, len: 1 });
        machine.vcpu.answer(&[0x10]);
        assert_eq!(machine.vcpu.run(), Exit::write(0x10000, &[0x12]), "locked: {locked}");
        machine.vcpu.run_to_hlt();
        assert_eq!(machine.memory.u8(0xffff), 0x01);
    }
}

pub(super) fn two_devices(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(eax, dword_ptr(0x1f).es())?;
        a.mov(dword_ptr(0x1d).es(), eax)
    });
    let vcpu = &machine.vcpu;
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x2ffff, len: 1 });
    vcpu.answer(&[0x11]);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x30000, len: 3 });
    vcpu.answer(&[0x22, 0x33, 0x44]);
    assert_eq!(vcpu.run(), Exit::write(0x2fffd, &[0x11, 0x22, 0x33]));
    assert_eq!(vcpu.run(), Exit::write(0x30000, &[0x44]));
    vcpu.run_to_hlt();
    assert_eq!(vcpu.regs().rax, 0x4433_2211);
}

pub(super) fn rmw_two_devices(device: &Device) {
    let machine = machine(device, |a| a.xor(word_ptr(0x1f).es(), ax));
    let vcpu = &machine.vcpu;
    vcpu.edit_regs(|r| r.rax = 0xff0f);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x2ffff, len: 1 });
    vcpu.answer(&[0x11]);
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x30000, len: 1 });
    vcpu.answer(&[0x22]);
    assert_eq!(vcpu.run(), Exit::write(0x2ffff, &[0x1e]));
    assert_eq!(vcpu.run(), Exit::write(0x30000, &[0xdd]));
    vcpu.run_to_hlt();
}

pub(super) fn both_operands(device: &Device) {
    let machine = machine(device, |a| a.movsd());
    let vcpu = &machine.vcpu;
    machine.memory.set_u8(0xffff, 0xa1);
    vcpu.edit_regs(|r| (r.rsi, r.rdi) = (0x1f, 0x1e));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x10000, len: 3 });
    vcpu.answer(&[0xa2, 0xa3, 0xa4]);
    assert_eq!(vcpu.run(), Exit::write(0x2fffe, &[0xa1, 0xa2]));
    assert_eq!(vcpu.run(), Exit::write(0x30000, &[0xa3, 0xa4]));
    vcpu.run_to_hlt();
}
