//! Behaviour of the 8254 by its data sheet, the tick, and robustness.
extern crate std;

use abi::{KvmPitState2, Pod};
use proptest::prelude::*;
use std::vec::Vec;

use super::*;

/// A moment at which exactly `n` counts have passed since 0.
fn at(n: u64) -> u64 {
    nanoseconds(n)
}

fn program(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: u64) {
    pit.write(0x43, channel << 6 | 0x30 | mode << 1, now);
    let [low, high] = count.to_le_bytes();
    pit.write(0x40 + u16::from(channel), low, now);
    pit.write(0x40 + u16::from(channel), high, now);
}

fn latch(pit: &mut Pit, channel: u8, now: u64) -> u16 {
    pit.write(0x43, channel << 6, now);
    let port = 0x40 + u16::from(channel);
    u16::from_le_bytes([pit.read(port, || now), pit.read(port, || now)])
}

fn out2(pit: &Pit, now: u64) -> bool {
    pit.speaker_read(now) & 0x20 != 0
}

#[test]
fn conversion_is_exact_at_each_count() {
    for n in [0, 1, 2, 3, 1000, 65536, 1_193_182, 123_456_789_012] {
        assert_eq!(counts(nanoseconds(n)), n);
        if n > 0 {
            assert_eq!(counts(nanoseconds(n) - 1), n - 1);
        }
    }
    assert_eq!(nanoseconds(PIT_HZ), 1_000_000_000);
}

#[test]
fn values_while_counting() {
    // (mode, count, counts passed, value)
    for (mode, count, passed, value) in [
        (0, 100, 0, 100),
        (0, 100, 99, 1),
        (0, 100, 100, 0),
        (0, 100, 101, 0xffff),
        (2, 100, 0, 100),
        (2, 100, 99, 1),
        (2, 100, 100, 100),
        (3, 100, 1, 98),
        (3, 100, 50, 100),
        (4, 100, 40, 60),
        (0, 0, 1, 0xffff),
        (2, 0, 0, 0),
    ] {
        let mut pit = Pit::new();
        program(&mut pit, 0, mode, count, 0);
        assert_eq!(latch(&mut pit, 0, at(passed)), value, "mode {mode} after {passed}");
    }
}

#[test]
fn binary_coded_decimal() {
    let mut pit = Pit::new();
    pit.write(0x43, 0x31, 0);
    pit.write(0x40, 0x00, 0);
    pit.write(0x40, 0x12, 0);
    assert_eq!(latch(&mut pit, 0, at(1)), 0x1199);
    assert_eq!(latch(&mut pit, 0, at(1201)), 0x9999);
    pit.write(0x43, 0x31, 0);
    pit.write(0x40, 0, 0);
    pit.write(0x40, 0, 0);
    assert_eq!(latch(&mut pit, 0, at(0)), 0);
    assert_eq!(latch(&mut pit, 0, at(1)), 0x9999);
}

#[test]
fn access_modes() {
    let mut pit = Pit::new();
    pit.write(0x43, 0x14, 0);
    pit.write(0x40, 0x34, 0);
    assert_eq!(pit.state(0).channels[0].count, 0x34);
    assert_eq!(pit.read(0x40, || 0), 0x34);
    pit.write(0x43, 0x24, 0);
    pit.write(0x40, 0x12, 0);
    assert_eq!(pit.state(0).channels[0].count, 0x1200);
    assert_eq!(pit.read(0x40, || at(1)), 0x11);
    program(&mut pit, 0, 2, 0x1234, 0);
    assert_eq!([pit.read(0x40, || 0), pit.read(0x40, || 0), pit.read(0x40, || 0)], [0x34, 0x12, 0x34]);
    assert_eq!(pit.read(0x43, || 0), 0);
}

#[test]
fn latched_count_stays_until_read() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 1000, 0);
    pit.write(0x43, 0, at(10));
    pit.write(0x43, 0, at(20));
    let got = [pit.read(0x40, || at(30)), pit.read(0x40, || at(30))];
    assert_eq!(u16::from_le_bytes(got), 990);
    assert_eq!(pit.read(0x40, || at(40)), (960u16 & 0xff) as u8);
}

#[test]
fn read_back_gives_status_then_count() {
    let mut pit = Pit::new();
    pit.write(0x43, 0x34, 0);
    pit.write(0x43, 0xe2, 0);
    assert_eq!(pit.read(0x40, || 0), 0x80 | 0x40 | 0x30 | 4, "no count was loaded");
    program(&mut pit, 0, 2, 1000, 0);
    pit.write(0x43, 0xc2, at(10));
    assert_eq!(pit.read(0x40, || at(50)), 0x80 | 0x30 | 4);
    let got = [pit.read(0x40, || at(50)), pit.read(0x40, || at(50))];
    assert_eq!(u16::from_le_bytes(got), 990);
}

#[test]
fn outputs() {
    // (mode, count, [(counts passed, output)]), with gate 2 raised when the count has been loaded
    for (mode, count, expected) in [
        (0u8, 10u16, &[(0u64, false), (9, false), (10, true), (1000, true)][..]),
        (1, 10, &[(0, false), (9, false), (10, true)]),
        (2, 10, &[(0, true), (8, true), (9, false), (10, true), (19, false)]),
        (3, 10, &[(0, true), (4, true), (5, false), (9, false), (10, true)]),
        (3, 5, &[(0, true), (2, true), (3, false), (4, false), (5, true)]),
        (4, 10, &[(0, true), (9, true), (10, false), (11, true)]),
        (5, 10, &[(0, true), (9, true), (10, false), (11, true)]),
        (6, 10, &[(8, true), (9, false)]),
    ] {
        let mut pit = Pit::new();
        program(&mut pit, 2, mode, count, 0);
        pit.speaker_write(1, 0);
        for &(passed, output) in expected {
            assert_eq!(out2(&pit, at(passed)), output, "mode {mode} after {passed}");
        }
    }
}

#[test]
fn gate_stops_or_restarts() {
    let mut pit = Pit::new();
    pit.speaker_write(1, 0);
    program(&mut pit, 2, 0, 100, 0);
    pit.speaker_write(0, at(40));
    assert_eq!(latch(&mut pit, 2, at(90)), 60);
    pit.speaker_write(1, at(90));
    assert!(!out2(&pit, at(149)));
    assert!(out2(&pit, at(151)));
    program(&mut pit, 2, 2, 100, 0);
    pit.speaker_write(0, at(99));
    assert!(out2(&pit, at(99)), "the output is high while the gate is low");
    pit.speaker_write(1, at(150));
    assert_eq!(latch(&mut pit, 2, at(150)), 100);
}

#[test]
fn port_61() {
    let mut pit = Pit::new();
    pit.speaker_write(0xff, 0);
    assert_eq!(pit.speaker_read(0) & 3, 3);
    assert_ne!(pit.speaker_read(0) & 0x10, pit.speaker_read(1 << 14) & 0x10);
    assert_eq!(pit.state2(0).flags, KVM_PIT_FLAGS_SPEAKER_DATA_ON);
}

#[test]
fn periodic_tick_does_not_drift() {
    let mut pit = Pit::new();
    assert_eq!(pit.next_deadline(), None);
    program(&mut pit, 0, 2, 11932, 5);
    for n in 1..1000u64 {
        let due = pit.next_deadline().unwrap();
        assert_eq!(due, 5 + nanoseconds(n * 11932));
        assert_eq!(pit.expired(due - 1), 0);
        assert_eq!(pit.expired(due), 1);
    }
    assert_eq!(pit.expired(5 + nanoseconds(1009 * 11932)), 10);
}

#[test]
fn one_shot_ticks_once() {
    for (mode, after) in [(0, 1000), (4, 1001)] {
        let mut pit = Pit::new();
        program(&mut pit, 0, mode, 1000, 0);
        assert_eq!(pit.next_deadline(), Some(at(after)));
        assert_eq!(pit.expired(at(after - 1)), 0);
        assert_eq!(pit.expired(at(after)), 1);
        assert_eq!(pit.next_deadline(), None);
        assert_eq!(pit.expired(u64::MAX), 0);
    }
    // A channel whose gate never rises is not triggered.
    for mode in [1, 5] {
        let mut pit = Pit::new();
        program(&mut pit, 0, mode, 1000, 0);
        assert_eq!(pit.next_deadline(), None);
    }
    // The first byte of a new count stops mode 0.
    let mut pit = Pit::new();
    program(&mut pit, 0, 0, 1000, 0);
    pit.write(0x40, 1, 0);
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn absurd_periods_do_not_storm() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 1, 0);
    let mut now = 0;
    for _ in 0..10 {
        let due = pit.next_deadline().unwrap();
        assert!(due >= now + MIN_PERIOD_NS || now == 0);
        now = due;
        assert!(pit.expired(now) > 0);
    }
    assert!(pit.expired(u64::MAX) > 0);
}

#[test]
fn missed_ticks_come_later_or_not() {
    use LineStatus::*;
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 11932, 0);
    pit.pulsed(1, Delivered(1));
    assert!(!pit.acked());
    pit.pulsed(3, Delivered(1));
    assert!(pit.acked() && pit.acked() && !pit.acked());
    pit.pulsed(1, Coalesced);
    assert!(pit.acked());
    pit.pulsed(1, Coalesced);
    assert!(pit.acked() && !pit.acked());
    pit.pulsed(100, Coalesced);
    pit.pulsed(1, Ignored);
    assert!(!pit.acked(), "masked: nothing is kept");
    pit.pulsed(u32::MAX, Coalesced);
    pit.pulsed(u32::MAX, Coalesced);
    assert_eq!((0..).take_while(|_| pit.acked()).count(), MAX_PENDING as usize);
    pit.set_reinject(false);
    pit.pulsed(3, Coalesced);
    assert!(!pit.acked());
}

#[test]
fn hpet_takes_the_tick() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 11932, 0);
    let mut state = pit.state2(0);
    state.flags = KVM_PIT_FLAGS_HPET_LEGACY;
    pit.set_state2(&state, 0);
    assert_eq!(pit.next_deadline(), None);
    assert_eq!(pit.expired(1 << 40), 0);
    assert_eq!(pit.state2(0).flags, KVM_PIT_FLAGS_HPET_LEGACY);
}

#[test]
fn restored_load_times() {
    let mut pit = Pit::new();
    program(&mut pit, 0, 2, 11932, 1000);
    let mut state = pit.state2(2000);
    let mut other = Pit::new();
    other.set_state2(&state, 1 << 30);
    // The phase is kept, and old ticks do not come.
    let periods = counts((1 << 30) - 1000) / 11932 + 1;
    assert_eq!(other.next_deadline(), Some(1000 + nanoseconds(periods * 11932)));
    state.channels[0].count_load_time = i64::MAX;
    other.set_state2(&state, 3000);
    assert_eq!(other.next_deadline(), Some(3000 + nanoseconds(11932)), "a time to come is now");
    // A one-shot that ran out meanwhile.
    program(&mut pit, 0, 0, 100, 5000);
    other.set_state2(&pit.state2(5000), 1 << 30);
    assert_eq!(other.expired(1 << 30), 1);
}

#[derive(Clone, Debug)]
enum Op {
    Write(u16, u8),
    Read(u16),
    Speaker(u8),
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0x40u16..0x44, any::<u8>()).prop_map(|(p, v)| Op::Write(p, v)),
        2 => (0x40u16..0x44).prop_map(Op::Read),
        1 => any::<u8>().prop_map(Op::Speaker),
        2 => (0u64..100_000_000).prop_map(Op::Wait),
    ];
    proptest::collection::vec(op, 0..60)
}

fn run(pit: &mut Pit, op: &Op, now: u64) -> (u8, u32, Option<u64>) {
    let mut seen = 0;
    match *op {
        Op::Write(port, value) => pit.write(port, value, now),
        Op::Read(port) => seen = pit.read(port, || now),
        Op::Speaker(value) => pit.speaker_write(value, now),
        Op::Wait(_) => {}
    }
    let ticks = pit.expired(now);
    (seen ^ pit.speaker_read(now), ticks, pit.next_deadline())
}

fn step(op: &Op) -> u64 {
    if let Op::Wait(ns) = op { *ns } else { 0 }
}

proptest! {
    #[test]
    fn counts_of_any_time(ns in any::<u64>()) {
        prop_assert_eq!(u128::from(counts(ns)), u128::from(ns) * u128::from(PIT_HZ) / 1_000_000_000);
    }

    #[test]
    fn any_input_any_state(bytes in proptest::collection::vec(any::<u8>(), 112), ops in ops(), times in any::<[u64; 4]>()) {
        let mut pit = Pit::new();
        pit.set_state2(&KvmPitState2::from_prefix(&bytes).unwrap(), times[0]);
        for (n, op) in ops.iter().enumerate() {
            let now = times[n % 4];
            run(&mut pit, op, now);
            let state = pit.state2(now);
            pit.set_state2(&state, times[(n + 1) % 4]);
        }
    }

    #[test]
    fn a_saved_timer_goes_on_alike(before in ops(), after in ops()) {
        let mut pit = Pit::new();
        let mut now = 1_000_000_000;
        for op in &before { now += step(op); run(&mut pit, op, now); }
        // A one-shot that is over ticks again after a restore, which is told where it is done.
        prop_assume!(pit.channels[0].is_periodic() || pit.next_deadline().is_some() || pit.channels[0].edges(now) == 0);
        let mut other = Pit::new();
        other.set_state2(&pit.state2(now), now);
        pit.last_fired = None;
        for op in &after {
            now += step(op);
            prop_assert_eq!(run(&mut pit, op, now), run(&mut other, op, now));
        }
    }
}

#[test]
fn a_client_that_divides_by_the_count_can_do_so_before_one_is_loaded() {
    let mut pit = Pit::new();
    let state = pit.state2(0);
    assert!(state.channels.iter().all(|channel| channel.count == 0x1_0000));
    // It goes on as it was: nothing counts.
    pit.set_state2(&state, 1000);
    assert_eq!((pit.state2(2000).channels, pit.next_deadline()), (state.channels, None));
    // The largest count is written as 0.
    let mut loaded = state;
    (loaded.channels[0].mode, loaded.channels[0].count) = (2, 0);
    pit.set_state2(&loaded, 1000);
    assert_eq!(pit.state2(1000).channels[0].count, 0x1_0000);
    assert!(pit.next_deadline().is_some());
}
