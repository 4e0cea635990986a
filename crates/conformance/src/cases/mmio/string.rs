//! String instructions with one or two operands in devices. Every element is an access of its own.
use crate::{
    device::Device,
    vm::{CODE, Exit, RealMode, Vcpu, at},
};

/// The machine with DS at device memory 0x20000 and ES at 0x30000.
pub(super) fn at_devices(machine: &RealMode) -> &Vcpu {
    machine.vcpu.edit_sregs(|s| {
        at(&mut s.ds, 0x20000);
        at(&mut s.es, 0x30000);
    });
    &machine.vcpu
}

pub(super) fn device_to_device(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.movsw()?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rsi, r.rdi) = (0x10, 0x20));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20010, len: 2 });
    vcpu.answer(&[0x34, 0x12]);
    assert_eq!(vcpu.run(), Exit::write(0x30020, &[0x34, 0x12]));
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rsi, regs.rdi), (0x12, 0x22));
}

pub(super) fn rep_movs(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.std()?;
        a.rep().movsd()?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdi) = (3, 0x1004, 0x2000));
    for i in 0..3u8 {
        let offset = 4 * u64::from(i);
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x21004 - offset, len: 4 });
        vcpu.answer(&[i, i + 1, i + 2, i + 3]);
        assert_eq!(vcpu.run(), Exit::write(0x32000 - offset, &[i, i + 1, i + 2, i + 3]));
    }
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rcx, regs.rsi, regs.rdi), (0, 0xff8, 0x1ff4));
}

pub(super) fn rep_stos(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().stosw()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    vcpu.edit_sregs(|s| at(&mut s.es, 0xf000));
    vcpu.edit_regs(|r| (r.rax, r.rcx, r.rdi) = (0x4241, 6, 0xffa));
    for i in 0..3 {
        assert_eq!(vcpu.run(), Exit::write(0x10000 + 2 * i, &[0x41, 0x42]));
    }
    vcpu.run_to_hlt();
    assert_eq!(machine.memory.read(0xfff8, 8), *b"\0\0ABABAB");
    assert_eq!(vcpu.regs().rdi, 0x1006);
}

pub(super) fn rep_movs_from_memory(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.rep().movsw()?;
        a.hlt()
    });
    let vcpu = &machine.vcpu;
    let data: Vec<u8> = (0..16).collect();
    machine.memory.write(0x4ff9, &data);
    vcpu.edit_sregs(|s| at(&mut s.es, 0x30000));
    // Words that straddle a page in memory, and pages in the device.
    vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdi) = (8, 0x4ff9, 0xffa));
    for (i, word) in data.chunks(2).enumerate() {
        assert_eq!(vcpu.run(), Exit::write(0x30ffa + 2 * i as u64, word));
    }
    vcpu.run_to_hlt();
}

pub(super) fn repne_scas(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.repne().scasb()?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rax, r.rcx, r.rdi) = (b'c'.into(), 100, 0));
    for (i, byte) in b"abc".iter().enumerate() {
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x30000 + i as u64, len: 1 });
        vcpu.answer(&[*byte]);
    }
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    assert_eq!((regs.rcx, regs.rdi, regs.rflags >> 6 & 1, regs.rip), (97, 3, 1, CODE + 3));
}

pub(super) fn repe_cmps(device: &Device) {
    let machine = RealMode::new(device, |a| {
        a.repe().cmpsb()?;
        a.hlt()
    });
    let vcpu = at_devices(&machine);
    vcpu.edit_regs(|r| (r.rcx, r.rsi, r.rdi) = (100, 0, 0));
    for i in 0..3 {
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20000 + i, len: 1 });
        vcpu.answer(&[5]);
        assert_eq!(vcpu.run(), Exit::Read { gpa: 0x30000 + i, len: 1 });
        vcpu.answer(&[if i == 2 { 6 } else { 5 }]);
    }
    vcpu.run_to_hlt();
    let regs = vcpu.regs();
    // 5 below 6: carry, not zero.
    assert_eq!((regs.rcx, regs.rsi, regs.rdi, regs.rflags & 0x41), (97, 3, 3, 1));
}
