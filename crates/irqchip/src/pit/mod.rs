//! The i8254: three counters at 1.193182 MHz. Channel 0 is the tick on IRQ 0, channel 2 makes sound and is what old
//! software measures time with; its gate and output are at port 0x61.
//!
//! Ticks that the guest could not take in time are kept and delivered when it ends an earlier one (reinjection), or
//! dropped, as `KVM_REINJECT_CONTROL` says. The core pulses GSI 0 for [`Pit::expired`] and reports with
//! [`Pit::pulsed`] how that went; at the end of IRQ 0's interrupt it asks [`Pit::acked`].

mod channel;

use abi::{KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON, KvmPitState, KvmPitState2};

use crate::line::LineStatus;
use channel::Channel;

/// Counts a second.
pub const PIT_HZ: u64 = 1_193_182;
/// Between two ticks the core is woken no sooner than this, however short a period the guest asks for.
const MIN_PERIOD_NS: u64 = 200_000;
/// Most ticks that are kept for later: about ten seconds at 1 kHz.
const MAX_PENDING: u32 = 10_000;
/// Bit 4 of port 0x61 changes about every 15 us on a board (DRAM refresh): here every 2^14 ns.
const REFRESH_SHIFT: u32 = 14;

/// Nanoseconds to counts, rounded down.
fn counts(ns: u64) -> u64 {
    // In two parts: neither product is as large as 2^64.
    let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
    seconds * PIT_HZ + rest * PIT_HZ / 1_000_000_000
}

/// Counts to nanoseconds, rounded up: at that time the count has been reached.
fn nanoseconds(counts: u64) -> u64 {
    let ns = (u128::from(counts) * 1_000_000_000).div_ceil(u128::from(PIT_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// The timer. All times are nanoseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    hpet_legacy: bool,
    speaker: bool,
    /// Ticks of channel 0 handled since it was started.
    fired: u64,
    last_fired: Option<u64>,
    reinject: bool,
    pending: u32,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// As after power-on: nothing counts until it is programmed.
    pub const fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            hpet_legacy: false,
            speaker: false,
            fired: 0,
            last_fired: None,
            reinject: true,
            pending: 0,
        }
    }

    /// Whether this port is the counter's (0x40 to 0x43). Port 0x61 is the core's choice.
    pub const fn owns(port: u16) -> bool {
        matches!(port, 0x40..=0x43)
    }

    /// A byte read from port 0x40 to 0x43. The control register cannot be read and gives 0. The clock is only asked if the answer
    /// depends on it.
    pub fn read(&mut self, port: u16, now: impl FnOnce() -> u64) -> u8 {
        match self.channels.get_mut(usize::from(port & 3)) {
            Some(channel) => channel.read(now),
            None => 0,
        }
    }

    /// A byte written to port 0x40 to 0x43. Ask [`Pit::next_deadline`] again afterwards.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        let select = usize::from(port & 3);
        if let Some(channel) = self.channels.get_mut(select) {
            if channel.write(value, now) && select == 0 {
                self.restart();
            }
            return;
        }
        match self.channels.get_mut(usize::from(value >> 6)) {
            Some(channel) => {
                if channel.control(value, now) && value >> 6 == 0 {
                    self.restart();
                }
            }
            None => self.read_back(value, now),
        }
    }

    fn restart(&mut self) {
        self.fired = 0;
        self.last_fired = None;
        self.pending = 0;
    }

    fn read_back(&mut self, value: u8, now: u64) {
        for (n, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << n == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latch_count(now);
            }
            if value & 0x10 == 0 {
                channel.latch_status(now);
            }
        }
    }

    /// A byte read from port 0x61: gate 2, speaker, refresh, output 2.
    pub fn speaker_read(&self, now: u64) -> u8 {
        let channel = &self.channels[2];
        u8::from(channel.gate())
            | u8::from(self.speaker) << 1
            | u8::from(now >> REFRESH_SHIFT & 1 != 0) << 4
            | u8::from(channel.output(now)) << 5
    }

    /// A byte written to port 0x61.
    pub fn speaker_write(&mut self, value: u8, now: u64) {
        self.speaker = value & 2 != 0;
        self.channels[2].set_gate(value & 1 != 0, now);
    }

    /// When [`Pit::expired`] has to be called next; `None` while channel 0 gives no tick.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.hpet_legacy {
            return None;
        }
        let due = self.channels[0].edge_time(self.fired)?;
        let soonest = self.last_fired.map_or(0, |t| t.saturating_add(MIN_PERIOD_NS));
        Some(due.max(soonest))
    }

    /// Ticks of channel 0 that have come up to `now`. If it is not 0, pulse GSI 0 (up and down) once and call
    /// [`Pit::pulsed`].
    pub fn expired(&mut self, now: u64) -> u32 {
        if self.hpet_legacy {
            return 0;
        }
        let edges = self.channels[0].edges(now);
        let new = edges.saturating_sub(self.fired);
        if new != 0 {
            self.fired = edges;
            self.last_fired = Some(now);
        }
        u32::try_from(new).unwrap_or(u32::MAX)
    }

    /// The pulse for `ticks` ticks went like this: what the guest did not see is kept for later.
    pub fn pulsed(&mut self, ticks: u32, status: LineStatus) {
        let missed = match status {
            _ if !self.reinject => return,
            // Masked: the guest takes its time from elsewhere, and a later unmasking must not start a storm.
            LineStatus::Ignored => {
                self.pending = 0;
                return;
            }
            LineStatus::Coalesced => ticks,
            LineStatus::Delivered(_) => ticks.saturating_sub(1),
        };
        self.pending = self.pending.saturating_add(missed).min(MAX_PENDING);
    }

    /// The guest ended an interrupt of IRQ 0. True if a kept tick is due: pulse GSI 0 and call `pulsed(1, status)`.
    pub fn acked(&mut self) -> bool {
        let due = self.pending != 0;
        self.pending = self.pending.saturating_sub(1);
        due
    }

    /// Whether missed ticks are delivered later (the default) or dropped.
    pub fn set_reinject(&mut self, reinject: bool) {
        self.reinject = reinject;
        self.pending = 0;
    }

    /// State for `KVM_GET_PIT2`.
    pub fn state2(&self, now: u64) -> KvmPitState2 {
        let mut flags = 0;
        if self.hpet_legacy {
            flags |= KVM_PIT_FLAGS_HPET_LEGACY;
        }
        if self.speaker {
            flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON;
        }
        KvmPitState2 { channels: self.state(now).channels, flags, reserved: [0; 9] }
    }

    /// State for `KVM_GET_PIT`.
    pub fn state(&self, now: u64) -> KvmPitState {
        KvmPitState { channels: self.channels.each_ref().map(|c| c.state(now)) }
    }

    /// Replaces the state, for `KVM_SET_PIT2`. `count_load_time` counts if it is of the past; else counting starts
    /// now. A one-shot count that is over by then ticks at once: late rather than never.
    pub fn set_state2(&mut self, state: &KvmPitState2, now: u64) {
        self.hpet_legacy = state.flags & KVM_PIT_FLAGS_HPET_LEGACY != 0;
        self.speaker = state.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0;
        self.set_state(&KvmPitState { channels: state.channels }, now);
    }

    /// Replaces the channels, for `KVM_SET_PIT`.
    pub fn set_state(&mut self, state: &KvmPitState, now: u64) {
        for (n, (channel, from)) in self.channels.iter_mut().zip(&state.channels).enumerate() {
            channel.set_state(from, n != 2, now);
        }
        self.restart();
        if self.channels[0].is_periodic() {
            self.fired = self.channels[0].edges(now);
        }
    }
}

#[cfg(test)]
mod tests;
