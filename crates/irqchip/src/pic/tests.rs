//! Behaviour of the 8259A by its data sheet, and robustness.
extern crate std;

use abi::{KvmPicState, Pod};
use proptest::prelude::*;
use std::vec::Vec;

use super::*;

const USER: IrqSource = IrqSource::USERSPACE;

/// Both chips as a PC's firmware programs them: vectors 0x20 and 0x28, nothing masked.
fn programmed(icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, icw4),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 0x02),
        (0xa1, icw4 & !0x10),
    ] {
        pic.write(port, value);
    }
    pic
}

fn pulse(pic: &mut Pic, line: u8) -> LineStatus {
    let status = pic.set_irq(line, USER, true);
    pic.set_irq(line, USER, false);
    status
}

fn in_service(pic: &Pic) -> (u8, u8) {
    (pic.state(false).isr, pic.state(true).isr)
}

#[test]
fn lower_lines_come_first_and_nest() {
    let mut pic = programmed(1);
    assert!(!pic.intr_pending());
    pulse(&mut pic, 4);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x24);
    assert!(!pic.intr_pending(), "6 waits behind 4");
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    assert_eq!(in_service(&pic), (1 << 4 | 1 << 1, 0));
    pic.write(0x20, 0x20);
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x26);
    pic.write(0x20, 0x66);
    assert_eq!(in_service(&pic), (0, 0));
    assert_eq!(pic.take_acked(), 1 << 4 | 1 << 1 | 1 << 6);
    assert_eq!(pic.take_acked(), 0);
}

#[test]
fn second_chip_comes_through_the_cascade() {
    let mut pic = programmed(1);
    pulse(&mut pic, 10);
    assert_eq!(pic.state(false).irr, 1 << 2);
    assert_eq!(pic.acknowledge(), 0x2a);
    assert_eq!(in_service(&pic), (1 << 2, 1 << 2));
    pulse(&mut pic, 9);
    assert!(!pic.intr_pending(), "without special fully nested mode the master waits for its EOI");
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x29);
    assert_eq!(pic.take_acked(), 0, "the cascade is not a device's line");
    pic.write(0xa0, 0x20);
    assert_eq!(pic.take_acked(), 1 << 9);
}

#[test]
fn special_fully_nested_mode_lets_the_second_chip_nest() {
    let mut pic = programmed(0x11);
    pulse(&mut pic, 10);
    assert_eq!(pic.acknowledge(), 0x2a);
    pulse(&mut pic, 9);
    assert!(pic.intr_pending());
    assert_eq!(pic.acknowledge(), 0x29);
}

#[test]
fn cascade_request_falls_with_the_second_chip() {
    let mut pic = programmed(1);
    pulse(&mut pic, 10);
    assert!(pic.intr_pending());
    pic.write(0xa1, 1 << 2);
    assert!(!pic.intr_pending());
    assert_eq!(pic.set_irq(2, USER, true), LineStatus::Ignored);
    assert!(!pic.intr_pending());
}

#[test]
fn spurious_is_line_7_and_nothing_is_in_service() {
    let mut pic = programmed(1);
    assert_eq!(pic.acknowledge(), 0x27);
    assert_eq!(in_service(&pic), (0, 0));
    // A level that goes away before the acknowledge.
    pic.write(0x4d0, 1 << 5);
    pic.set_irq(5, USER, true);
    pic.set_irq(5, USER, false);
    assert_eq!(pic.acknowledge(), 0x27);
}

#[test]
fn level_comes_again_until_it_falls_and_edge_does_not() {
    let mut pic = programmed(1);
    pic.write(0x4d0, 0xff);
    assert_eq!(pic.read(0x4d0), 0xf8);
    pic.write(0x4d1, 0xff);
    assert_eq!(pic.read(0x4d1), 0xde);
    pic.set_irq(5, USER, true);
    assert_eq!(pic.set_irq(5, IrqSource::PIT, true), LineStatus::Coalesced);
    for _ in 0..3 {
        assert_eq!(pic.acknowledge(), 0x25);
        pic.write(0x20, 0x20);
    }
    pic.set_irq(5, USER, false);
    assert!(pic.intr_pending(), "another source holds it");
    pic.set_irq(5, IrqSource::PIT, false);
    assert!(!pic.intr_pending());

    pic.set_irq(1, USER, true);
    assert_eq!(pic.acknowledge(), 0x21);
    pic.write(0x20, 0x20);
    assert!(!pic.intr_pending());
    pic.set_irq(1, USER, false);
    assert_eq!(pic.set_irq(1, USER, true), LineStatus::Delivered(1));
}

#[test]
fn edge_that_comes_during_service_is_kept_and_a_third_is_merged() {
    let mut pic = programmed(1);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x20);
    assert_eq!(pulse(&mut pic, 0), LineStatus::Delivered(1));
    assert_eq!(pulse(&mut pic, 0), LineStatus::Coalesced);
    assert!(!pic.intr_pending());
    pic.write(0x20, 0x20);
    assert_eq!(pic.acknowledge(), 0x20);
}

#[test]
fn mask_hides_and_keeps() {
    let mut pic = programmed(1);
    pic.write(0x21, 1 << 3);
    assert_eq!(pulse(&mut pic, 3), LineStatus::Ignored);
    assert!(!pic.intr_pending());
    assert_eq!(pic.read(0x21), 1 << 3);
    pic.write(0x21, 0);
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn automatic_end_of_interrupt_and_its_rotation() {
    let mut pic = programmed(3);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24);
    assert_eq!(in_service(&pic), (0, 0));
    assert_eq!(pic.take_acked(), 1 << 4);
    pic.write(0x20, 0x80);
    pulse(&mut pic, 4);
    pic.acknowledge();
    pulse(&mut pic, 4);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x25, "4 has the lowest priority now");
}

#[test]
fn rotations() {
    // (commands, lines pulsed, order of the vectors)
    for (commands, lines, order) in [
        (&[0xc3u8][..], &[3u8, 4, 7][..], &[4u8, 7, 3][..]),
        (&[0xc7], &[0, 7], &[0, 7]),
        (&[0xc0], &[0, 1, 7], &[1, 7, 0]),
    ] {
        let mut pic = programmed(1);
        for &c in commands {
            pic.write(0x20, c);
        }
        for &line in lines {
            pulse(&mut pic, line);
        }
        let got: Vec<u8> = order
            .iter()
            .map(|_| {
                let v = pic.acknowledge();
                pic.write(0x20, 0x20);
                v - 0x20
            })
            .collect();
        assert_eq!(got, order);
    }
    // Rotate on non-specific and on specific EOI.
    for end in [0xa0, 0xe3] {
        let mut pic = programmed(1);
        pulse(&mut pic, 3);
        pic.acknowledge();
        pic.write(0x20, end);
        pulse(&mut pic, 3);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x24);
    }
}

#[test]
fn special_mask_mode() {
    let mut pic = programmed(1);
    pulse(&mut pic, 1);
    pic.acknowledge();
    pulse(&mut pic, 6);
    assert!(!pic.intr_pending());
    pic.write(0x21, 1 << 1);
    pic.write(0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x26, "1 is masked and does not hold 6 back");
    pic.write(0x20, 0x20);
    assert_eq!(in_service(&pic).0, 1 << 1, "a masked in-service bit is not ended by a non-specific EOI");
    pic.write(0x20, 0x48);
    pic.write(0x20, 0x20);
    assert_eq!(in_service(&pic).0, 0);
}

#[test]
fn poll_is_an_acknowledge() {
    let mut pic = programmed(1);
    pulse(&mut pic, 5);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0x85);
    assert_eq!(in_service(&pic).0, 1 << 5);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20) & 0x80, 0);
    assert_eq!(pic.read(0x21), 0, "only the next read is a poll");
}

#[test]
fn registers_read_and_initialization() {
    let mut pic = programmed(1);
    pulse(&mut pic, 5);
    pulse(&mut pic, 6);
    pic.acknowledge();
    pic.write(0x20, 0x0b);
    assert_eq!(pic.read(0x20), 1 << 5);
    pic.write(0x20, 0x0a);
    assert_eq!(pic.read(0x20), 1 << 6);
    pic.take_acked();
    pic.write(0x20, 0x11);
    assert_eq!(pic.take_acked(), 1 << 5, "who waits for the end is told");
    assert_eq!(in_service(&pic), (0, 0));
    pic.write(0x21, 0x77);
    pic.write(0x21, 4);
    pic.write(0x21, 1);
    assert_eq!(pic.state(false).irq_base, 0x70);
    // Without ICW4 the sequence is shorter and its functions are off.
    pic.write(0x20, 0x10);
    pic.write(0x21, 0x20);
    pic.write(0x21, 4);
    pic.write(0x21, 0xaa);
    assert_eq!(pic.read(0x21), 0xaa);
}

#[test]
fn ports() {
    for port in 0..=0xffff {
        let ours = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1].contains(&port);
        assert_eq!(Pic::owns(port), ours);
    }
    assert_eq!(Pic::new().read(0x22), 0xff);
    assert_eq!(Pic::new().set_irq(16, USER, true), LineStatus::Ignored);
}

#[derive(Clone, Debug)]
enum Op {
    Line(u8, u8, bool),
    Write(u8, u8),
    Read(u8),
    Acknowledge,
}

const PORTS: [u16; 6] = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (0u8..18, 0u8..3, any::<bool>()).prop_map(|(a, b, c)| Op::Line(a, b, c)),
        (0u8..6, any::<u8>()).prop_map(|(p, v)| Op::Write(p, v)),
        (0u8..6).prop_map(Op::Read),
        Just(Op::Acknowledge),
    ];
    proptest::collection::vec(op, 0..80)
}

/// What can be seen of an operation from outside.
fn run(pic: &mut Pic, op: &Op) -> (i32, bool, u16) {
    let seen = match *op {
        Op::Line(line, source, level) => pic.set_irq(line, IrqSource::new(source).unwrap(), level).to_abi(),
        Op::Write(port, value) => {
            pic.write(PORTS[usize::from(port)], value);
            0
        }
        Op::Read(port) => pic.read(PORTS[usize::from(port)]).into(),
        Op::Acknowledge => pic.acknowledge().into(),
    };
    (seen, pic.intr_pending(), pic.take_acked())
}

proptest! {
    #[test]
    fn any_input_any_state(bytes in any::<[[u8; 16]; 2]>(), ops in ops()) {
        let mut pic = Pic::new();
        for (slave, bytes) in [(false, bytes[0]), (true, bytes[1])] {
            pic.set_state(slave, &KvmPicState::from_prefix(&bytes).unwrap());
        }
        for op in &ops {
            let pending = pic.intr_pending();
            let before = pic.clone();
            run(&mut pic, op);
            let mut looked_at = pic.clone();
            looked_at.settle();
            prop_assert_eq!(
                (pic.intr_pending(), pic.state(false).irr, pic.acked),
                (looked_at.intr_pending(), looked_at.state(false).irr, looked_at.acked),
                "what follows from an operation has followed"
            );
            if matches!(op, Op::Acknowledge) && !pending {
                prop_assert_eq!(before.state(false).isr, pic.state(false).isr, "spurious");
            }
        }
    }

    #[test]
    fn a_saved_pair_goes_on_alike(before in ops(), after in ops()) {
        let mut pic = Pic::new();
        for op in &before { run(&mut pic, op); }
        // Sources are not part of the state: a client drives its lines again.
        for line in 0..16 {
            for source in 0..3 {
                pic.set_irq(line, IrqSource::new(source).unwrap(), false);
            }
        }
        let mut other = Pic::new();
        other.set_state(false, &pic.state(false));
        other.set_state(true, &pic.state(true));
        for op in &after {
            prop_assert_eq!(run(&mut pic, op), run(&mut other, op));
        }
        prop_assert_eq!(pic.state(false), other.state(false));
        prop_assert_eq!(pic.state(true), other.state(true));
    }
}
