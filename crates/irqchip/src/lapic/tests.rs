//! Behaviour of the local APIC by the SDM, vol. 3, chapter 11, and robustness.
extern crate std;

use abi::KvmLapicState;
use proptest::prelude::*;
use std::{vec, vec::Vec};

use super::*;
use crate::shared::Accept;

const T0: Now = Now { ns: 0, tsc: 0 };

fn ns(ns: u64) -> Now {
    Now { ns, tsc: 0 }
}

fn read(lapic: &mut Lapic<&LapicShared>, offset: u64, now: Now) -> u32 {
    let mut data = [0; 4];
    lapic.mmio_read(offset, &mut data, now);
    u32::from_le_bytes(data)
}

fn write(lapic: &mut Lapic<&LapicShared>, offset: u64, value: u32, now: Now) -> Effects {
    lapic.mmio_write(offset, &value.to_le_bytes(), now)
}

/// A software-enabled APIC of an application processor.
fn enabled(shared: &LapicShared) -> Lapic<&LapicShared> {
    let mut lapic = Lapic::new(shared, Config::default());
    let _ = write(&mut lapic, 0xf0, 0x1ff, T0);
    lapic
}

fn x2apic(shared: &LapicShared) -> Lapic<&LapicShared> {
    let mut lapic = enabled(shared);
    let base = lapic.apic_base() | APIC_BASE_EXTD;
    lapic.set_apic_base(base, false).unwrap();
    lapic
}

#[test]
fn reset_values() {
    let shared = LapicShared::new(5);
    let mut lapic = Lapic::new(&shared, Config::default());
    for (offset, value) in [
        (0x20, 5 << 24),
        (0x30, 0x0005_0014),
        (0x80, 0),
        (0xa0, 0),
        (0xd0, 0),
        (0xe0, 0xffff_ffff),
        (0xf0, 0xff),
        (0x280, 0),
        (0x300, 0),
        (0x320, 0x1_0000),
        (0x350, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
        (0x390, 0),
        (0x3e0, 0),
    ] {
        assert_eq!(read(&mut lapic, offset, T0), value, "{offset:#x}");
    }
    assert_eq!(lapic.apic_base(), 0xfee0_0800);
    assert_eq!(lapic.mmio_base(), Some(0xfee0_0000));
    assert!(!lapic.accepts_pic());
    let bsp = Lapic::new(&shared, Config { bsp: true, cmci: true, ..Config::default() });
    assert_eq!(bsp.apic_base(), 0xfee0_0900);
    assert_eq!(bsp.version(), 0x0006_0014);
    assert!(bsp.accepts_pic() && shared.identity().accepts_pic);
}

#[test]
fn priorities() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    // (task priority, in service, requested, pending)
    for (tpr, serving, requested, pending) in [
        (0x00, None, 0x31, Some(0x31)),
        (0x20, None, 0x31, Some(0x31)),
        (0x2f, None, 0x31, Some(0x31)),
        (0x30, None, 0x3f, None),
        (0x00, Some(0x30), 0x3f, None),
        (0x00, Some(0x30), 0x40, Some(0x40)),
        (0x50, Some(0x30), 0x40, None),
        (0xff, None, 0xff, None),
    ] {
        lapic.init();
        let _ = write(&mut lapic, 0xf0, 0x1ff, T0);
        if let Some(v) = serving {
            shared.set_vector(v, Trigger::Edge);
            lapic.accept(v);
        }
        let _ = write(&mut lapic, 0x80, tpr, T0);
        shared.set_vector(requested, Trigger::Edge);
        assert_eq!(lapic.pending_vector(), pending, "{tpr:#x} {serving:?} {requested:#x}");
        assert_eq!(lapic.requested_vector(), Some(requested));
        assert_eq!(u32::from(shared.ppr()), read(&mut lapic, 0xa0, T0));
    }
}

#[test]
fn processor_priority_is_the_task_priority_or_the_served_class() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    shared.set_vector(0x45, Trigger::Edge);
    lapic.accept(0x45);
    for (tpr, ppr) in [(0, 0x40), (0x3f, 0x40), (0x43, 0x43), (0x71, 0x71)] {
        lapic.set_tpr(tpr);
        assert_eq!(lapic.ppr(), ppr);
    }
}

#[test]
fn cr8_is_the_task_priority() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    lapic.set_cr8(9).unwrap();
    assert_eq!((lapic.tpr(), lapic.cr8()), (0x90, 9));
    assert_eq!(lapic.set_cr8(16), Err(GeneralProtection));
    assert_eq!(lapic.tpr(), 0x90);
}

#[test]
fn ends_of_interrupt_go_by_priority_and_tell_the_trigger() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    shared.set_vector(0x31, Trigger::Level);
    lapic.accept(0x31);
    shared.set_vector(0x52, Trigger::Edge);
    lapic.accept(0x52);
    assert!(lapic.in_service(0x31) && lapic.in_service(0x52));
    assert_eq!(shared.highest_request(), None);
    let eoi = write(&mut lapic, 0xb0, 0, T0).eoi.unwrap();
    assert_eq!((eoi.vector, eoi.trigger), (0x52, Trigger::Edge));
    let eoi = lapic.eoi().unwrap();
    assert_eq!((eoi.vector, eoi.trigger, eoi.suppressed), (0x31, Trigger::Level, false));
    assert_eq!(lapic.eoi(), None);
}

#[test]
fn directed_eoi() {
    let shared = LapicShared::new(0);
    let mut lapic = Lapic::new(&shared, Config { directed_eoi: true, ..Config::default() });
    assert_eq!(lapic.version() >> 24, 1);
    let _ = write(&mut lapic, 0xf0, 0x11ff, T0);
    shared.set_vector(0x31, Trigger::Level);
    lapic.accept(0x31);
    assert!(lapic.eoi().unwrap().suppressed);
    lapic.set_config(Config::default());
    let _ = write(&mut lapic, 0xf0, 0x11ff, T0);
    assert_eq!(read(&mut lapic, 0xf0, T0), 0x1ff);
}

#[test]
fn software_disable_masks_the_table_and_drops_messages() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x320, 0x40, T0);
    let _ = write(&mut lapic, 0x350, 0x700, T0);
    assert!(lapic.accepts_pic());
    let _ = write(&mut lapic, 0xf0, 0xff, T0);
    assert!(!lapic.accepts_pic());
    assert_eq!(read(&mut lapic, 0x320, T0), 0x1_0040);
    let _ = write(&mut lapic, 0x320, 0x40, T0);
    assert_eq!(read(&mut lapic, 0x320, T0), 0x1_0040);
    assert_eq!(shared.accept(&Message::fixed(0, 0x40)), Accept::Dropped);
}

#[test]
fn local_vector_table() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    for (offset, mask) in [
        (0x320, 0x7_00ffu32),
        (0x330, 0x1_07ff),
        (0x340, 0x1_07ff),
        (0x350, 0x1_a7ff),
        (0x360, 0x1_a7ff),
        (0x370, 0x1_00ff),
    ] {
        let _ = write(&mut lapic, offset, u32::MAX, T0);
        assert_eq!(read(&mut lapic, offset, T0), mask, "{offset:#x}");
    }
    let _ = write(&mut lapic, 0x360, 0x400, T0);
    assert_eq!(lapic.raise(Lvt::Lint1), Accept::Delivered);
    assert!(shared.take_nmi());
    let _ = write(&mut lapic, 0x340, 0xfe, T0);
    lapic.raise(Lvt::Performance);
    assert_eq!(shared.highest_request(), Some(0xfe));
    assert_eq!(lapic.lvt(Lvt::Performance), 0x1_00fe, "masks itself");
    let _ = write(&mut lapic, 0x330, 0x200, T0);
    lapic.raise(Lvt::Thermal);
    assert!(shared.take_smi());
    assert_eq!(lapic.raise(Lvt::Cmci), Accept::Dropped);
}

#[test]
fn one_shot_timer() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x320, 0x40, T0);
    let _ = write(&mut lapic, 0x3e0, 0x3, T0);
    assert!(write(&mut lapic, 0x380, 1000, ns(100)).timer);
    assert_eq!(lapic.next_deadline(), Some(Deadline::Nanoseconds(16_100)));
    assert_eq!(read(&mut lapic, 0x390, ns(100)), 1000);
    assert_eq!(read(&mut lapic, 0x390, ns(100 + 16 * 250)), 750);
    assert!(!lapic.timer_expired(ns(16_099)));
    assert!(lapic.timer_expired(ns(16_100)));
    assert_eq!(lapic.pending_vector(), Some(0x40));
    assert_eq!((lapic.next_deadline(), read(&mut lapic, 0x390, ns(16_100))), (None, 0));
    assert!(!lapic.timer_expired(ns(1 << 40)));
    let _ = write(&mut lapic, 0x380, 1000, ns(0));
    let _ = write(&mut lapic, 0x380, 0, ns(0));
    assert_eq!(lapic.next_deadline(), None);
}

#[test]
fn periodic_timer_merges_missed_periods_and_keeps_phase() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x320, 0x2_0040, T0);
    let _ = write(&mut lapic, 0x3e0, 0xb, T0);
    let _ = write(&mut lapic, 0x380, 1_000_000, T0);
    assert_eq!(read(&mut lapic, 0x390, ns(1_250_000)), 750_000, "also before the expiry is handled");
    assert!(lapic.timer_expired(ns(3_500_000)));
    assert!(!lapic.timer_expired(ns(3_500_000)));
    assert_eq!(lapic.next_deadline(), Some(Deadline::Nanoseconds(4_000_000)));
    assert_eq!(read(&mut lapic, 0x390, ns(3_500_000)), 500_000);
    // A period that is too short is stretched.
    let _ = write(&mut lapic, 0x380, 1, T0);
    assert_eq!(lapic.next_deadline(), Some(Deadline::Nanoseconds(200_000)));
    assert_eq!(read(&mut lapic, 0x390, T0), 1);
}

#[test]
fn tsc_deadline() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    assert!(!lapic.set_tsc_deadline(50).timer);
    assert_eq!(lapic.tsc_deadline(), 0, "another mode");
    let _ = write(&mut lapic, 0x320, 0x4_0040, T0);
    assert!(lapic.set_tsc_deadline(50).timer);
    assert_eq!(lapic.next_deadline(), Some(Deadline::Tsc(50)));
    assert!(!lapic.timer_expired(Now { ns: 1 << 50, tsc: 49 }));
    assert!(lapic.timer_expired(Now { ns: 0, tsc: 50 }));
    assert_eq!((lapic.tsc_deadline(), lapic.next_deadline()), (0, None));
    assert_eq!(lapic.pending_vector(), Some(0x40));
    let _ = lapic.set_tsc_deadline(60);
    let _ = lapic.set_tsc_deadline(0);
    assert_eq!(lapic.next_deadline(), None);
    let _ = write(&mut lapic, 0x380, 1000, T0);
    assert_eq!(read(&mut lapic, 0x380, T0), 0, "the initial count is ignored in this mode");
    let _ = lapic.set_tsc_deadline(60);
    let _ = write(&mut lapic, 0x320, 0x40, T0);
    assert_eq!(lapic.next_deadline(), None, "disarmed by the change of mode");
    let _ = write(&mut lapic, 0x320, 0x4_0040, T0);
    assert_eq!(lapic.next_deadline(), None, "and not armed again by changing back");
    let _ = write(&mut lapic, 0x320, 0x40, T0);
    let _ = write(&mut lapic, 0x380, 1000, T0);
    let _ = write(&mut lapic, 0x320, 0x4_0040, T0);
    let _ = write(&mut lapic, 0x320, 0x40, T0);
    assert_eq!(lapic.next_deadline(), None, "nor the other way round");
    let without = Config { tsc_deadline: false, ..Config::default() };
    lapic.set_config(without);
    let _ = write(&mut lapic, 0x320, 0x4_0040, T0);
    assert_eq!(read(&mut lapic, 0x320, T0), 0x40);
}

#[test]
fn changing_the_timers_mode_keeps_the_count() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x3e0, 0xb, T0);
    let _ = write(&mut lapic, 0x380, 1_000_000, T0);
    let _ = write(&mut lapic, 0x320, 0x2_0040, ns(400_000));
    assert_eq!(read(&mut lapic, 0x390, ns(400_000)), 600_000);
    assert!(lapic.timer_expired(ns(1_000_000)));
    assert_eq!(read(&mut lapic, 0x390, ns(1_100_000)), 900_000);
    let _ = write(&mut lapic, 0x320, 0x40, ns(1_100_000));
    assert!(lapic.timer_expired(ns(2_000_000)));
    assert_eq!(lapic.next_deadline(), None);
    let _ = write(&mut lapic, 0x320, 0x2_0040, ns(2_000_000));
    assert_eq!(lapic.next_deadline(), None, "a one-shot that is over is not started by the mode");
    assert_eq!(read(&mut lapic, 0x380, T0), 1_000_000);
}

#[test]
fn changing_the_divisor_keeps_the_count() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x3e0, 0xb, T0);
    let _ = write(&mut lapic, 0x380, 1000, T0);
    let _ = write(&mut lapic, 0x3e0, 0x0, ns(400));
    assert_eq!(read(&mut lapic, 0x390, ns(400)), 600);
    assert_eq!(lapic.next_deadline(), Some(Deadline::Nanoseconds(400 + 1200)));
}

#[test]
fn masked_timer_runs_silently() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x380, 10, T0);
    assert!(lapic.timer_expired(ns(20)));
    assert_eq!(shared.highest_request(), None);
}

#[test]
fn interrupt_commands() {
    use DeliveryMode as D;
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let base = Message::fixed(3, 0x40);
    for (high, low, expected) in [
        (3 << 24, 0x4040, base),
        (3 << 24, 0x40, base),
        (3 << 24, 0x0840, Message { dest_mode: DestMode::Logical, ..base }),
        (3 << 24, 0x0140, Message { delivery_mode: D::LowestPriority, ..base }),
        (3 << 24, 0x4400, Message { delivery_mode: D::Nmi, vector: 0, ..base }),
        (3 << 24, 0x4699, Message { delivery_mode: D::StartUp, vector: 0x99, ..base }),
        (3 << 24, 0xc500, Message { delivery_mode: D::Init, vector: 0, trigger: Trigger::Level, ..base }),
        (
            3 << 24,
            0x8500,
            Message { delivery_mode: D::Init, vector: 0, trigger: Trigger::Level, assert: false, ..base },
        ),
        (0, 0x8_0040, Message { dest: 0, shorthand: Shorthand::AllIncludingSelf, ..base }),
        (0, 0xc_0040, Message { dest: 0, shorthand: Shorthand::AllExcludingSelf, ..base }),
    ] {
        let _ = write(&mut lapic, 0x310, high, T0);
        assert_eq!(write(&mut lapic, 0x300, low, T0).ipi, Some(expected), "{low:#x}");
    }
    assert_eq!(write(&mut lapic, 0x300, 0x4_0055, T0).ipi, None);
    assert_eq!(lapic.pending_vector(), Some(0x55), "to oneself at once");
}

#[test]
fn errors_are_latched_by_a_write_and_raise_the_error_interrupt() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x370, 0xfe, T0);
    assert_eq!(write(&mut lapic, 0x300, 0x0f, T0).ipi, None);
    assert_eq!(lapic.pending_vector(), Some(0xfe));
    assert_eq!(read(&mut lapic, 0x280, T0), 0);
    let _ = write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), ESR_SEND_ILLEGAL_VECTOR);
    read(&mut lapic, 0x40, T0);
    let _ = write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), ESR_ILLEGAL_REGISTER);
    shared.accept(&Message::fixed(0, 3));
    let _ = write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), ESR_RECEIVE_ILLEGAL_VECTOR);
    let _ = write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), 0);
    // The error entry itself with an illegal vector ends there.
    let _ = write(&mut lapic, 0x370, 0, T0);
    read(&mut lapic, 0x40, T0);
}

#[test]
fn widths_of_access() {
    let shared = LapicShared::new(0x12);
    let mut lapic = enabled(&shared);
    let mut one = [0];
    lapic.mmio_read(0x23, &mut one, T0);
    assert_eq!(one, [0x12]);
    let mut two = [0; 2];
    lapic.mmio_read(0x22, &mut two, T0);
    assert_eq!(two, [0, 0x12]);
    lapic.mmio_read(0x23, &mut two, T0);
    assert_eq!(two, [0, 0]);
    let mut eight = [0xaa; 8];
    lapic.mmio_read(0x20, &mut eight, T0);
    assert_eq!(eight, [0; 8]);
    for (offset, data) in [(0x80, &[0x50u8][..]), (0x84, &[0x50; 4]), (0x80, &[0x50; 8])] {
        let _ = lapic.mmio_write(offset, data, T0);
        assert_eq!(lapic.tpr(), 0);
    }
}

#[test]
fn transitions_of_the_base_register() {
    let (off, x, x2) = (0xfee0_0000u64, 0xfee0_0800u64, 0xfee0_0c00u64);
    for (from, to, by_guest, by_host) in [
        (x, x2, true, true),
        (x, off, true, true),
        (x2, off, true, true),
        (off, x, true, true),
        (x, 0xfed0_0800, true, true),
        (x2, x, false, true),
        (off, x2, false, true),
        (x, off | APIC_BASE_EXTD, false, false),
        (x, x | 1, false, false),
        (x, x | 1 << 46, false, false),
    ] {
        for (host, expected) in [(false, by_guest), (true, by_host)] {
            let shared = LapicShared::new(7);
            let mut lapic = Lapic::new(&shared, Config::default());
            lapic.set_apic_base(from, true).unwrap();
            assert_eq!(lapic.set_apic_base(to, host).is_ok(), expected, "{from:#x} {to:#x} {host}");
            assert_eq!(lapic.apic_base(), if expected { to } else { from });
            assert_eq!(shared.identity().x2apic, lapic.mode() == ApicMode::X2apic);
            assert_eq!(shared.identity().hardware_enabled, lapic.mode() != ApicMode::Disabled);
        }
    }
    let shared = LapicShared::new(7);
    let mut lapic = Lapic::new(&shared, Config { x2apic: false, ..Config::default() });
    assert!(lapic.set_apic_base(x2, false).is_err());
}

#[test]
fn switched_off_apic_forgets_and_passes_the_pic() {
    let shared = LapicShared::new(7);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x380, 1000, T0);
    shared.set_vector(0x40, Trigger::Edge);
    lapic.set_apic_base(APIC_BASE_DEFAULT, false).unwrap();
    assert_eq!((lapic.pending_vector(), lapic.next_deadline()), (None, None));
    assert!(lapic.accepts_pic());
    assert_eq!(read(&mut lapic, 0x30, T0), u32::MAX);
    assert_eq!(write(&mut lapic, 0x80, 0x50, T0), Effects::default());
    lapic.set_apic_base(APIC_BASE_DEFAULT | APIC_BASE_ENABLE, false).unwrap();
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!(read(&mut lapic, 0x20, T0), 7 << 24);
}

#[test]
fn timer_of_an_apic_that_the_client_switched_off_stands() {
    let shared = LapicShared::new(7);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x380, 1000, T0);
    lapic.set_apic_base(APIC_BASE_DEFAULT, true).unwrap();
    assert_eq!(lapic.next_deadline(), None);
    assert!(!lapic.timer_expired(ns(1 << 30)));
}

#[test]
fn init_keeps_id_base_and_mode() {
    let shared = LapicShared::new(7);
    let mut lapic = x2apic(&shared);
    shared.queue_init();
    shared.set_vector(0x40, Trigger::Edge);
    lapic.set_tpr(0x50);
    lapic.init();
    assert_eq!(lapic.mode(), ApicMode::X2apic);
    assert_eq!((lapic.tpr(), shared.highest_request()), (0, None));
    assert!(shared.take_init(), "taking INIT is the caller's");
    shared.queue_nmi();
    lapic.reset();
    assert_eq!(lapic.mode(), ApicMode::Xapic);
    assert!(!shared.has_events());
}

#[test]
fn x2apic_registers() {
    let shared = LapicShared::new(0x123);
    let mut lapic = x2apic(&shared);
    // (MSR, readable, value to write, accepted)
    for (msr, readable, value, writable) in [
        (0x800, false, 0u64, false),
        (0x802, true, 0x123, false),
        (0x803, true, 0, false),
        (0x808, true, 0x20, true),
        (0x808, true, 0x100, false),
        (0x809, false, 0, false),
        (0x80a, true, 0, false),
        (0x80b, false, 0, true),
        (0x80b, false, 1, false),
        (0x80c, false, 0, false),
        (0x80d, true, 0, false),
        (0x80e, false, 0, false),
        (0x80f, true, 0x1ff, true),
        (0x80f, true, 0x11ff, false),
        (0x810, true, 0, false),
        (0x817, true, 0, false),
        (0x818, true, 0, false),
        (0x820, true, 0, false),
        (0x827, true, 0, false),
        (0x828, true, 0, true),
        (0x828, true, 1, false),
        (0x82f, false, 0x1_0000, false),
        (0x830, true, 5 << 32 | 0x40, true),
        (0x830, true, 5 << 32 | 0x1040, true),
        (0x830, true, 0x2040, false),
        (0x830, true, 0x1_0040, false),
        (0x830, true, 0x10_0040, false),
        (0x831, false, 0, false),
        (0x832, true, 0x4_0040, true),
        (0x832, true, 0x8_0040, false),
        (0x832, true, 1 << 32, false),
        (0x833, true, 0x1_0400, true),
        (0x835, true, 0x1_f7ff, true),
        (0x837, true, 0x1_0040, true),
        (0x837, true, 0x1_0440, false),
        (0x838, true, 0xffff_ffff, true),
        (0x838, true, 0x1_0000_0000, false),
        (0x839, true, 0, false),
        (0x83e, true, 0xb, true),
        (0x83e, true, 0x4, false),
        (0x83f, false, 0x40, true),
        (0x83f, false, 0x140, false),
        (0x840, false, 0, false),
        (0x8ff, false, 0, false),
        (0x7ff, false, 0, false),
        (0x900, false, 0, false),
    ] {
        assert_eq!(lapic.x2apic_read(msr, T0).is_ok(), readable, "read {msr:#x}");
        assert_eq!(lapic.x2apic_write(msr, value, T0).is_ok(), writable, "{msr:#x} {value:#x}");
    }
    assert_eq!(lapic.x2apic_read(0x802, T0), Ok(0x123));
    assert_eq!(lapic.x2apic_read(0x80d, T0), Ok(0x12 << 16 | 1 << 3));
    assert_eq!(lapic.x2apic_read(0x830, T0), Ok(5 << 32 | 0x40));
    assert_eq!(shared.highest_request(), Some(0x40), "self IPI");
    let mut plain = enabled(&shared);
    assert!(plain.x2apic_read(0x802, T0).is_err() && plain.x2apic_write(0x808, 0, T0).is_err());
}

#[test]
fn x2apic_command_names_32_bits() {
    let shared = LapicShared::new(0);
    let mut lapic = x2apic(&shared);
    let ipi = lapic.x2apic_write(0x830, 0x1234_5678 << 32 | 0x40, T0).unwrap().ipi.unwrap();
    assert_eq!(ipi.dest, 0x1234_5678);
    assert_eq!(read(&mut lapic, 0x20, T0), u32::MAX, "no registers in memory");
}

fn word(state: &KvmLapicState, offset: usize) -> u32 {
    u32::from_le_bytes(state.regs[offset..offset + 4].try_into().unwrap())
}

#[test]
fn state_formats_of_the_id() {
    let shared = LapicShared::new(0x12);
    let lapic = enabled(&shared);
    assert_eq!(word(&lapic.state(false, T0), 0x20), 0x12 << 24);
    assert_eq!(word(&lapic.state(true, T0), 0x20), 0x12 << 24, "xAPIC mode has one format");
    let mut lapic = x2apic(&shared);
    assert_eq!(word(&lapic.state(false, T0), 0x20), 0x12 << 24);
    let mut state = lapic.state(true, T0);
    assert_eq!(word(&state, 0x20), 0x12);
    assert_eq!(word(&state, 0xd0), 1 << 16 | 1 << 2);
    state.regs[0x20] = 0x13;
    assert_eq!(lapic.set_state(&state, true, T0), Err(StateError));
    assert_eq!(lapic.set_state(&state, false, T0), Ok(()));
    let _ = lapic.x2apic_write(0x830, 0xdead_beef_0000_0040, T0);
    let state = lapic.state(true, T0);
    assert_eq!((word(&state, 0x300), word(&state, 0x310)), (0x40, 0xdead_beef));
}

#[test]
fn bootstrap_processor_still_takes_the_pic_after_a_restore() {
    let (one, two) = (LapicShared::new(0), LapicShared::new(0));
    let config = Config { bsp: true, ..Config::default() };
    let state = Lapic::new(&one, config).state(false, T0);
    let mut lapic = Lapic::new(&two, Config::default());
    lapic.set_state(&state, false, T0).unwrap();
    assert!(lapic.accepts_pic() && !lapic.software_enabled());
}

#[test]
fn restored_timer_goes_on() {
    let shared = LapicShared::new(0);
    let mut lapic = enabled(&shared);
    let _ = write(&mut lapic, 0x3e0, 0xb, T0);
    let _ = write(&mut lapic, 0x380, 1_000_000, T0);
    let state = lapic.state(false, ns(400_000));
    let later = ns(50_000_000);
    lapic.set_state(&state, false, later).unwrap();
    assert_eq!(lapic.next_deadline(), Some(Deadline::Nanoseconds(50_600_000)));
}

#[derive(Clone, Debug)]
enum Op {
    Read(u64, usize),
    Write(u64, u32),
    WriteWide(u64, Vec<u8>),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Base(u64),
    Deadline(u64),
    Request(u8, bool),
    Take,
    Raise(u8),
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Small values are the interesting ones of most registers.
    let value = prop_oneof![any::<u32>(), 0u32..0x800, (0u32..0x800).prop_map(|v| v | 1 << 17)];
    let wide = prop_oneof![
        any::<u64>(),
        0u64..0x800,
        (0u64..0x2_0000, any::<u32>()).prop_map(|(l, h)| l | u64::from(h) << 32)
    ];
    let base =
        prop_oneof![Just(0xfee0_0000u64), Just(0xfee0_0800), Just(0xfee0_0c00), Just(0xfee0_0400), any::<u64>(),];
    let op = prop_oneof![
        2 => (0u64..0x1100, 0usize..9).prop_map(|(o, l)| Op::Read(o, l)),
        8 => (0u64..0x40, value).prop_map(|(r, v)| Op::Write(r * 16, v)),
        1 => Just(Op::Write(0xf0, 0x1ff)),
        1 => (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..9)).prop_map(|(o, d)| Op::WriteWide(o, d)),
        2 => (0x7f0u32..0x910).prop_map(Op::ReadMsr),
        6 => (0x800u32..0x840, wide).prop_map(|(m, v)| Op::WriteMsr(m, v)),
        1 => base.prop_map(Op::Base),
        1 => (0u64..1000).prop_map(Op::Deadline),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(v, l)| Op::Request(v, l)),
        4 => Just(Op::Take),
        1 => (0u8..7).prop_map(Op::Raise),
        4 => (0u64..1000).prop_map(Op::Wait),
    ];
    proptest::collection::vec(op, 0..60)
}

/// All that can be seen from outside.
fn run(
    lapic: &mut Lapic<&LapicShared>,
    op: &Op,
    now: Now,
) -> (std::string::String, Option<u8>, Option<Deadline>, bool, Identity) {
    let seen = match op {
        Op::Read(offset, len) => {
            let mut data = [0; 8];
            lapic.mmio_read(*offset, &mut data[..*len], now);
            std::format!("{data:?}")
        }
        Op::Write(offset, value) => std::format!("{:?}", write(lapic, *offset, *value, now)),
        Op::WriteWide(offset, data) => {
            std::format!("{:?}", lapic.mmio_write(*offset, data, now))
        }
        Op::ReadMsr(msr) => std::format!("{:?}", lapic.x2apic_read(*msr, now)),
        Op::WriteMsr(msr, value) => std::format!("{:?}", lapic.x2apic_write(*msr, *value, now)),
        Op::Base(value) => std::format!("{:?}", lapic.set_apic_base(*value, false)),
        Op::Deadline(tsc) => std::format!("{:?}", lapic.set_tsc_deadline(*tsc)),
        Op::Request(v, level) => {
            let trigger = if *level { Trigger::Level } else { Trigger::Edge };
            std::format!("{:?}", lapic.shared().set_vector(*v, trigger))
        }
        Op::Take => {
            let vector = lapic.pending_vector();
            if let Some(v) = vector {
                lapic.accept(v);
            }
            std::format!("{vector:?}")
        }
        Op::Raise(n) => std::format!("{:?}", lapic.raise(Lvt::ALL[usize::from(*n)])),
        Op::Wait(_) => "".into(),
    };
    let fired = lapic.timer_expired(now);
    (seen, lapic.pending_vector(), lapic.next_deadline(), fired, lapic.shared().identity())
}

fn advance(now: &mut Now, op: &Op) {
    if let Op::Wait(ns) = op {
        now.ns += ns;
        now.tsc += ns;
    }
}

proptest! {
    #[test]
    fn any_input_any_state(
        regs in proptest::collection::vec(any::<u8>(), 1024),
        mode in 0u64..4,
        ops in ops(),
        times in any::<[u64; 4]>(),
    ) {
        let shared = LapicShared::new(times[0] as u32);
        let mut lapic = Lapic::new(&shared, Config { cmci: mode & 1 != 0, directed_eoi: mode & 2 != 0, ..Config::default() });
        let _ = lapic.set_apic_base(0xfee0_0000 | mode << 10, true);
        let state = KvmLapicState { regs: regs.try_into().unwrap() };
        let _ = lapic.set_state(&state, false, ns(times[1]));
        for (n, op) in ops.iter().enumerate() {
            run(&mut lapic, op, Now { ns: times[n % 4], tsc: times[(n + 1) % 4] });
            prop_assert!(lapic.pending_vector().is_none_or(|v| v >= 16));
        }
        // Every interrupt in service ends, and there are no more than vectors.
        let mut ends = 0;
        while lapic.eoi().is_some() { ends += 1; }
        prop_assert!(ends <= 240);
        prop_assert_eq!(lapic.ppr(), lapic.tpr());
    }

    #[test]
    fn a_saved_apic_goes_on_alike(before in ops(), after in ops(), ids_32bit in any::<bool>()) {
        // One nanosecond a count: the state's resolution is then the clock's.
        let config = Config { bsp: true, min_period_ns: 0, ..Config::default() };
        let exact = |op: &Op| !matches!(op, Op::Write(0x3e0, _) | Op::WriteMsr(0x83e, _));
        let (one, two) = (LapicShared::new(0x1_0023), LapicShared::new(0x1_0023));
        let mut lapic = Lapic::new(&one, config);
        let mut now = Now { ns: 5_000, tsc: 100 };
        let _ = write(&mut lapic, 0x3e0, 0xb, now);
        let off = |op: &Op| matches!(op, Op::Base(b) if b & APIC_BASE_ENABLE == 0);
        for op in before.iter().filter(|op| exact(op) && !off(op)) {
            advance(&mut now, op);
            run(&mut lapic, op, now);
        }
        // Not part of this state: errors that software has not latched, and events (KVM_GET_VCPU_EVENTS).
        one.take_errors();
        one.take_smi();
        one.take_init();
        while one.take_nmi() {}
        // A periodic timer that stands (a one-shot was over when the mode changed) starts at a restore.
        let periodic = lapic.lvt(Lvt::Timer) & 3 << 17 == 1 << 17;
        let standing = lapic.next_deadline().is_none() && lapic.mode() != ApicMode::Disabled;
        prop_assume!(!(periodic && standing && word(&lapic.state(false, now), 0x380) != 0));
        let mut other = Lapic::new(&two, config);
        other.set_apic_base(lapic.apic_base(), true).unwrap();
        let ids_32bit = ids_32bit && lapic.mode() == ApicMode::X2apic;
        other.set_state(&lapic.state(ids_32bit, now), ids_32bit, now).unwrap();
        let _ = other.set_tsc_deadline(lapic.tsc_deadline());
        let (a, b) = (lapic.state(false, now), other.state(false, now));
        prop_assert_eq!((0..1024).find(|&n| a.regs[n] != b.regs[n]), None, "first register that differs");
        for op in after.iter().filter(|op| exact(op)) {
            advance(&mut now, op);
            prop_assert_eq!(run(&mut lapic, op, now), run(&mut other, op, now), "{:?}", op);
        }
    }
}
