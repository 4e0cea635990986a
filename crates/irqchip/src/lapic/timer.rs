//! The APIC timer: one-shot, periodic, and TSC-deadline (SDM vol. 3, 11.5.4).

use core::ops::Deref;

use super::{Config, Effects, Lapic, Lvt, Now, lvt};
use crate::shared::LapicShared;

/// LVT timer: both mode bits.
pub(super) const MODE: u32 = 3 << 17;
/// LVT timer: periodic.
pub(super) const MODE_PERIODIC: u32 = 1 << 17;

/// When the timer has to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// At this time of the monotonic clock, in nanoseconds.
    Nanoseconds(u64),
    /// When the guest's time-stamp counter reaches this value.
    Tsc(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: Mode,
    initial: u32,
    /// Divide configuration register.
    divide: u32,
    /// Nanoseconds of one count.
    count_ns: u64,
    /// Nanoseconds of a whole count from `initial`.
    period_ns: u64,
    /// When the count reaches zero; `None` while it stands.
    target: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    deadline: u64,
}

impl Default for Timer {
    fn default() -> Self {
        Self { mode: Mode::OneShot, initial: 0, divide: 0, count_ns: 2, period_ns: 0, target: None, deadline: 0 }
    }
}

/// Bits 3, 1, 0 of the register: 0 is 2, 1 is 4, ... 6 is 128, 7 is 1.
fn divisor(divide: u32) -> u64 {
    let code = divide & 3 | (divide & 8) >> 1;
    1 << ((code + 1) & 7)
}

fn mode_of(lvt: u32) -> Mode {
    match lvt & MODE {
        0 => Mode::OneShot,
        MODE_PERIODIC => Mode::Periodic,
        // 2 is TSC-deadline; the reserved fourth value counts as the same.
        _ => Mode::TscDeadline,
    }
}

impl Timer {
    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    fn rate(&mut self, config: &Config) {
        self.count_ns = divisor(self.divide) * u64::from(config.bus_cycle_ns.max(1));
        self.period_ns = u64::from(self.initial).saturating_mul(self.count_ns);
        if self.mode == Mode::Periodic && self.initial != 0 {
            self.period_ns = self.period_ns.max(config.min_period_ns);
        }
    }

    /// Remaining counts at `now`.
    pub(super) fn current(&self, now: Now) -> u32 {
        let Some(target) = self.target else { return 0 };
        let left_ns = match target.checked_sub(now.ns) {
            Some(left) if left > 0 => left,
            // The expiry has not been handled yet: count on within the period.
            _ if self.mode == Mode::Periodic => {
                let period = self.period_ns.max(1);
                period - (now.ns - target) % period
            }
            _ => 0,
        };
        let counts = left_ns.div_ceil(self.count_ns.max(1)).min(u64::from(self.initial));
        counts as u32
    }

    fn start(&mut self, counts_ns: u64, now: Now) {
        self.target = Some(now.ns.saturating_add(counts_ns));
    }

    pub(super) fn set_initial(&mut self, initial: u32, config: &Config, now: Now) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = initial;
        self.rate(config);
        if initial == 0 {
            self.target = None;
        } else {
            self.start(self.period_ns, now);
        }
    }

    pub(super) fn set_divide(&mut self, divide: u32, config: &Config, now: Now) {
        let left = self.current(now);
        let running = self.target.is_some();
        self.divide = divide & 0xb;
        self.rate(config);
        if running {
            self.start(u64::from(left).saturating_mul(self.count_ns), now);
        }
    }

    pub(super) fn set_mode(&mut self, lvt: u32, config: &Config) {
        let mode = mode_of(lvt);
        if mode == self.mode {
            return;
        }
        if mode == Mode::TscDeadline || self.mode == Mode::TscDeadline {
            // Either timer is disarmed by changing to the other.
            self.initial = 0;
            self.target = None;
            self.deadline = 0;
        }
        self.mode = mode;
        self.rate(config);
    }

    /// Restores the count that stood at `current`.
    pub(super) fn restore(&mut self, lvt: u32, initial: u32, current: u32, divide: u32, config: &Config, now: Now) {
        let deadline = self.deadline;
        *self = Self { mode: mode_of(lvt), divide: divide & 0xb, ..Self::default() };
        if self.mode == Mode::TscDeadline {
            // The deadline is an MSR, restored before or after.
            self.deadline = deadline;
            return;
        }
        self.initial = initial;
        self.rate(config);
        let current = current.min(initial);
        if current != 0 {
            self.start(u64::from(current).saturating_mul(self.count_ns), now);
        } else if self.mode == Mode::Periodic && initial != 0 {
            // Whoever saved it rounded down: a lost tick would be worse than one too many.
            self.start(self.period_ns, now);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        match self.mode {
            Mode::TscDeadline => (self.deadline != 0).then_some(Deadline::Tsc(self.deadline)),
            _ => self.target.map(Deadline::Nanoseconds),
        }
    }

    /// Handles what is due at `now`; true if the timer fired.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        match self.mode {
            Mode::TscDeadline => {
                let due = self.deadline != 0 && now.tsc >= self.deadline;
                if due {
                    self.deadline = 0;
                }
                due
            }
            Mode::OneShot => {
                let due = self.target.is_some_and(|t| t <= now.ns);
                if due {
                    self.target = None;
                }
                due
            }
            Mode::Periodic => match self.target {
                Some(target) if target <= now.ns => {
                    let period = self.period_ns.max(1);
                    let missed = (now.ns - target) / period;
                    let step = missed.saturating_add(1).saturating_mul(period);
                    self.target = Some(target.saturating_add(step));
                    true
                }
                _ => false,
            },
        }
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        if self.mode == Mode::TscDeadline { self.deadline } else { 0 }
    }

    pub(super) fn set_tsc_deadline(&mut self, deadline: u64) -> bool {
        let active = self.mode == Mode::TscDeadline;
        if active {
            self.deadline = deadline;
        }
        active
    }
}

impl<S: Deref<Target = LapicShared>> Lapic<S> {
    pub(super) fn write_lvt_timer(&mut self, value: u32) -> Effects {
        self.write_lvt(Lvt::Timer, value);
        let entry = self.lvt[Lvt::Timer as usize];
        self.timer.set_mode(entry & !lvt::MASKED, &self.config);
        Effects { timer: true, ..Effects::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors() {
        for (divide, expected) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)] {
            assert_eq!(divisor(divide), expected);
        }
    }
}
