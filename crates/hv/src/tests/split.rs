//! Split interrupt controllers: local APICs in the hypervisor, IOAPIC and 8259A in the client.
use abi::*;

use crate::{
    Errno,
    backend::{Access, Event, EventKind, Exit},
    testing::{CODE, Machine, cx, script::Note},
};

fn interrupt(vector: u8) -> Event {
    Event { kind: EventKind::Interrupt(vector) }
}

/// mov dword [0xfee00000 + offset], value, executed in flat protected mode: the exit.
fn write_apic(m: &Machine, offset: u32, value: u32) -> Result<u32, Errno> {
    let at = 0xfee0_0000 + offset;
    let mut code = std::vec![0xc7, 0x05];
    code.extend(at.to_le_bytes());
    code.extend(value.to_le_bytes());
    m.poke(CODE, &code);
    m.state(|s| {
        s.seg[1].attr.0 |= x86::Attr::DB;
        s.seg[3] = x86::Segment { limit: u32::MAX, ..x86::Segment::real(0, 0) };
        (s.cr0, s.rip) = (s.cr0 | 1, CODE);
        s.refresh();
    });
    m.script.exit(Exit::NestedPageFault { gpa: at.into(), access: Access::Write, table_walk: false });
    m.run()
}

fn machine() -> Machine {
    let m = Machine::split_irqchip();
    m.state(|s| s.flags.set(x86::flags::IF));
    write_apic(&m, 0xf0, 0x1ff).unwrap();
    // GSI 4 is level-triggered vector 0x44, GSI 5 edge-triggered 0x45; GSI 30 is no pin of the client's IOAPIC.
    let routes = [(4, 0xc044), (5, 0x45), (30, 0xc05e)];
    let mut bytes = KvmIrqRouting { nr: 3, flags: 0 }.bytes().to_vec();
    for (gsi, data) in routes {
        bytes.extend(KvmIrqRoutingEntry::to_msi(gsi, 0xfee0_0000, data).bytes());
    }
    m.client.with_bytes(&mut bytes, |arg| m.vm.ioctl(KVM_SET_GSI_ROUTING, arg, &cx())).unwrap();
    m
}

fn raise(m: &Machine, irq: u32) {
    m.vm_ioctl(KVM_IRQ_LINE, &mut KvmIrqLevel { irq, level: 1 }).unwrap();
}

#[test]
fn the_client_hears_of_the_end_of_level_interrupts_of_its_pins() {
    let m = machine();
    for (gsi, vector, told) in [(5, 0x45, false), (4, 0x44, true), (30, 0x5e, false)] {
        raise(&m, gsi);
        m.run().unwrap();
        assert_eq!(m.script.take_injected(), [interrupt(vector)]);
        let exit = write_apic(&m, 0xb0, 0);
        assert_eq!(exit == Ok(KVM_EXIT_IOAPIC_EOI), told, "{gsi}");
        if told {
            assert_eq!(m.payload::<KvmRunEoi>().vector, vector);
            assert_eq!(m.state(|s| s.rip), CODE + 10, "the write is done");
        }
        m.script.take_notes();
        // Once.
        assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    }
}

#[test]
fn the_clients_8259a_has_one_line_that_the_local_apic_lets_through() {
    let m = machine();
    let queue = |irq| m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq }).map(drop);
    let ready = || m.run_field::<u8>(KVM_RUN_READY_FOR_INTERRUPT_INJECTION_OFFSET as u64);
    // LINT0 is ExtINT after reset, as in Linux's KVM.
    m.run().unwrap();
    assert_eq!(ready(), 1);
    queue(0x33).unwrap();
    assert_eq!(queue(0x34), Err(Errno::EEXIST));
    m.script.take_notes();
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [interrupt(0x33)]);
    write_apic(&m, 0x350, 0x1_0700).unwrap();
    queue(0x34).unwrap();
    m.run().unwrap();
    assert_eq!((m.script.take_injected(), ready()), (std::vec![], 0));
    write_apic(&m, 0x350, 0x700).unwrap();
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [interrupt(0x34)]);
    assert_eq!(Machine::with_irqchip().ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq: 3 }).map(drop), Err(Errno::ENXIO));
}

#[test]
fn it_is_chosen_once_and_before_vcpus() {
    let enable = |m: &Machine, pins| {
        let mut cap = KvmEnableCap { cap: KVM_CAP_SPLIT_IRQCHIP, ..KvmEnableCap::default() };
        cap.args[0] = pins;
        m.vm_ioctl(KVM_ENABLE_CAP, &mut cap).map(drop)
    };
    assert_eq!(enable(&Machine::new(), 24), Err(Errno::EEXIST));
    assert_eq!(enable(&Machine::new(), 4097), Err(Errno::EINVAL));
    assert_eq!(enable(&Machine::with_irqchip(), 24), Err(Errno::EEXIST));
    let m = Machine::split_irqchip();
    assert_eq!(m.vm.ioctl(KVM_CREATE_IRQCHIP, 0, &cx()).map(drop), Err(Errno::EEXIST));
    assert_eq!(m.vm_ioctl(KVM_GET_IRQCHIP, &mut KvmIrqchip::default()).map(drop), Err(Errno::ENXIO));
}

/// The client's 8259A has an interrupt, but the guest has closed LINT0 to it: the guest goes on.
#[test]
fn no_window_opens_for_a_client_that_the_local_apic_does_not_listen_to() {
    let m = machine();
    for (lint0, opens) in [(0x1_0700, false), (0x700, true)] {
        write_apic(&m, 0x350, lint0).unwrap();
        m.script.take_notes();
        m.set_run_field(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET as u64, 1u8);
        let reason = if opens { KVM_EXIT_IRQ_WINDOW_OPEN } else { KVM_EXIT_UNKNOWN };
        assert_eq!(m.run(), Ok(reason));
        let asked = m.script.take_notes().contains(&Note::Window { interrupt: true, nmi: false });
        assert!(!asked, "a window was asked for that could not be used, or that was open");
        m.set_run_field(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET as u64, 0u8);
    }
}
