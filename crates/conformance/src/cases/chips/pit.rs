//! The i8254.
use abi::*;
use iced_x86::code_asm::*;

use super::pic;
use crate::{
    device::{Device, Errno, reinject_control},
    vm::{CODE, Exit, RealMode, assemble},
};

/// Its interrupts go nowhere; Linux 6.1 makes it all the same.
pub(super) fn without_pic(device: &Device) {
    let vm = device.vm();
    vm.pit();
    assert!(vm.fd.get::<KvmPitState2>(KVM_GET_PIT2).is_ok());
}

pub(super) fn errors(device: &Device) {
    let vm = device.vm();
    assert!(vm.fd.get::<KvmPitState2>(KVM_GET_PIT2).is_err());
    vm.irqchip();
    assert_eq!(vm.fd.get::<KvmPitState2>(KVM_GET_PIT2).err(), Some(Errno::ENXIO));
    assert_eq!(reinject_control(&vm.fd, 1), Err(Errno::ENXIO));
    vm.pit();
    assert_eq!(vm.fd.put(KVM_CREATE_PIT2, &KvmPitConfig::default()), Err(Errno::EEXIST));
    assert_eq!(vm.fd.number(KVM_CREATE_PIT, 0), Err(Errno::EEXIST));
    assert_eq!((reinject_control(&vm.fd, 0), reinject_control(&vm.fd, 1)), (Ok(0), Ok(0)));
}

pub(super) fn state(device: &Device) {
    let vm = device.vm();
    vm.irqchip();
    vm.pit();
    let mut state: KvmPitState2 = vm.fd.get(KVM_GET_PIT2).expect("KVM_GET_PIT2");
    for (n, channel) in state.channels.iter_mut().enumerate() {
        (channel.count, channel.mode, channel.rw_mode, channel.bcd) = (0x1000 + n as u32, 3, 3, 0);
        channel.gate = u8::from(n != 2);
    }
    vm.fd.put(KVM_SET_PIT2, &state).expect("KVM_SET_PIT2");
    let back: KvmPitState2 = vm.fd.get(KVM_GET_PIT2).expect("KVM_GET_PIT2");
    for (set, back) in state.channels.iter().zip(&back.channels) {
        assert_eq!((back.count, back.mode, back.rw_mode, back.gate), (set.count, set.mode, set.rw_mode, set.gate));
    }
}

/// A VM with controllers and a PIT with these flags.
fn machine(
    device: &Device,
    flags: u32,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> RealMode {
    let vm = device.vm();
    vm.irqchip();
    vm.fd.put(KVM_CREATE_PIT2, &KvmPitConfig { flags, ..KvmPitConfig::default() }).expect("KVM_CREATE_PIT2");
    RealMode::with_code(vm, &assemble(16, CODE, code))
}

pub(super) fn counts(device: &Device) {
    let machine = machine(device, 0, |a| {
        // Channel 2, both bytes, mode 0, from 0xffff; then the count is latched twice.
        a.mov(al, 0xb0)?;
        a.out(0x43, al)?;
        a.mov(al, 0xff)?;
        a.out(0x42, al)?;
        a.out(0x42, al)?;
        for _ in 0..2 {
            a.mov(al, 0x80)?;
            a.out(0x43, al)?;
            a.in_(al, 0x42)?;
            a.mov(cl, al)?;
            a.in_(al, 0x42)?;
            a.mov(ch, al)?;
            a.mov(ax, cx)?;
            a.out(0x90, ax)?;
        }
        a.hlt()
    });
    // The gate of channel 2 is low after reset: raise it by its state.
    let mut state: KvmPitState2 = machine.vm.fd.get(KVM_GET_PIT2).expect("KVM_GET_PIT2");
    state.channels[2].gate = 1;
    machine.vm.fd.put(KVM_SET_PIT2, &state).expect("KVM_SET_PIT2");
    let mut counts = [0; 2];
    for count in &mut counts {
        let Exit::Out { port: 0x90, data, .. } = machine.vcpu.run() else { panic!("no count") };
        *count = u32::from(data[0]) | u32::from(data[1]) << 8;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // A millisecond is 1193 ticks; the count may have wrapped in a slow machine, but it moves.
    assert_ne!(counts[0], counts[1]);
}

pub(super) fn ticks(device: &Device) {
    let machine = pic::machine(device, 0);
    machine.vm.pit();
    let mut state: KvmPitState2 = machine.vm.fd.get(KVM_GET_PIT2).expect("KVM_GET_PIT2");
    // Channel 0, rate generator, about 200 Hz.
    let channel = &mut state.channels[0];
    (channel.count, channel.mode, channel.rw_mode, channel.gate) = (5966, 2, 3, 1);
    machine.vm.fd.put(KVM_SET_PIT2, &state).expect("KVM_SET_PIT2");
    for _ in 0..4 {
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x40));
    }
}

pub(super) fn port_61(device: &Device) {
    let code = |a: &mut CodeAssembler| {
        a.mov(al, 1)?;
        a.out(0x61, al)?;
        a.in_(al, 0x61)?;
        a.out(0x90, al)
    };
    // The client's, unless it asked otherwise.
    let own = machine(device, 0, code);
    assert_eq!(own.vcpu.run(), Exit::out8(0x61, 1));
    assert_eq!(own.vcpu.run(), Exit::input(0x61, 1));
    let dummy = machine(device, KVM_PIT_SPEAKER_DUMMY, code);
    let Exit::Out { port: 0x90, data, .. } = dummy.vcpu.run() else { panic!("port 0x61 came out") };
    // The gate of channel 2 reads back.
    assert_eq!(data[0] & 3, 1);
}
