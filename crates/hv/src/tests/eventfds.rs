//! irqfd and ioeventfd: eventfds that raise interrupts, and guest writes that signal eventfds.
use abi::*;
use platform::EventFd;
use std::vec::Vec;

use crate::{
    Errno,
    backend::{Event, EventKind, Exit, PioExit},
    testing::{Machine, cx, host},
};

fn event(fd: i32) -> host::Event {
    host::Event::get(fd, &cx()).unwrap()
}

/// A machine whose vCPU takes interrupts, and whose IOAPIC's pin 5 is vector 0x45, level triggered.
fn machine() -> Machine {
    let m = Machine::with_irqchip();
    m.state(|s| s.flags.set(x86::flags::IF));
    let mut lapic: KvmLapicState = m.get(KVM_GET_LAPIC);
    lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    pin_5(&m, 0x8045);
    let shared = m.vm.shared();
    shared.chips.pic_write(&shared.vcpus, 0x21, 0xff);
    m
}

fn ioapic(m: &Machine) -> KvmIoapicState {
    let mut chip = KvmIrqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..KvmIrqchip::default() };
    m.vm_ioctl(KVM_GET_IRQCHIP, &mut chip).unwrap();
    KvmIoapicState::from_prefix(&chip.chip).unwrap()
}

fn pin_5(m: &Machine, entry: u64) {
    let mut state = ioapic(m);
    state.redirtbl[5] = entry;
    let mut chip = KvmIrqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..KvmIrqchip::default() };
    chip.chip[..size_of::<KvmIoapicState>()].copy_from_slice(state.bytes());
    m.vm_ioctl(KVM_SET_IRQCHIP, &mut chip).unwrap();
}

fn bind(m: &Machine, fd: u32, gsi: u32, flags: u32, resamplefd: u32) -> Result<(), Errno> {
    let mut irqfd = KvmIrqfd { fd, gsi, flags, resamplefd, pad: [0; 16] };
    m.vm_ioctl(KVM_IRQFD, &mut irqfd).map(drop)
}

/// The vectors that the guest got when it ran.
fn delivered(m: &Machine) -> Vec<u8> {
    m.run().unwrap();
    let vector = |event: Event| if let EventKind::Interrupt(vector) = event.kind { Some(vector) } else { None };
    m.script.take_injected().into_iter().filter_map(vector).collect()
}

/// The guest ends the interrupt.
fn end_of_interrupt(m: &Machine) {
    m.poke(crate::testing::CODE, &[0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0]); // mov dword [0xfee000b0], 0
    m.state(|s| {
        s.seg[1].attr.0 |= x86::Attr::DB;
        s.seg[3] = x86::Segment { limit: u32::MAX, ..x86::Segment::real(0, 0) };
        (s.cr0, s.rip) = (s.cr0 | 1, crate::testing::CODE);
        s.refresh();
    });
    let access = crate::backend::Access::Write;
    m.script.exit(Exit::NestedPageFault { gpa: 0xfee0_00b0, access, table_walk: false });
}

#[test]
fn a_signal_is_a_pulse_of_its_gsi() {
    let m = machine();
    bind(&m, 101, 9, 0, 0).unwrap();
    let routes = [KvmIrqRoutingEntry::to_msi(9, 0xfee0_0000, 0x51)];
    set_routes(&m, &routes);
    event(101).signal();
    assert_eq!(delivered(&m), [0x51]);
    // Each eventfd is bound once; several may lead to one GSI.
    assert_eq!(bind(&m, 101, 10, 0, 0), Err(Errno::EBUSY));
    bind(&m, 103, 9, 0, 0).unwrap();
    // Taken back for another GSI, nothing happens.
    bind(&m, 101, 10, KVM_IRQFD_FLAG_DEASSIGN, 0).unwrap();
    assert_eq!(event(101).watchers(), 1);
    bind(&m, 101, 9, KVM_IRQFD_FLAG_DEASSIGN, 0).unwrap();
    event(101).signal();
    assert_eq!(delivered(&m), []);
    // What was signalled before it is bound is delivered.
    bind(&m, 101, 9, 0, 0).unwrap();
    end_of_interrupt(&m);
    assert_eq!(delivered(&m), [0x51]);
    drop(m);
    assert_eq!(event(101).watchers() + event(103).watchers(), 0, "the VM is gone");
}

fn set_routes(m: &Machine, routes: &[KvmIrqRoutingEntry]) {
    let mut bytes = KvmIrqRouting { nr: routes.len() as u32, flags: 0 }.bytes().to_vec();
    routes.iter().for_each(|route| bytes.extend(route.bytes()));
    m.client.with_bytes(&mut bytes, |arg| m.vm.ioctl(KVM_SET_GSI_ROUTING, arg, &cx())).unwrap();
}

#[test]
fn a_resampled_one_holds_its_line_until_the_guest_has_ended_the_interrupt() {
    let m = machine();
    bind(&m, 111, 5, KVM_IRQFD_FLAG_RESAMPLE, 113).unwrap();
    bind(&m, 115, 5, KVM_IRQFD_FLAG_RESAMPLE, 117).unwrap();
    event(111).signal();
    assert_eq!(ioapic(&m).redirtbl[5] >> 14 & 1, 1, "remote IRR");
    assert_eq!(delivered(&m), [0x45]);
    assert_eq!(event(113).count(), 0);
    end_of_interrupt(&m);
    assert_eq!(delivered(&m), [], "the line is low before the pin is looked at again");
    assert_eq!((event(113).count(), event(117).count()), (1, 1), "all of the GSI are told");
    assert_eq!((ioapic(&m).redirtbl[5] >> 14 & 1, ioapic(&m).irr), (0, 0));
    // The last one leaves the line low.
    event(115).signal();
    assert_eq!(ioapic(&m).irr, 1 << 5);
    bind(&m, 111, 5, KVM_IRQFD_FLAG_DEASSIGN, 0).unwrap();
    assert_eq!(ioapic(&m).irr, 1 << 5);
    bind(&m, 115, 5, KVM_IRQFD_FLAG_DEASSIGN, 0).unwrap();
    assert_eq!(ioapic(&m).irr, 0);
}

/// The IOAPIC is told of the ends of edges only if somebody waits for them.
#[test]
fn an_edge_is_resampled_too() {
    let m = machine();
    pin_5(&m, 0x45);
    bind(&m, 141, 5, KVM_IRQFD_FLAG_RESAMPLE, 143).unwrap();
    event(141).signal();
    assert_eq!(delivered(&m), [0x45]);
    end_of_interrupt(&m);
    delivered(&m);
    assert_eq!(event(143).count(), 1);
}

#[test]
fn the_8259a_resamples_too() {
    let m = Machine::with_irqchip();
    bind(&m, 121, 5, KVM_IRQFD_FLAG_RESAMPLE, 123).unwrap();
    let out = |port, value: u64| {
        m.state(|s| s.gpr[0] = value);
        m.script.exit(Exit::Pio(PioExit { port, size: 1, write: true, string: false, len: 1 }));
        m.run().unwrap();
    };
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x4d0, 0x20)] {
        out(port, value);
    }
    event(121).signal();
    out(0x20, 0x0c); // poll
    m.script.exit(Exit::Pio(PioExit { port: 0x20, size: 1, write: false, string: false, len: 1 }));
    m.run().unwrap();
    assert_eq!(m.state(|s| s.gpr[0] as u8), 0x85);
    assert_eq!(event(123).count(), 0);
    out(0x20, 0x20);
    assert_eq!(event(123).count(), 1);
}

#[test]
fn what_cannot_be_bound_is_refused() {
    let m = machine();
    assert_eq!(bind(&m, 130, 5, 0, 0), Err(Errno::EINVAL));
    assert_eq!(bind(&m, u32::MAX, 5, 0, 0), Err(Errno::EBADF));
    assert_eq!(bind(&m, 131, 5, KVM_IRQFD_FLAG_RESAMPLE, 130), Err(Errno::EINVAL));
    assert_eq!(event(131).watchers(), 0);
    assert_eq!(bind(&m, 131, 5, 4, 0), Err(Errno::EINVAL));
    assert_eq!(bind(&m, 131, 5, KVM_IRQFD_FLAG_DEASSIGN, 0), Ok(()));
    assert_eq!(bind(&Machine::new(), 131, 5, 0, 0), Err(Errno::EINVAL));
    let split = Machine::split_irqchip();
    assert_eq!(bind(&split, 131, 5, KVM_IRQFD_FLAG_RESAMPLE, 133), Err(Errno::EINVAL));
    assert_eq!(bind(&split, 131, 5, 0, 0), Ok(()));
}

fn io(m: &Machine, fd: i32, addr: u64, len: u32, data: Option<u64>, flags: u32) -> Result<(), Errno> {
    let flags = flags | if data.is_some() { KVM_IOEVENTFD_FLAG_DATAMATCH } else { 0 };
    let mut io = KvmIoeventfd { datamatch: data.unwrap_or(0), addr, len, fd, flags, pad: [0; 36] };
    m.vm_ioctl(KVM_IOEVENTFD, &mut io).map(drop)
}

const PIO: u32 = KVM_IOEVENTFD_FLAG_PIO;
const GONE: u32 = KVM_IOEVENTFD_FLAG_DEASSIGN;

/// OUT to `port`: whether the client heard of it.
fn out(m: &Machine, port: u16, size: u8, value: u64) -> bool {
    m.state(|s| s.gpr[0] = value);
    m.script.exit(Exit::Pio(PioExit { port, size, write: true, string: false, len: 1 }));
    m.run() == Ok(KVM_EXIT_IO)
}

#[test]
fn a_write_to_a_port_signals_the_eventfd_that_it_matches() {
    let m = Machine::new();
    io(&m, 201, 0x100, 2, Some(7), PIO).unwrap();
    io(&m, 203, 0x100, 2, Some(8), PIO).unwrap();
    io(&m, 205, 0x200, 0, None, PIO).unwrap();
    let counts = || [201, 203, 205].map(|fd| event(fd).count());
    assert!(!out(&m, 0x100, 2, 7));
    assert_eq!(counts(), [1, 0, 0]);
    assert!(!out(&m, 0x100, 2, 0xffff_0008));
    assert_eq!(counts(), [1, 1, 0]);
    assert!(out(&m, 0x100, 2, 9) && out(&m, 0x100, 1, 7) && out(&m, 0x101, 2, 7));
    assert!(!out(&m, 0x200, 1, 1) && !out(&m, 0x200, 4, 2));
    assert_eq!(counts(), [1, 1, 2]);
    // A read is the client's, and so is the same address in memory.
    m.script.exit(Exit::Pio(PioExit { port: 0x200, size: 1, write: false, string: false, len: 1 }));
    assert_eq!(m.run(), Ok(KVM_EXIT_IO));
    io(&m, 205, 0x200, 0, None, PIO | GONE).unwrap();
    assert!(out(&m, 0x200, 1, 1));
}

#[test]
fn a_write_to_device_memory_does_too_and_comes_after_earlier_writes_of_its_instruction() {
    let m = Machine::new();
    io(&m, 211, 0x2_0000, 0, None, 0).unwrap();
    m.poke(crate::testing::CODE, &[0x66, 0x89, 0x07]); // mov [bx], eax, over two pages
    m.state(|s| {
        s.seg[3] = x86::Segment::real(0x1fff, 0);
        (s.gpr[3], s.gpr[0]) = (0xe, 0x1234_5678);
    });
    let access = crate::backend::Access::Write;
    m.script.exit(Exit::NestedPageFault { gpa: 0x1_fffe, access, table_walk: false });
    assert_eq!(m.run(), Ok(KVM_EXIT_MMIO));
    let mmio: KvmRunMmio = m.payload();
    assert_eq!((mmio.phys_addr, mmio.len, event(211).count()), (0x1_fffe, 2, 0));
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    assert_eq!((event(211).count(), m.state(|s| s.rip)), (1, crate::testing::CODE + 3));
}

#[test]
fn ioeventfds_that_contradict_each_other_are_refused() {
    let m = Machine::new();
    for (len, data, flags) in [(3, None, 0), (0, Some(1), 0), (16, None, 0), (1, None, 1 << 3), (1, None, 1 << 9)] {
        assert_eq!(io(&m, 221, 0x1000, len, data, flags), Err(Errno::EINVAL), "{len} {data:?} {flags}");
    }
    assert_eq!(io(&m, 221, u64::MAX, 1, None, 0), Err(Errno::EINVAL));
    assert_eq!(io(&m, 220, 0x1000, 1, None, 0), Err(Errno::EINVAL));
    assert_eq!(io(&m, -1, 0x1000, 1, None, 0), Err(Errno::EBADF));
    io(&m, 221, 0x1000, 4, Some(1), 0).unwrap();
    for (len, data) in [(4, Some(1)), (4, None), (0, None)] {
        assert_eq!(io(&m, 223, 0x1000, len, data, 0), Err(Errno::EEXIST), "{len} {data:?}");
        assert_eq!(io(&m, 223, 0x1000, len, data, GONE), Err(Errno::ENOENT), "{len} {data:?}");
    }
    io(&m, 221, 0x1000, 4, Some(2), 0).unwrap();
    io(&m, 223, 0x1000, 8, None, 0).unwrap();
    io(&m, 223, 0x1000, 0, None, PIO).unwrap();
    io(&m, 221, 0x1000, 4, Some(1), GONE).unwrap();
    assert_eq!(io(&m, 221, 0x1000, 4, Some(1), GONE), Err(Errno::ENOENT));
}
