//! One 8259A. Register and command names are the data sheet's.

use abi::KvmPicState;

use crate::line::LineStatus;

/// Where the initialization sequence stands; the numbers are `KvmPicState::init_state`'s.
const READY: u8 = 0;
const EXPECT_ICW2: u8 = 1;
const EXPECT_ICW3: u8 = 2;
const EXPECT_ICW4: u8 = 3;

#[derive(Clone, Debug)]
pub(super) struct Chip {
    /// Levels of the inputs, for edge detection.
    last: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// The input with the highest priority.
    first: u8,
    base: u8,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    init_state: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    init4: bool,
    elcr: u8,
    elcr_mask: u8,
    /// Inputs whose in-service bit went away since last asked.
    ended: u8,
}

impl Chip {
    pub(super) const fn new(elcr_mask: u8) -> Self {
        Self {
            last: 0,
            irr: 0,
            imr: 0,
            isr: 0,
            first: 0,
            base: 0,
            read_isr: false,
            poll: false,
            special_mask: false,
            init_state: READY,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            init4: false,
            elcr: 0,
            elcr_mask,
            ended: 0,
        }
    }

    pub(super) fn set_input(&mut self, input: u8, level: bool) -> LineStatus {
        let mask = 1u8 << (input & 7);
        let pending = self.irr & mask != 0;
        let mut coalesced = false;
        if self.elcr & mask != 0 {
            if level {
                coalesced = pending;
                self.irr |= mask;
            } else {
                self.irr &= !mask;
            }
        } else if level && self.last & mask == 0 {
            // The request stays latched when the line falls again before the acknowledge cycle: sources that
            // pulse their line depend on it.
            coalesced = pending;
            self.irr |= mask;
        }
        if level {
            self.last |= mask;
        } else {
            self.last &= !mask;
        }
        if self.imr & mask != 0 {
            LineStatus::Ignored
        } else if coalesced {
            LineStatus::Coalesced
        } else {
            LineStatus::Delivered(1)
        }
    }

    /// The cascade input follows the other chip's output in both directions.
    pub(super) fn set_cascade(&mut self, input: u8, level: bool) {
        let mask = 1u8 << input;
        if level {
            self.irr |= mask;
            self.last |= mask;
        } else {
            self.irr &= !mask;
            self.last &= !mask;
        }
    }

    /// The set bit with the highest priority.
    fn highest(&self, set: u8) -> Option<u8> {
        let rotated = set.rotate_right(u32::from(self.first));
        (rotated != 0).then(|| (rotated.trailing_zeros() as u8 + self.first) & 7)
    }

    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.first) & 7
    }

    /// The input that the output stands for, if it is high.
    pub(super) fn request(&self, master: bool) -> Option<u8> {
        let input = self.highest(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && master {
            // The slave's requests are let through while one of them is in service.
            in_service &= !(1 << super::CASCADE);
        }
        match self.highest(in_service) {
            Some(serving) if self.rank(serving) <= self.rank(input) => None,
            _ => Some(input),
        }
    }

    pub(super) fn vector(&self, input: u8) -> u8 {
        self.base & 0xf8 | input & 7
    }

    pub(super) fn acknowledge(&mut self, input: u8) {
        let mask = 1u8 << (input & 7);
        if self.elcr & mask == 0 {
            self.irr &= !mask;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.first = (input + 1) & 7;
            }
            self.ended |= mask;
        } else {
            self.isr |= mask;
        }
    }

    fn end(&mut self, input: u8) {
        let mask = 1u8 << (input & 7);
        if self.isr & mask != 0 {
            self.isr &= !mask;
            self.ended |= mask;
        }
    }

    pub(super) fn take_ended(&mut self) -> u8 {
        core::mem::take(&mut self.ended)
    }

    /// What a read answers behind a poll command: it is an acknowledge cycle then.
    pub(super) fn poll(&mut self, master: bool) -> Option<u8> {
        if !self.poll {
            return None;
        }
        self.poll = false;
        let Some(input) = self.request(master) else { return Some(7) };
        self.acknowledge(input);
        Some(0x80 | input)
    }

    /// What a read answers otherwise.
    pub(super) fn register(&self, a0: bool) -> u8 {
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    pub(super) fn write(&mut self, a0: bool, value: u8) {
        if a0 {
            self.write_data(value);
        } else if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    fn icw1(&mut self, value: u8) {
        self.init4 = value & 1 != 0;
        // Whoever waits for the end of what was in service will not see it any more otherwise.
        self.ended |= self.isr;
        self.last = 0;
        self.irr &= self.elcr;
        self.imr = 0;
        self.isr = 0;
        self.first = 0;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        if !self.init4 {
            self.special_fully_nested = false;
            self.auto_eoi = false;
        }
        self.init_state = EXPECT_ICW2;
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            // Rotate in automatic EOI mode: clear, set.
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            // Non-specific EOI, with or without rotation. A bit that special mask mode hides is not ended.
            command @ (1 | 5) => {
                let hidden = if self.special_mask { self.imr } else { 0 };
                if let Some(input) = self.highest(self.isr & !hidden) {
                    self.end(input);
                    if command == 5 {
                        self.first = (input + 1) & 7;
                    }
                }
            }
            3 => self.end(level),
            7 => {
                self.end(level);
                self.first = (level + 1) & 7;
            }
            6 => self.first = (level + 1) & 7,
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        if value & 0x02 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init_state {
            READY => self.imr = value,
            EXPECT_ICW2 => {
                self.base = value & 0xf8;
                self.init_state = EXPECT_ICW3;
            }
            // The cascade is wired; what ICW3 says about it changes nothing.
            EXPECT_ICW3 => self.init_state = if self.init4 { EXPECT_ICW4 } else { READY },
            _ => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.init_state = READY;
            }
        }
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_mask;
    }

    pub(super) fn state(&self) -> KvmPicState {
        KvmPicState {
            last_irr: self.last,
            irr: self.irr,
            imr: self.imr,
            isr: self.isr,
            priority_add: self.first,
            irq_base: self.base,
            read_reg_select: self.read_isr.into(),
            poll: self.poll.into(),
            special_mask: self.special_mask.into(),
            init_state: self.init_state,
            auto_eoi: self.auto_eoi.into(),
            rotate_on_auto_eoi: self.rotate_on_auto_eoi.into(),
            special_fully_nested_mode: self.special_fully_nested.into(),
            init4: self.init4.into(),
            elcr: self.elcr,
            elcr_mask: self.elcr_mask,
        }
    }

    pub(super) fn set_state(&mut self, state: &KvmPicState) {
        self.last = state.last_irr;
        self.irr = state.irr;
        self.imr = state.imr;
        self.isr = state.isr;
        self.first = state.priority_add & 7;
        self.base = state.irq_base & 0xf8;
        self.read_isr = state.read_reg_select != 0;
        self.poll = state.poll != 0;
        self.special_mask = state.special_mask != 0;
        self.init_state = state.init_state & 3;
        self.auto_eoi = state.auto_eoi != 0;
        self.rotate_on_auto_eoi = state.rotate_on_auto_eoi != 0;
        self.special_fully_nested = state.special_fully_nested_mode != 0;
        self.init4 = state.init4 != 0;
        // Which inputs can be level-triggered is the board's, not the state's.
        self.elcr = state.elcr & self.elcr_mask;
        self.ended = 0;
    }
}
