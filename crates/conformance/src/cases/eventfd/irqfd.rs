//! An eventfd that is an interrupt.
use abi::*;

use crate::{
    cases::chips::{apic, calls},
    device::{Device, Errno, Event},
    vm::{Exit, RealMode, Vm, until, while_running},
};

fn irqfd(vm: &Vm, event: &Event, gsi: u32, flags: u32) -> Result<i32, Errno> {
    vm.fd.put(KVM_IRQFD, &KvmIrqfd { fd: event.raw() as u32, gsi, flags, ..KvmIrqfd::default() })
}

/// GSI 30 is the message 0x41.
fn machine(device: &Device) -> RealMode {
    let machine = apic::machine(device, apic::wait);
    apic::ready(&machine);
    calls::set_routes(&machine.vm.fd, &[KvmIrqRoutingEntry::to_msi(30, 0xfee0_0000, 0x41)]).expect("a route");
    machine
}

pub(super) fn interrupts(device: &Device) {
    let (machine, event) = (machine(device), Event::new());
    irqfd(&machine.vm, &event, 30, 0).expect("KVM_IRQFD");
    for _ in 0..3 {
        event.signal();
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
    }
    // The route is looked up each time.
    calls::set_routes(&machine.vm.fd, &[KvmIrqRoutingEntry::to_msi(30, 0xfee0_0000, 0x51)]).expect("a route");
    event.signal();
    assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x51));
}

pub(super) fn wakes(device: &Device) {
    let (machine, event) = (machine(device), Event::new());
    irqfd(&machine.vm, &event, 30, 0).expect("KVM_IRQFD");
    for _ in 0..3 {
        let (exit, ()) = while_running(&machine.vcpu, |running| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            assert!(!running.done());
            event.signal();
        });
        assert_eq!(exit, Ok(Exit::out8(0x81, 0x41)));
    }
}

pub(super) fn deassigned(device: &Device) {
    let (machine, event) = (machine(device), Event::new());
    irqfd(&machine.vm, &event, 30, 0).expect("KVM_IRQFD");
    irqfd(&machine.vm, &event, 30, KVM_IRQFD_FLAG_DEASSIGN).expect("deassignment");
    event.signal();
    let (exit, ()) = while_running(&machine.vcpu, |running| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        assert!(!running.done(), "an interrupt came");
        running.stop();
    });
    assert_eq!(exit, Err(Errno::EINTR));
    // The count is the client's again.
    assert_eq!(event.take(), 1);
    // What is not there is taken back without complaint.
    assert_eq!(irqfd(&machine.vm, &event, 30, KVM_IRQFD_FLAG_DEASSIGN), Ok(0));
}

pub(super) fn resamples(device: &Device) {
    let machine = apic::machine(device, apic::wait);
    apic::ready(&machine);
    let mut state: KvmIoapicState = calls::get_chip(&machine.vm.fd, KVM_IRQCHIP_IOAPIC);
    state.redirtbl[20] = 1 << 15 | 0x41;
    calls::set_chip(&machine.vm.fd, KVM_IRQCHIP_IOAPIC, &state);
    let (event, ended) = (Event::new(), Event::new());
    let binding = KvmIrqfd {
        fd: event.raw() as u32,
        gsi: 20,
        flags: KVM_IRQFD_FLAG_RESAMPLE,
        resamplefd: ended.raw() as u32,
        ..KvmIrqfd::default()
    };
    machine.vm.fd.put(KVM_IRQFD, &binding).expect("KVM_IRQFD");
    for _ in 0..2 {
        event.signal();
        assert_eq!(machine.vcpu.run(), Exit::out8(0x81, 0x41));
        assert_eq!(ended.take(), 0);
        // The end of interrupt lowers the line and tells.
        let (exit, ()) = while_running(&machine.vcpu, |running| {
            until("the resample event", || ended.take() == 1);
            running.stop();
        });
        assert_eq!(exit, Err(Errno::EINTR));
    }
}

pub(super) fn errors(device: &Device) {
    let (machine, event) = (machine(device), Event::new());
    let raw = |fd: u32, flags| machine.vm.fd.put(KVM_IRQFD, &KvmIrqfd { fd, gsi: 30, flags, ..KvmIrqfd::default() });
    assert_eq!(raw(event.raw() as u32, 1 << 7), Err(Errno::EINVAL), "flags");
    assert_eq!(raw(9999, 0), Err(Errno::EBADF), "no descriptor");
    assert_eq!(raw(machine.vm.fd.raw() as u32, 0), Err(Errno::EINVAL), "not an eventfd");
    assert_eq!(raw(event.raw() as u32, 0), Ok(0));
    assert_eq!(raw(event.raw() as u32, 0), Err(Errno::EBUSY), "an eventfd that is bound already");
}
