//! Interrupts, NMIs and exceptions: none is lost, none comes twice, none at the wrong moment.
use abi::*;
use x86::{Exception, Shadow, Vector, flags};

use crate::{
    Errno,
    backend::{Event, EventKind, Exit},
    testing::{Machine, script::Note},
};

const fn interrupt(vector: u8) -> Event {
    Event { kind: EventKind::Interrupt(vector) }
}

fn queue(m: &Machine, irq: u32) {
    m.ioctl(KVM_INTERRUPT, &mut KvmInterrupt { irq }).unwrap();
}

fn open(m: &Machine, yes: bool) {
    m.state(|s| s.flags.set(if yes { flags::IF } else { 0 }));
}

#[test]
fn a_queued_interrupt_is_injected_when_the_guest_can_take_it() {
    let m = Machine::new();
    open(&m, true);
    queue(&m, 0x31);
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [interrupt(0x31)]);
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), []);
}

#[test]
fn it_waits_for_if_and_for_the_shadow() {
    for (enabled, shadow) in [(false, Shadow::None), (true, Shadow::Sti), (true, Shadow::MovSs)] {
        let m = Machine::new();
        open(&m, enabled);
        m.state(|s| s.shadow = shadow);
        queue(&m, 0x31);
        m.script.entry(|s, _| {
            s.flags.set(flags::IF);
            s.shadow = Shadow::None;
            Exit::InterruptWindow
        });
        m.run().unwrap();
        let notes = m.script.take_notes();
        let window = Note::Window { interrupt: true, nmi: false };
        assert_eq!(notes[..3], [window, Note::Entered, Note::Injected(interrupt(0x31))]);
    }
}

#[test]
fn an_interrupt_cut_short_is_injected_again_before_anything_else() {
    let m = Machine::new();
    open(&m, true);
    queue(&m, 0x31);
    *m.script.cut_short.lock().unwrap() = true;
    // Delivery met an exit; meanwhile a higher vector came and IF is as it will be.
    m.script.entry(|s, _| {
        s.flags.set(0);
        Exit::Interrupted
    });
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [interrupt(0x31), interrupt(0x31)]);
}

#[test]
fn an_interrupt_cut_short_shows_in_sregs_and_events() {
    let m = Machine::new();
    open(&m, true);
    queue(&m, 0x31);
    *m.script.cut_short.lock().unwrap() = true;
    m.script.exit(Exit::Shutdown);
    m.run().unwrap();
    assert_eq!(m.get::<KvmSregs>(KVM_GET_SREGS).interrupt_bitmap, [1 << 0x31, 0, 0, 0]);
    let events: KvmVcpuEvents = m.get(KVM_GET_VCPU_EVENTS);
    assert_eq!((events.interrupt.injected, events.interrupt.nr), (1, 0x31));
    // Saved and restored.
    let other = Machine::new();
    open(&other, true);
    let mut events = events;
    other.ioctl(KVM_SET_VCPU_EVENTS, &mut events).unwrap();
    other.run().unwrap();
    assert_eq!(other.script.take_injected(), [interrupt(0x31)]);
}

#[test]
fn the_client_is_told_when_the_window_opens() {
    let m = Machine::new();
    open(&m, false);
    m.set_run_field(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET as u64, 1u8);
    m.script.entry(|s, _| {
        s.flags.set(flags::IF);
        Exit::InterruptWindow
    });
    assert_eq!(m.run(), Ok(KVM_EXIT_IRQ_WINDOW_OPEN));
    assert_eq!(m.run_field::<[u8; 2]>(KVM_RUN_READY_FOR_INTERRUPT_INJECTION_OFFSET as u64), [1, 1]);
    queue(&m, 0x20);
    m.set_run_field(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET as u64, 0u8);
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [interrupt(0x20)]);
}

#[test]
fn nmis_wait_while_one_is_handled() {
    let m = Machine::new();
    m.vcpu.ioctl(KVM_NMI, 0, &crate::testing::cx()).unwrap();
    *m.script.nmi_blocked.lock().unwrap() = true;
    m.script.exit(Exit::Interrupted);
    m.run().unwrap();
    let notes = m.script.take_notes();
    assert!(notes.contains(&Note::Window { interrupt: false, nmi: true }));
    assert!(!notes.iter().any(|n| matches!(n, Note::Injected(_))));
    *m.script.nmi_blocked.lock().unwrap() = false;
    m.run().unwrap();
    assert_eq!(m.script.take_injected(), [Event { kind: EventKind::Nmi }]);
}

#[test]
fn vcpu_events_round_trip() {
    let m = Machine::new();
    let mut cap = KvmEnableCap { cap: KVM_CAP_EXCEPTION_PAYLOAD, args: [1, 0, 0, 0], ..KvmEnableCap::default() };
    m.vm_ioctl(KVM_ENABLE_CAP, &mut cap).unwrap();
    let mut events = KvmVcpuEvents { exception_has_payload: 1, exception_payload: 0x1234, ..KvmVcpuEvents::default() };
    events.exception.pending = 1;
    events.exception.nr = 14;
    events.exception.has_error_code = 1;
    events.exception.error_code = 6;
    events.nmi.pending = 1;
    events.nmi.masked = 1;
    events.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
    events.flags = KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
    m.ioctl(KVM_SET_VCPU_EVENTS, &mut events).unwrap();
    let back: KvmVcpuEvents = m.get(KVM_GET_VCPU_EVENTS);
    assert_eq!((back.exception, back.nmi, back.interrupt), (events.exception, events.nmi, events.interrupt));
    assert_eq!((back.exception_has_payload, back.exception_payload), (1, 0x1234));
    m.run().unwrap();
    let pf = EventKind::Exception(Exception::page_fault(0x1234, 6));
    assert_eq!(m.script.take_injected(), [Event { kind: pf }]);
    for bad in [
        KvmVcpuEvents { flags: 1 << 31, ..events },
        KvmVcpuEvents { exception: KvmEventException { nr: 2, ..events.exception }, ..events },
        KvmVcpuEvents { exception: KvmEventException { nr: 32, ..events.exception }, ..events },
    ] {
        let mut bad = bad;
        assert_eq!(m.ioctl(KVM_SET_VCPU_EVENTS, &mut bad).unwrap_err(), Errno::EINVAL);
    }
}

#[test]
fn a_fault_while_a_fault_is_delivered_is_double() {
    let m = Machine::new();
    let gp = Exception::with_code(Vector::GP, 0);
    m.script.exit(Exit::Exception { exception: gp });
    *m.script.cut_short.lock().unwrap() = false;
    // The first entry raises #GP; its delivery is cut short by an intercepted #GP; that again by another.
    let script = m.script.clone();
    m.script.entry(move |_, _| Exit::Exception { exception: gp });
    m.run().unwrap();
    drop(script);
    // Delivered each time: no double fault.
    let kinds = [EventKind::Exception(gp), EventKind::Exception(gp)].map(|kind| Event { kind });
    assert_eq!(m.script.take_injected(), kinds);
    let mut events = KvmVcpuEvents::default();
    (events.exception.injected, events.exception.nr, events.exception.has_error_code) = (1, 13, 1);
    m.ioctl(KVM_SET_VCPU_EVENTS, &mut events).unwrap();
    *m.script.cut_short.lock().unwrap() = true;
    m.script.exit(Exit::Exception { exception: gp });
    *m.script.cut_short.lock().unwrap() = true;
    m.run().unwrap();
    let df = Exception::with_code(Vector::DF, 0);
    assert_eq!(m.script.take_injected()[1], Event { kind: EventKind::Exception(df) });
}

#[test]
fn no_window_is_asked_for_that_could_never_be_used() {
    // With the controllers in the hypervisor the client's wish for a window means nothing.
    let m = Machine::with_irqchip();
    open(&m, true);
    m.set_run_field(KVM_RUN_REQUEST_INTERRUPT_WINDOW_OFFSET as u64, 1u8);
    assert_eq!(m.run(), Ok(KVM_EXIT_UNKNOWN));
    assert_eq!(m.script.take_notes()[0], Note::Window { interrupt: false, nmi: false });
}

#[test]
fn an_nmi_waits_behind_sti_and_mov_ss() {
    for shadow in [Shadow::Sti, Shadow::MovSs] {
        let m = Machine::with_irqchip();
        open(&m, true);
        m.vcpu.ioctl(KVM_NMI, 0, &crate::testing::cx()).unwrap();
        m.state(|s| s.shadow = shadow);
        m.run().unwrap();
        assert_eq!(m.script.take_notes()[0], Note::Window { interrupt: false, nmi: true });
        m.state(|s| s.shadow = Shadow::None);
        m.run().unwrap();
        assert_eq!(m.script.take_injected(), [Event { kind: EventKind::Nmi }]);
    }
}

#[test]
fn an_event_that_cannot_be_delivered_is_no_instruction_to_emulate() {
    let m = Machine::new();
    open(&m, true);
    queue(&m, 0x31);
    *m.script.cut_short.lock().unwrap() = true;
    m.script.exit(Exit::NestedPageFault { gpa: 0x2_0000, access: crate::backend::Access::Write, table_walk: false });
    assert_eq!(m.run(), Ok(KVM_EXIT_INTERNAL_ERROR));
    assert_eq!(m.payload::<KvmRunInternal>().suberror, KVM_INTERNAL_ERROR_DELIVERY_EV);
}
