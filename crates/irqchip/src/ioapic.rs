//! The 82093AA: 24 pins, each with a redirection entry that turns it into a [`Message`].
//!
//! Polarity is ignored, as `KVM_CAP_IOAPIC_POLARITY_IGNORED` promises: a line is asserted when it is set.

use abi::{KVM_IOAPIC_NUM_PINS, KvmIoapicState};

use crate::{
    line::{IrqSource, LineStatus, Lines},
    message::{DeliveryMode, DestMode, Message, Shorthand, Trigger},
};

/// Number of pins.
pub const IOAPIC_PINS: usize = KVM_IOAPIC_NUM_PINS;
/// Where the registers are after reset.
pub const IOAPIC_DEFAULT_BASE: u64 = 0xfec0_0000;
/// Bytes that the registers answer to.
pub const IOAPIC_MMIO_SIZE: u64 = 0x100;

const VERSION: u32 = (IOAPIC_PINS as u32 - 1) << 16 | 0x11;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

/// A redirection entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirection(u64);

impl Redirection {
    const DELIVERY_STATUS: u64 = 1 << 12;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASK: u64 = 1 << 16;
    /// Reserved bits read as zero.
    const VALID: u64 = 0xff00_0000_0001_ffff;
    const READ_ONLY: u64 = Self::DELIVERY_STATUS | Self::REMOTE_IRR;

    /// The register's 64 bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Trigger mode.
    pub const fn trigger(self) -> Trigger {
        if self.0 & Self::LEVEL != 0 { Trigger::Level } else { Trigger::Edge }
    }

    /// Whether the pin is masked.
    pub const fn masked(self) -> bool {
        self.0 & Self::MASK != 0
    }

    /// Whether a level interrupt was accepted and its end is awaited.
    pub const fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    /// The message that an interrupt on this pin is.
    pub const fn message(self) -> Message {
        Message {
            dest: (self.0 >> 56) as u32,
            dest_mode: if self.0 & 1 << 11 != 0 { DestMode::Logical } else { DestMode::Physical },
            shorthand: Shorthand::None,
            delivery_mode: DeliveryMode::from_bits((self.0 >> 8) as u32),
            vector: self.vector(),
            trigger: self.trigger(),
            assert: true,
            redirect_hint: false,
        }
    }

    const fn clean(bits: u64) -> Self {
        let bits = bits & Self::VALID;
        // An edge-triggered entry has no end of interrupt to wait for. Old guests also switch to edge and back to
        // get rid of a remote IRR that hangs.
        Self(if bits & Self::LEVEL == 0 { bits & !Self::REMOTE_IRR } else { bits })
    }
}

/// The IOAPIC.
///
/// Methods that can send take a `deliver` closure: it hands the message to the local APICs and tells what became of
/// it ([`crate::dest::DeliveredSet::status`]). A level interrupt that nobody accepted is not waited for.
#[derive(Clone, Debug)]
pub struct Ioapic {
    base: u64,
    select: u8,
    id: u8,
    /// Pins that are asserted.
    irr: u32,
    /// Edge pins of `irr` whose interrupt has been sent.
    sent: u32,
    entries: [Redirection; IOAPIC_PINS],
    lines: Lines<IOAPIC_PINS>,
}

impl Default for Ioapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Ioapic {
    /// As after reset: all pins masked.
    pub const fn new() -> Self {
        Self {
            base: IOAPIC_DEFAULT_BASE,
            select: 0,
            id: 0,
            irr: 0,
            sent: 0,
            entries: [Redirection(Redirection::MASK); IOAPIC_PINS],
            lines: Lines::new(),
        }
    }

    /// Guest physical address of the registers.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// A pin's entry.
    pub fn redirection(&self, pin: usize) -> Option<Redirection> {
        self.entries.get(pin).copied()
    }

    /// Drives a pin from one source.
    pub fn set_irq(
        &mut self,
        pin: u8,
        source: IrqSource,
        level: bool,
        mut deliver: impl FnMut(&Message) -> LineStatus,
    ) -> LineStatus {
        let index = usize::from(pin);
        let Some(level) = self.lines.set(index, source, level) else {
            return LineStatus::Ignored;
        };
        let mask = 1u32 << index;
        if !level {
            self.irr &= !mask;
            self.sent &= !mask;
            return LineStatus::Delivered(1);
        }
        let asserted_before = self.irr & mask != 0;
        self.irr |= mask;
        if asserted_before && self.entries[index].trigger() == Trigger::Edge {
            return LineStatus::Coalesced;
        }
        self.service(index, &mut deliver)
    }

    /// Sends a pin's interrupt unless it is masked or one is being handled.
    fn service(&mut self, pin: usize, deliver: &mut impl FnMut(&Message) -> LineStatus) -> LineStatus {
        let entry = self.entries[pin];
        if entry.masked() {
            return LineStatus::Ignored;
        }
        if entry.remote_irr() {
            return LineStatus::Coalesced;
        }
        let status = deliver(&entry.message());
        match entry.trigger() {
            Trigger::Edge => self.sent |= 1 << pin,
            Trigger::Level if status != LineStatus::Ignored => {
                self.entries[pin].0 |= Redirection::REMOTE_IRR;
            }
            Trigger::Level => {}
        }
        status
    }

    /// The pins (bit n is pin n) that have this vector: whose drivers are to be told of its end, for resampling and for
    /// the timer's missed ticks, before [`Self::eoi`].
    pub fn pins_of(&self, vector: u8) -> u32 {
        let pins = self.entries.iter().enumerate().filter(|(_, entry)| entry.vector() == vector);
        pins.fold(0, |pins, (pin, _)| pins | 1 << pin)
    }

    /// The end of interrupt `vector` came from a local APIC. Pins that are still asserted are sent again. Only those
    /// with the given trigger mode are ended: an edge interrupt does not need this call.
    pub fn eoi(&mut self, vector: u8, trigger: Trigger, mut deliver: impl FnMut(&Message) -> LineStatus) {
        if trigger == Trigger::Edge {
            return;
        }
        for pin in 0..IOAPIC_PINS {
            let entry = self.entries[pin];
            if entry.vector() == vector && entry.remote_irr() {
                self.entries[pin].0 &= !Redirection::REMOTE_IRR;
                if self.irr & 1 << pin != 0 {
                    self.service(pin, &mut deliver);
                }
            }
        }
    }

    /// Vectors (bit n of the 256 is vector n) whose end of interrupt the IOAPIC has to hear of: those of
    /// level-triggered entries, and of the pins in `notified` (bit n is pin n) in any case.
    pub fn eoi_vectors(&self, notified: u32) -> [u64; 4] {
        let mut set = [0; 4];
        for (pin, entry) in self.entries.iter().enumerate() {
            if entry.trigger() == Trigger::Level || notified & 1 << pin != 0 {
                set[usize::from(entry.vector() >> 6)] |= 1 << (entry.vector() & 63);
            }
        }
        set
    }

    /// A guest read of `data.len()` bytes (1, 2, 4, 8) at an offset from [`Ioapic::base`]. Other lengths and offsets
    /// that are no register read as zero.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        if matches!(data.len(), 1 | 2 | 4 | 8) {
            for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
                *to = from;
            }
        }
    }

    /// A guest write of 1, 2, 4 or 8 bytes at an offset from [`Ioapic::base`]; others are ignored. May send.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], mut deliver: impl FnMut(&Message) -> LineStatus) {
        if !matches!(data.len(), 1 | 2 | 4 | 8) {
            return;
        }
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN => self.write_register(value, &mut deliver),
            _ => {}
        }
    }

    /// Pin and half (true: bits 63:32) of the entry that the select register points at.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(0x10)?);
        (index / 2 < IOAPIC_PINS).then_some((index / 2, index & 1 != 0))
    }

    fn read_register(&self) -> u32 {
        match self.select {
            // The arbitration id follows the id.
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            _ => match self.selected_entry() {
                Some((pin, true)) => (self.entries[pin].0 >> 32) as u32,
                Some((pin, false)) => self.entries[pin].0 as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32, deliver: &mut impl FnMut(&Message) -> LineStatus) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
            return;
        }
        let Some((pin, high)) = self.selected_entry() else { return };
        let old = self.entries[pin].0;
        let new = if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            let value = u64::from(value) & !Redirection::READ_ONLY;
            old & (0xffff_ffff << 32 | Redirection::READ_ONLY) | value
        };
        self.entries[pin] = Redirection::clean(new);
        if self.entries[pin].trigger() == Trigger::Level {
            self.sent &= !(1 << pin);
        }
        // A level that waits behind a mask shows at once; an edge that came while masked is lost.
        if self.entries[pin].trigger() == Trigger::Level && self.irr & 1 << pin != 0 {
            self.service(pin, deliver);
        }
    }

    /// State for `KVM_GET_IRQCHIP`.
    pub fn state(&self) -> KvmIoapicState {
        let mut redirtbl = [0; IOAPIC_PINS];
        for (to, from) in redirtbl.iter_mut().zip(&self.entries) {
            *to = from.0;
        }
        KvmIoapicState {
            base_address: self.base,
            ioregsel: self.select.into(),
            id: self.id.into(),
            irr: self.irr & !self.sent,
            pad: 0,
            redirtbl,
        }
    }

    /// Replaces the state, for `KVM_SET_IRQCHIP`, and sends what is pending in it. Reserved bits are dropped.
    pub fn set_state(&mut self, state: &KvmIoapicState, mut deliver: impl FnMut(&Message) -> LineStatus) {
        self.base = state.base_address;
        self.select = state.ioregsel as u8;
        self.id = state.id as u8 & 0xf;
        for (to, from) in self.entries.iter_mut().zip(&state.redirtbl) {
            *to = Redirection::clean(*from);
        }
        self.sent = 0;
        self.irr = state.irr & ((1 << IOAPIC_PINS) - 1);
        for pin in 0..IOAPIC_PINS {
            if self.irr & 1 << pin != 0 {
                self.service(pin, &mut deliver);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const USER: IrqSource = IrqSource::USERSPACE;

    fn accept(sent: &mut Vec<Message>) -> impl FnMut(&Message) -> LineStatus + '_ {
        |m| {
            sent.push(*m);
            LineStatus::Delivered(1)
        }
    }

    fn write_entry(io: &mut Ioapic, pin: u8, value: u64, sent: &mut Vec<Message>) {
        for half in [1, 0] {
            io.mmio_write(IOREGSEL, &[0x10 + pin * 2 + half], |_| LineStatus::Ignored);
            let v = (value >> (32 * u32::from(half))) as u32;
            io.mmio_write(IOWIN, &v.to_le_bytes(), accept(sent));
        }
    }

    #[test]
    fn edge_is_sent_once_a_rise() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        write_entry(&mut io, 4, 3 << 56 | 0x34, &mut sent);
        assert_eq!(io.set_irq(4, USER, true, accept(&mut sent)), LineStatus::Delivered(1));
        assert_eq!(io.set_irq(4, USER, true, accept(&mut sent)), LineStatus::Coalesced);
        assert_eq!(sent, [Message::fixed(3, 0x34)]);
        io.set_irq(4, USER, false, accept(&mut sent));
        io.set_irq(4, USER, true, accept(&mut sent));
        assert_eq!(sent.len(), 2);
    }

    #[test]
    fn edge_while_masked_is_lost_and_level_is_not() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        assert_eq!(io.set_irq(4, USER, true, accept(&mut sent)), LineStatus::Ignored);
        write_entry(&mut io, 4, 0x34, &mut sent);
        assert!(sent.is_empty());
        assert_eq!(io.set_irq(5, USER, true, accept(&mut sent)), LineStatus::Ignored);
        write_entry(&mut io, 5, 0x8035, &mut sent);
        assert_eq!(sent.len(), 1);
    }

    #[test]
    fn level_waits_for_the_end_and_comes_again() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        write_entry(&mut io, 9, 0x8050, &mut sent);
        io.set_irq(9, USER, true, accept(&mut sent));
        assert!(io.redirection(9).unwrap().remote_irr());
        assert_eq!(io.set_irq(9, USER, true, accept(&mut sent)), LineStatus::Coalesced);
        assert_eq!(sent.len(), 1);
        assert_eq!((io.pins_of(0x51), io.pins_of(0x50)), (0, 1 << 9));
        io.eoi(0x51, Trigger::Level, accept(&mut sent));
        io.eoi(0x50, Trigger::Edge, accept(&mut sent));
        assert!(io.redirection(9).unwrap().remote_irr(), "an edge interrupt with the same vector");
        io.eoi(0x50, Trigger::Level, accept(&mut sent));
        assert_eq!(sent.len(), 2, "still asserted");
        io.set_irq(9, USER, false, accept(&mut sent));
        io.eoi(0x50, Trigger::Level, accept(&mut sent));
        assert_eq!(sent.len(), 2);
        assert!(!io.redirection(9).unwrap().remote_irr());
    }

    #[test]
    fn level_that_nobody_accepted_is_not_waited_for() {
        let mut io = Ioapic::new();
        write_entry(&mut io, 9, 0x8050, &mut Vec::new());
        assert_eq!(io.set_irq(9, USER, true, |_| LineStatus::Ignored), LineStatus::Ignored);
        assert!(!io.redirection(9).unwrap().remote_irr());
    }

    #[test]
    fn line_stays_up_while_one_source_holds_it() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        write_entry(&mut io, 9, 0x8050, &mut sent);
        io.set_irq(9, USER, true, accept(&mut sent));
        io.set_irq(9, IrqSource::IRQFD_RESAMPLE, true, accept(&mut sent));
        io.set_irq(9, USER, false, accept(&mut sent));
        io.eoi(0x50, Trigger::Level, accept(&mut sent));
        assert_eq!(sent.len(), 2);
    }

    #[test]
    fn read_only_bits_and_the_edge_trick() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        write_entry(&mut io, 9, 0x8050 | 1 << 14 | 1 << 12, &mut sent);
        assert_eq!(io.redirection(9).unwrap().bits(), 0x8050);
        io.set_irq(9, USER, true, accept(&mut sent));
        write_entry(&mut io, 9, 0x8050 | 1 << 16, &mut sent);
        assert!(io.redirection(9).unwrap().remote_irr(), "a write does not end it");
        write_entry(&mut io, 9, 0x50 | 1 << 16, &mut sent);
        assert!(!io.redirection(9).unwrap().remote_irr());
    }

    #[test]
    fn registers() {
        let mut io = Ioapic::new();
        let read = |io: &mut Ioapic, r: u8| {
            io.mmio_write(IOREGSEL, &[r], |_| LineStatus::Ignored);
            let mut b = [0; 4];
            io.mmio_read(IOWIN, &mut b);
            u32::from_le_bytes(b)
        };
        assert_eq!(read(&mut io, 1), 0x0017_0011);
        assert_eq!(read(&mut io, 0x10), 1 << 16);
        assert_eq!(read(&mut io, 0x3f), 0);
        assert_eq!(read(&mut io, 0x40), 0);
        read(&mut io, 0);
        io.mmio_write(IOWIN, &0xff00_0000u32.to_le_bytes(), |_| LineStatus::Ignored);
        assert_eq!(read(&mut io, 0), 0x0f00_0000);
        assert_eq!(read(&mut io, 2), 0x0f00_0000);
        let mut eight = [0xff; 8];
        io.mmio_read(IOWIN, &mut eight);
        assert_eq!(eight, [0, 0, 0, 0x0f, 0, 0, 0, 0]);
        let mut three = [0xff; 3];
        io.mmio_read(IOWIN, &mut three);
        assert_eq!(three, [0; 3]);
    }

    #[test]
    fn vectors_that_must_be_reported() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        write_entry(&mut io, 9, 0x8050, &mut sent);
        write_entry(&mut io, 2, 0x30, &mut sent);
        assert_eq!(io.eoi_vectors(0), [0, 1 << 16, 0, 0]);
        assert_eq!(io.eoi_vectors(1 << 2), [1 << 0x30, 1 << 16, 0, 0]);
    }

    #[test]
    fn restored_pending_pins_are_sent() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        let mut state = io.state();
        state.redirtbl[7] = 0x41;
        state.redirtbl[8] = 0x8042;
        state.irr = 1 << 7 | 1 << 8;
        io.set_state(&state, accept(&mut sent));
        assert_eq!(sent.len(), 2);
        assert_eq!(io.state().irr, 1 << 8, "an edge that was sent is not sent again by the next restore");
    }

    #[test]
    fn an_edge_that_came_while_masked_is_pending_in_the_state() {
        let (mut io, mut sent) = (Ioapic::new(), Vec::new());
        write_entry(&mut io, 4, 0x34, &mut sent);
        io.set_irq(4, USER, true, accept(&mut sent));
        assert_eq!(io.state().irr, 0);
        io.set_irq(4, USER, false, accept(&mut sent));
        write_entry(&mut io, 4, 0x1_0034, &mut sent);
        io.set_irq(4, USER, true, accept(&mut sent));
        assert_eq!(io.state().irr, 1 << 4);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Line(u8, u8, bool),
        Write(u64, Vec<u8>),
        Eoi(u8, bool),
        Entry(u8, u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (0u8..30, 0u8..4, any::<bool>()).prop_map(|(a, b, c)| Op::Line(a, b, c)),
            (0u64..0x20, proptest::collection::vec(any::<u8>(), 0..9)).prop_map(|(a, b)| Op::Write(a, b)),
            (any::<u8>(), any::<bool>()).prop_map(|(v, l)| Op::Eoi(v, l)),
            (0u8..24, any::<u64>()).prop_map(|(p, e)| Op::Entry(p, e & !(1 << 16))),
        ];
        proptest::collection::vec(op, 0..60)
    }

    fn run(io: &mut Ioapic, op: &Op) -> Vec<Message> {
        let mut sent = Vec::new();
        match op {
            Op::Line(pin, source, level) => {
                io.set_irq(*pin, IrqSource::new(*source).unwrap(), *level, accept(&mut sent));
            }
            Op::Write(offset, data) => io.mmio_write(*offset, data, accept(&mut sent)),
            Op::Eoi(v, level) => {
                let trigger = if *level { Trigger::Level } else { Trigger::Edge };
                io.eoi(*v, trigger, accept(&mut sent));
            }
            Op::Entry(pin, value) => write_entry(io, *pin, *value, &mut sent),
        }
        sent
    }

    proptest! {
        #[test]
        fn any_input_any_state(state in any::<[u64; 28]>(), ops in ops()) {
            let mut io = Ioapic::new();
            let mut redirtbl = [0; 24];
            redirtbl.copy_from_slice(&state[..24]);
            io.set_state(&KvmIoapicState {
                base_address: state[24], ioregsel: state[25] as u32, id: state[26] as u32,
                irr: state[27] as u32, pad: 0, redirtbl,
            }, |_| LineStatus::Delivered(1));
            for op in &ops {
                run(&mut io, op);
                let mut data = [0; 8];
                io.mmio_read(0x10, &mut data);
                for pin in 0..24 {
                    let e = io.redirection(pin).unwrap();
                    prop_assert!(!e.remote_irr() || e.trigger() == Trigger::Level);
                }
            }
        }

        #[test]
        fn a_saved_ioapic_goes_on_alike(before in ops(), after in ops()) {
            let mut io = Ioapic::new();
            for op in &before { run(&mut io, op); }
            // Lines are not part of the state: a client drives them again, and edges that were sent are not pending.
            for pin in 0..24 {
                for source in 0..4 {
                    io.set_irq(pin, IrqSource::new(source).unwrap(), false, |_| LineStatus::Ignored);
                }
            }
            let mut other = Ioapic::new();
            other.set_state(&io.state(), |_| LineStatus::Ignored);
            prop_assert_eq!(io.state(), other.state());
            for op in &after {
                prop_assert_eq!(run(&mut io, op), run(&mut other, op));
            }
            prop_assert_eq!(io.state(), other.state());
        }
    }
}
