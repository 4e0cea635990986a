//! The local vector table: interrupts that a processor gets from itself.

use core::ops::Deref;

use super::{Lapic, timer};
use crate::{
    message::{DeliveryMode, Trigger},
    shared::{Accept, LapicShared},
};

/// An entry of the table, in the order of its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lvt {
    /// Corrected machine checks.
    Cmci = 0,
    /// The APIC timer.
    Timer,
    /// Thermal sensor.
    Thermal,
    /// Performance counters.
    Performance,
    /// Pin LINT0.
    Lint0,
    /// Pin LINT1.
    Lint1,
    /// Errors of the APIC itself.
    Error,
}

pub(super) const COUNT: usize = 7;
pub(super) const MASKED: u32 = 1 << 16;
/// Delivery mode.
pub(super) const MODE: u32 = 7 << 8;
/// Delivery mode ExtINT, not masked.
pub(super) const EXTINT: u32 = 7 << 8;
const VECTOR: u32 = 0xff;
/// Delivery status and remote IRR: never set here, and not an error in a write.
pub(super) const READ_ONLY: u32 = 1 << 12 | 1 << 14;

impl Lvt {
    pub(super) const ALL: [Self; COUNT] =
        [Self::Cmci, Self::Timer, Self::Thermal, Self::Performance, Self::Lint0, Self::Lint1, Self::Error];

    /// Bits that software can set.
    pub(super) fn writable(self, tsc_deadline: bool) -> u32 {
        VECTOR
            | MASKED
            | match self {
                Self::Timer if tsc_deadline => timer::MODE,
                Self::Timer => timer::MODE_PERIODIC,
                Self::Cmci | Self::Thermal | Self::Performance => MODE,
                // Polarity and trigger mode.
                Self::Lint0 | Self::Lint1 => MODE | 1 << 13 | 1 << 15,
                Self::Error => 0,
            }
    }
}

impl<S: Deref<Target = LapicShared>> Lapic<S> {
    /// A local source asks for its interrupt. [`Accept::Dropped`] if it is masked, or if it is the 8259A's, which is
    /// asked for with [`Lapic::accepts_pic`] instead.
    pub fn raise(&mut self, source: Lvt) -> Accept {
        let entry = self.lvt[source as usize];
        if entry & MASKED != 0 || source == Lvt::Cmci && !self.config.cmci {
            return Accept::Dropped;
        }
        let mode = match source {
            Lvt::Timer | Lvt::Error => DeliveryMode::Fixed,
            _ => DeliveryMode::from_bits(entry >> 8),
        };
        if source == Lvt::Performance {
            // The processor masks the entry with the interrupt; its handler unmasks it.
            self.lvt[source as usize] |= MASKED;
        }
        match mode {
            DeliveryMode::Fixed => {
                let accept = self.shared.set_vector(entry as u8, Trigger::Edge);
                // The error entry's own illegal vector is noted and raises nothing further.
                if accept == Accept::Dropped && source != Lvt::Error {
                    self.raise(Lvt::Error);
                }
                accept
            }
            DeliveryMode::Nmi => self.shared.queue_nmi(),
            DeliveryMode::Smi => self.shared.queue_smi(),
            DeliveryMode::Init => {
                self.shared.queue_init();
                Accept::Delivered
            }
            _ => Accept::Dropped,
        }
    }

    /// An entry's register.
    pub fn lvt(&self, entry: Lvt) -> u32 {
        self.lvt[entry as usize]
    }

    pub(super) fn write_lvt(&mut self, entry: Lvt, value: u32) {
        let mut value = value & entry.writable(self.config.tsc_deadline);
        if !self.software_enabled() {
            value |= MASKED;
        }
        self.lvt[entry as usize] = value;
        self.publish();
    }
}
