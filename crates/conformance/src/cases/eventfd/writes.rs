//! A guest write that is an event.
use abi::*;
use iced_x86::code_asm::*;

use crate::{
    device::{Device, Errno, Event},
    vm::{Exit, RealMode, Vm, at},
};

fn bind(vm: &Vm, event: &Event, addr: u64, len: u32, flags: u32, datamatch: u64) -> Result<i32, Errno> {
    let binding = KvmIoeventfd { datamatch, addr, len, fd: event.raw(), flags, ..KvmIoeventfd::default() };
    vm.fd.put(KVM_IOEVENTFD, &binding)
}

/// DS is at 0x20000, where nothing is.
fn machine(device: &Device, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> RealMode {
    let machine = RealMode::new(device, |a| {
        code(a)?;
        a.hlt()
    });
    machine.vcpu.edit_sregs(|s| at(&mut s.ds, 0x20000));
    machine
}

pub(super) fn mmio(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(dword_ptr(0x10), 1)?;
        a.mov(dword_ptr(0x10), 2)?;
        a.mov(word_ptr(0x10), 3)?;
        a.mov(dword_ptr(0x14), 4)?;
        a.mov(eax, dword_ptr(0x10))
    });
    let (vcpu, event) = (&machine.vcpu, Event::new());
    bind(&machine.vm, &event, 0x20010, 4, 0, 0).expect("KVM_IOEVENTFD");
    // Another width, another place, and a read are the client's.
    assert_eq!(vcpu.run(), Exit::write(0x20010, &[3, 0]));
    assert_eq!(event.take(), 2);
    assert_eq!(vcpu.run(), Exit::write(0x20014, &[4, 0, 0, 0]));
    assert_eq!(vcpu.run(), Exit::Read { gpa: 0x20010, len: 4 });
    vcpu.run_to_hlt();
    assert_eq!(event.take(), 0);
}

pub(super) fn pio(device: &Device) {
    let machine = machine(device, |a| {
        a.out(0x10, ax)?;
        a.out(0x10, al)?;
        a.in_(ax, 0x10)
    });
    let (vcpu, event) = (&machine.vcpu, Event::new());
    bind(&machine.vm, &event, 0x10, 2, KVM_IOEVENTFD_FLAG_PIO, 0).expect("KVM_IOEVENTFD");
    assert_eq!(vcpu.run(), Exit::out8(0x10, 0));
    assert_eq!(event.take(), 1);
    assert_eq!(vcpu.run(), Exit::input(0x10, 2));
    vcpu.run_to_hlt();
}

pub(super) fn datamatch(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(word_ptr(0x10), 5)?;
        a.mov(word_ptr(0x10), 6)?;
        a.mov(word_ptr(0x10), 7)
    });
    let events = [Event::new(), Event::new()];
    for (event, data) in events.iter().zip([5, 7]) {
        bind(&machine.vm, event, 0x20010, 2, KVM_IOEVENTFD_FLAG_DATAMATCH, data).expect("KVM_IOEVENTFD");
    }
    assert_eq!(machine.vcpu.run(), Exit::write(0x20010, &[6, 0]));
    machine.vcpu.run_to_hlt();
    assert_eq!([events[0].take(), events[1].take()], [1, 1]);
}

pub(super) fn any_length(device: &Device) {
    let machine = machine(device, |a| {
        a.mov(byte_ptr(0x10), 1)?;
        a.mov(word_ptr(0x10), 2)?;
        a.mov(dword_ptr(0x10), 3)?;
        a.mov(byte_ptr(0x11), 4)
    });
    let event = Event::new();
    bind(&machine.vm, &event, 0x20010, 0, 0, 0).expect("KVM_IOEVENTFD");
    assert_eq!(machine.vcpu.run(), Exit::write(0x20011, &[4]));
    assert_eq!(event.take(), 3);
    machine.vcpu.run_to_hlt();
}

pub(super) fn deassigned(device: &Device) {
    let machine = machine(device, |a| a.mov(word_ptr(0x10), 5));
    let event = Event::new();
    bind(&machine.vm, &event, 0x20010, 2, 0, 0).expect("KVM_IOEVENTFD");
    bind(&machine.vm, &event, 0x20010, 2, KVM_IOEVENTFD_FLAG_DEASSIGN, 0).expect("deassignment");
    assert_eq!(machine.vcpu.run(), Exit::write(0x20010, &[5, 0]));
    assert_eq!(event.take(), 0);
    assert_eq!(bind(&machine.vm, &event, 0x20010, 2, KVM_IOEVENTFD_FLAG_DEASSIGN, 0), Err(Errno::ENOENT));
}

pub(super) fn errors(device: &Device) {
    let (vm, event) = (device.vm(), Event::new());
    for len in [3, 5, 16] {
        assert_eq!(bind(&vm, &event, 0x20010, len, 0, 0), Err(Errno::EINVAL), "{len} bytes");
    }
    assert_eq!(bind(&vm, &event, 0x20010, 4, 1 << 9, 0), Err(Errno::EINVAL), "flags");
    assert_eq!(bind(&vm, &event, u64::MAX - 1, 4, 0, 0), Err(Errno::EINVAL), "a range that wraps");
    assert_eq!(bind(&vm, &event, 0x20010, 4, 0, 0), Ok(0));
    assert_eq!(bind(&vm, &event, 0x20010, 4, 0, 0), Err(Errno::EEXIST), "the same once more");
    let bad = KvmIoeventfd { addr: 0x30000, len: 4, fd: 9999, ..KvmIoeventfd::default() };
    assert_eq!(vm.fd.put(KVM_IOEVENTFD, &bad), Err(Errno::EBADF), "no descriptor");
}
