//! One counter of the i8254. Nothing is counted: values follow from the time since the count was loaded.

use abi::KvmPitChannelState;

use super::{counts, nanoseconds};

// `read_state` and `write_state`: which byte comes next. The numbers are the ABI's.
const LSB: u8 = 1;
const MSB: u8 = 2;
const WORD_LOW: u8 = 3;
const WORD_HIGH: u8 = 4;

/// The ABI's count, by which clients divide, is 1 to 65536. That none has been loaded is told by a mode that does not
/// exist (Linux says 0xff after a reset).
const NOTHING_LOADED: u8 = 0x80;
const LARGEST: u32 = 0x1_0000;

#[derive(Clone, Debug)]
pub(super) struct Channel {
    /// 1 to 65536; 0 from the control word until a count is loaded.
    count: u32,
    mode: u8,
    bcd: bool,
    /// 1 low byte, 2 high byte, 3 both.
    rw: u8,
    read_state: u8,
    write_state: u8,
    write_latch: u8,
    latched_count: u16,
    /// Bytes of the latched count still to be read, as `read_state`; 0 is none.
    count_latched: u8,
    status_latched: bool,
    status: u8,
    gate: bool,
    /// When counting began; `None` while there is nothing to count or no trigger came.
    start: Option<u64>,
    /// Counts that had passed when the gate stopped the counter.
    stopped: Option<u64>,
}

impl Channel {
    pub(super) const fn new(gate: bool) -> Self {
        Self {
            count: 0,
            mode: 3,
            bcd: false,
            rw: 3,
            read_state: WORD_LOW,
            write_state: WORD_LOW,
            write_latch: 0,
            latched_count: 0,
            count_latched: 0,
            status_latched: false,
            status: 0,
            gate,
            start: None,
            stopped: None,
        }
    }

    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    /// Rate generator or square wave: the count is reloaded by itself.
    pub(super) fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// A rising gate starts the count: one-shot and hardware-triggered strobe.
    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// Counts since the start.
    fn elapsed(&self, now: impl FnOnce() -> u64) -> Option<u64> {
        self.stopped.or_else(|| self.start.map(|start| counts(now().saturating_sub(start))))
    }

    fn value(&self, now: impl FnOnce() -> u64) -> u16 {
        let count = u64::from(self.count.max(1));
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let Some(elapsed) = self.elapsed(now) else { return self.encode(self.count) };
        let value = match self.mode {
            2 => count - elapsed % count,
            // Counts down by two, once for each half of the wave.
            3 => count - elapsed.wrapping_mul(2) % count,
            _ => (count + wrap - elapsed % wrap) % wrap,
        };
        self.encode(value as u32)
    }

    /// As the register holds it; the largest count is 0.
    fn encode(&self, value: u32) -> u16 {
        if !self.bcd {
            return value as u16;
        }
        let digit = |power: u32| value / power % 10;
        (digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)) as u16
    }

    fn decode(&self, raw: u16) -> u32 {
        let value = if self.bcd {
            let digit = |shift: u32| u32::from(raw) >> shift & 0xf;
            digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)
        } else {
            raw.into()
        };
        match value {
            0 if self.bcd => 10_000,
            0 => LARGEST,
            n => n,
        }
    }

    pub(super) fn output(&self, now: u64) -> bool {
        let count = u64::from(self.count.max(1));
        let elapsed = self.elapsed(|| now);
        match (self.mode, elapsed) {
            (0, None) => false,
            (0 | 1, Some(elapsed)) => elapsed >= count,
            (2 | 3, _) if !self.gate => true,
            (2, Some(elapsed)) => elapsed % count != count - 1,
            (3, Some(elapsed)) => elapsed % count < count.div_ceil(2),
            (_, None) => true,
            (_, Some(elapsed)) => elapsed != count,
        }
    }

    /// Rising edges of the output up to `now`, since the count was loaded. Only for a channel whose gate is high.
    pub(super) fn edges(&self, now: u64) -> u64 {
        let Some(elapsed) = self.elapsed(|| now) else { return 0 };
        let count = u64::from(self.count.max(1));
        match self.mode {
            0 => (elapsed >= count).into(),
            2 | 3 => elapsed / count,
            4 => (elapsed > count).into(),
            _ => 0,
        }
    }

    /// When the edge after the first `edges` comes.
    pub(super) fn edge_time(&self, edges: u64) -> Option<u64> {
        let start = self.start?;
        let count = u64::from(self.count.max(1));
        let after = match (self.mode, edges) {
            (0, 0) => count,
            (4, 0) => count + 1,
            (2 | 3, n) => n.saturating_add(1).saturating_mul(count),
            _ => return None,
        };
        Some(start.saturating_add(nanoseconds(after)))
    }

    /// A control word for this channel; true if it was programmed, false if it only latched the count.
    pub(super) fn control(&mut self, value: u8, now: u64) -> bool {
        let rw = value >> 4 & 3;
        if rw == 0 {
            self.latch_count(now);
            return false;
        }
        self.rw = rw;
        self.mode = normal_mode(value >> 1 & 7);
        self.bcd = value & 1 != 0;
        self.read_state = rw;
        self.write_state = rw;
        self.count_latched = 0;
        self.status_latched = false;
        self.count = 0;
        self.start = None;
        self.stopped = None;
        true
    }

    pub(super) fn latch_count(&mut self, now: u64) {
        if self.count_latched == 0 {
            self.latched_count = self.value(|| now);
            self.count_latched = self.rw;
        }
    }

    pub(super) fn latch_status(&mut self, now: u64) {
        if !self.status_latched {
            self.status = u8::from(self.output(now)) << 7
                | u8::from(self.count == 0) << 6
                | self.rw << 4
                | self.mode << 1
                | u8::from(self.bcd);
            self.status_latched = true;
        }
    }

    pub(super) fn read(&mut self, now: impl FnOnce() -> u64) -> u8 {
        if core::mem::take(&mut self.status_latched) {
            return self.status;
        }
        let [low, high] = self.latched_count.to_le_bytes();
        match self.count_latched {
            0 => {}
            LSB => {
                self.count_latched = 0;
                return low;
            }
            WORD_LOW => {
                self.count_latched = MSB;
                return low;
            }
            _ => {
                self.count_latched = 0;
                return high;
            }
        }
        let [low, high] = self.value(now).to_le_bytes();
        match self.read_state {
            LSB => low,
            MSB => high,
            WORD_HIGH => {
                self.read_state = WORD_LOW;
                high
            }
            _ => {
                self.read_state = WORD_HIGH;
                low
            }
        }
    }

    /// A byte of the count; true if counting was started or stopped.
    pub(super) fn write(&mut self, value: u8, now: u64) -> bool {
        match self.write_state {
            LSB => self.load(value.into(), now),
            MSB => self.load(u16::from(value) << 8, now),
            WORD_HIGH => {
                self.write_state = WORD_LOW;
                self.load(u16::from_le_bytes([self.write_latch, value]), now);
            }
            _ => {
                self.write_latch = value;
                self.write_state = WORD_HIGH;
                // In mode 0 the first byte stops the count.
                if self.mode == 0 {
                    self.count = 0;
                    self.start = None;
                    self.stopped = None;
                }
                return self.mode == 0;
            }
        }
        true
    }

    fn load(&mut self, raw: u16, now: u64) {
        self.count = self.decode(raw);
        if !self.is_triggered() {
            self.start = Some(now);
            self.stopped = (!self.gate).then_some(0);
        }
    }

    /// The gate's level: port 0x61 for channel 2, always high for the others.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        if gate {
            if self.is_triggered() || self.is_periodic() {
                self.start = (self.count != 0).then_some(now);
            } else if let Some(passed) = self.stopped {
                self.start = Some(now.saturating_sub(nanoseconds(passed)));
            }
            self.stopped = None;
        } else if !self.is_triggered() {
            self.stopped = self.elapsed(|| now);
        }
    }

    pub(super) fn state(&self, now: u64) -> KvmPitChannelState {
        // A stopped counter is told as if it had been loaded so long ago.
        let start = match self.stopped {
            Some(passed) => Some(now.saturating_sub(nanoseconds(passed))),
            None => self.start,
        };
        let loaded = self.count != 0;
        KvmPitChannelState {
            count: if loaded { self.count } else { LARGEST },
            latched_count: self.latched_count,
            count_latched: self.count_latched,
            status_latched: self.status_latched.into(),
            status: self.status,
            read_state: self.read_state,
            write_state: self.write_state,
            write_latch: self.write_latch,
            rw_mode: self.rw,
            mode: self.mode | if loaded { 0 } else { NOTHING_LOADED },
            bcd: self.bcd.into(),
            gate: self.gate.into(),
            count_load_time: start.and_then(|t| i64::try_from(t).ok()).unwrap_or(0),
        }
    }

    pub(super) fn set_state(&mut self, state: &KvmPitChannelState, gate_fixed: bool, now: u64) {
        self.bcd = state.bcd != 0;
        self.mode = normal_mode(state.mode & 7);
        self.count = match state.count {
            _ if state.mode & NOTHING_LOADED != 0 => 0,
            0 => LARGEST,
            count => count,
        };
        self.count = self.count.min(if self.bcd { 16_665 } else { LARGEST });
        self.rw = match state.rw_mode & 3 {
            0 => 3,
            rw => rw,
        };
        self.read_state = byte_state(state.read_state, self.rw);
        self.write_state = byte_state(state.write_state, self.rw);
        self.write_latch = state.write_latch;
        self.latched_count = state.latched_count;
        self.count_latched = state.count_latched & 3;
        self.status_latched = state.status_latched != 0;
        self.status = state.status;
        self.gate = gate_fixed || state.gate != 0;
        let loaded = u64::try_from(state.count_load_time).ok().filter(|&t| t != 0 && t <= now);
        self.start = match loaded {
            _ if self.count == 0 => None,
            None if self.is_triggered() => None,
            time => Some(time.unwrap_or(now)),
        };
        self.stopped = None;
        if !self.gate && !self.is_triggered() {
            self.stopped = self.elapsed(|| now);
        }
    }
}

/// Modes 6 and 7 are 2 and 3.
fn normal_mode(mode: u8) -> u8 {
    if mode > 5 { mode - 4 } else { mode }
}

fn byte_state(state: u8, rw: u8) -> u8 {
    match (rw, state) {
        (3, WORD_LOW | WORD_HIGH) => state,
        _ => rw,
    }
}
