//! Asynchronous page faults: nothing is ever away, so that only the beginning is told.
use abi::*;
use x86::{flags, msr};

use crate::{
    backend::{Event, EventKind, Exit},
    testing::Machine,
};

const VECTOR: u64 = 0xf3;
/// A structure of the guest's, and: on, in its kernel too, by an interrupt.
const AREA: u64 = 0x5000;
const ON: u64 = AREA | 0b1011;

fn machine() -> Machine {
    let m = Machine::split_irqchip();
    let mut lapic = KvmLapicState::default();
    m.ioctl(KVM_GET_LAPIC, &mut lapic).unwrap();
    lapic.regs[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    m.ioctl(KVM_SET_LAPIC, &mut lapic).unwrap();
    m.state(|s| s.flags.set(flags::IF));
    m
}

/// The guest's WRMSR; whether it was #GP.
fn write(m: &Machine, index: u32, value: u64) -> bool {
    m.state(|s| (s.gpr[1], s.gpr[0], s.gpr[2]) = (index.into(), value & 0xffff_ffff, value >> 32));
    m.script.take_notes();
    m.script.exit(Exit::MsrWrite { len: 2 });
    m.run().unwrap();
    m.script.take_injected().iter().any(|event| matches!(event.kind, EventKind::Exception(_)))
}

fn token(m: &Machine) -> u32 {
    u32::from_le_bytes(m.peek(AREA + 4))
}

#[test]
fn whoever_switches_it_on_hears_that_all_pages_are_there() {
    let m = machine();
    assert!(!write(&m, msr::KVM_ASYNC_PF_INT, VECTOR));
    m.state(|s| (s.gpr[1], s.gpr[0], s.gpr[2]) = (msr::KVM_ASYNC_PF_EN.into(), ON, 0));
    m.script.exit(Exit::MsrWrite { len: 2 });
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [Event { kind: EventKind::Interrupt(VECTOR as u8) }]);
    assert_eq!(token(&m), u32::MAX);
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [], "it came twice");
}

#[test]
fn without_the_interrupt_nothing_is_told() {
    let m = machine();
    assert!(!write(&m, msr::KVM_ASYNC_PF_EN, AREA | 1));
    m.run().unwrap();
    assert_eq!(token(&m), 0);
    // Nor to an area that does not exist.
    assert!(!write(&m, msr::KVM_ASYNC_PF_EN, 0xffff_ffff_0000 | 0b1011));
    m.run().unwrap();
}

#[test]
fn reserved_bits_are_refused() {
    let m = machine();
    for (index, value) in
        [(msr::KVM_ASYNC_PF_EN, ON | 1 << 4), (msr::KVM_ASYNC_PF_EN, ON | 1 << 2), (msr::KVM_ASYNC_PF_INT, 0x100)]
    {
        assert!(write(&m, index, value), "{index:#x} takes {value:#x}");
    }
    // Without a local APIC there is no interrupt.
    let m = Machine::new();
    assert!(write(&m, msr::KVM_ASYNC_PF_INT, VECTOR) && !write(&m, msr::KVM_ASYNC_PF_INT, 0));
}
