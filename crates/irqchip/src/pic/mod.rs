//! The PC's two 8259A, cascaded on input 2, with the ELCR at ports 0x4d0 and 0x4d1.
//!
//! The pair's output is the INTR pin of the processors that accept it (`accepts_pic` of
//! [`crate::shared::Identity`]); an acknowledge cycle gives the vector.

mod chip;

use abi::KvmPicState;

use crate::line::{IrqSource, LineStatus, Lines};
use chip::Chip;

/// Inputs of the pair.
pub const PIC_LINES: usize = 16;
/// The input of the first chip that the second is connected to.
const CASCADE: u8 = 2;

/// Both 8259A.
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
    lines: Lines<PIC_LINES>,
    /// The level of INTR.
    intr: bool,
    acked: u16,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Both chips as after power-on: unprogrammed, everything edge-triggered.
    pub const fn new() -> Self {
        // Inputs 0, 1, 2 (timer, keyboard, cascade), 8 (clock) and 13 (FPU) can only be edge-triggered.
        Self { master: Chip::new(0xf8), slave: Chip::new(0xde), lines: Lines::new(), intr: false, acked: 0 }
    }

    /// Drives input `line` (0 to 15) from one source. Ask [`Pic::intr_pending`] afterwards.
    /// Input 2 is the cascade and cannot be driven.
    pub fn set_irq(&mut self, line: u8, source: IrqSource, level: bool) -> LineStatus {
        let Some(level) = self.lines.set(usize::from(line), source, level) else {
            return LineStatus::Ignored;
        };
        if line == CASCADE {
            return LineStatus::Ignored;
        }
        let chip = if line < 8 { &mut self.master } else { &mut self.slave };
        let status = chip.set_input(line & 7, level);
        self.cascade();
        status
    }

    /// The level of INTR.
    pub fn intr_pending(&self) -> bool {
        self.intr
    }

    /// An acknowledge cycle: the vector of the highest request, or the spurious one (input 7) if there is none.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.request(true) {
            None => self.master.vector(7),
            Some(CASCADE) => {
                self.master.acknowledge(CASCADE);
                match self.slave.request(false) {
                    Some(n) => {
                        self.slave.acknowledge(n);
                        self.slave.vector(n)
                    }
                    None => self.slave.vector(7),
                }
            }
            Some(n) => {
                self.master.acknowledge(n);
                self.master.vector(n)
            }
        };
        self.settle();
        vector
    }

    /// Lines (bit n is line n) whose interrupt ended since the last call: for resampling and for the timer's missed
    /// ticks.
    pub fn take_acked(&mut self) -> u16 {
        core::mem::take(&mut self.acked)
    }

    /// Whether this port is one of the pair's.
    pub const fn owns(port: u16) -> bool {
        matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
    }

    /// A byte read from a port; other ports read as 0xff. A poll command makes the read an acknowledge cycle.
    pub fn read(&mut self, port: u16) -> u8 {
        let (chip, master) = match port {
            0x20 | 0x21 => (&mut self.master, true),
            0xa0 | 0xa1 => (&mut self.slave, false),
            0x4d0 => return self.master.elcr(),
            0x4d1 => return self.slave.elcr(),
            _ => return 0xff,
        };
        match chip.poll(master) {
            Some(answer) => {
                self.settle();
                answer
            }
            None => chip.register(port & 1 != 0),
        }
    }

    /// A byte written to a port; other ports ignore it. Ask [`Pic::intr_pending`] and [`Pic::take_acked`] afterwards.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 => self.master.write(port & 1 != 0, value),
            0xa0 | 0xa1 => self.slave.write(port & 1 != 0, value),
            // What has been requested stays so.
            0x4d0 => return self.master.set_elcr(value),
            0x4d1 => return self.slave.set_elcr(value),
            _ => return,
        }
        self.settle();
    }

    /// State of the first or second chip, for `KVM_GET_IRQCHIP`.
    pub fn state(&self, slave: bool) -> KvmPicState {
        if slave { self.slave.state() } else { self.master.state() }
    }

    /// Replaces the state of one chip, for `KVM_SET_IRQCHIP`. Bits that the chip does not have are dropped.
    pub fn set_state(&mut self, slave: bool, state: &KvmPicState) {
        if slave {
            self.slave.set_state(state);
        } else {
            self.master.set_state(state);
        }
        self.cascade();
    }

    /// The second chip's output drives the first one's input 2, whose output is INTR.
    fn cascade(&mut self) {
        let level = self.slave.request(false).is_some();
        self.master.set_cascade(CASCADE, level);
        self.intr = self.master.request(true).is_some();
    }

    #[inline(never)]
    fn settle(&mut self) {
        self.cascade();
        self.acked |= u16::from(self.master.take_ended()) & !(1 << CASCADE);
        self.acked |= u16::from(self.slave.take_ended()) << 8;
    }
}

#[cfg(test)]
mod tests;
