//! The clock and its battery-backed memory (MC146818), which follow the host's
//! UTC clock. Alarms and periodic interrupts do not exist: nothing is wired to
//! interrupt 8.

use super::lock;
use crate::bus::BusDevice;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const STATUS_A: u8 = 0xa;
const STATUS_B: u8 = 0xb;
const STATUS_C: u8 = 0xc;
const STATUS_D: u8 = 0xd;
/// The register that holds the century, as the FADT tells the guest.
pub const CENTURY: u8 = 0x32;

/// Status A: an update is in progress. Never set: reads are consistent.
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// Status A: 32.768 kHz time base, 1024 Hz rate.
const STATUS_A_RESET: u8 = 0x26;
/// Status B: 24-hour mode.
const HOUR_24: u8 = 2;
/// Status B: binary instead of BCD.
const BINARY: u8 = 4;
/// Status D: time and memory are valid.
const VALID: u8 = 0x80;

/// Registers behind one index port and one data port.
pub struct Cmos {
    state: Mutex<State>,
    now: fn() -> u64,
}

struct State {
    index: u8,
    memory: [u8; 128],
}

/// Seconds since 1970 by the host's clock.
fn host_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Default for Cmos {
    fn default() -> Self {
        Self::with_clock(host_now)
    }
}

impl Cmos {
    fn with_clock(now: fn() -> u64) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_A)] = STATUS_A_RESET;
        memory[usize::from(STATUS_B)] = HOUR_24;
        Self { state: Mutex::new(State { index: 0, memory }), now }
    }
}

/// Year, month, day of the Gregorian calendar for a day counted from 1970.
fn civil(day: u64) -> (u64, u8, u8) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    // 400 years have 146097 days.
    let mut year = 1970 + day / 146_097 * 400;
    let mut day = day % 146_097;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day as u8 + 1)
}

impl State {
    fn read(&self, now: u64) -> u8 {
        let status_b = self.memory[usize::from(STATUS_B)];
        let (year, month, day) = civil(now / 86_400);
        let value = match self.index {
            SECONDS => (now % 60) as u8,
            MINUTES => (now / 60 % 60) as u8,
            HOURS => {
                let hour = (now / 3600 % 24) as u8;
                if status_b & HOUR_24 != 0 {
                    hour
                } else {
                    // Twelve-hour mode: 12, 1, ... 11 with the top bit for the afternoon.
                    let (half, hour) = (hour / 12, hour % 12);
                    let hour = if hour == 0 { 12 } else { hour };
                    return encode(hour, status_b) | half << 7;
                }
            }
            // 1970 began on a Thursday; Sunday is 1.
            WEEKDAY => ((now / 86_400 + 4) % 7) as u8 + 1,
            DAY => day,
            MONTH => month,
            YEAR => (year % 100) as u8,
            CENTURY => (year / 100) as u8,
            STATUS_A => return self.memory[usize::from(STATUS_A)] & !UPDATE_IN_PROGRESS,
            STATUS_C => return 0,
            STATUS_D => return VALID,
            index => return self.memory[usize::from(index)],
        };
        encode(value, status_b)
    }
}

fn encode(value: u8, status_b: u8) -> u8 {
    if status_b & BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The index port cannot be read back.
        if offset == 1 {
            data[0] = lock(&self.state).read((self.now)());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        if offset == 0 {
            // The top bit masks NMIs on a PC; there is none to mask.
            state.index = data[0] & 0x7f;
        } else {
            // Setting the clock is accepted and has no effect: it is the host's.
            let index = usize::from(state.index);
            state.memory[index] = data[0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &Cmos, index: u8) -> u8 {
        cmos.write(0, &[index]);
        let mut data = [0xff];
        cmos.read(1, &mut data);
        data[0]
    }

    #[test]
    fn time_in_bcd_and_binary() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let cmos = Cmos::with_clock(|| 1_709_251_198);
        let bcd = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY].map(|i| read(&cmos, i));
        assert_eq!(bcd, [0x58, 0x59, 0x23, 5, 0x29, 2, 0x24, 0x20]);
        cmos.write(0, &[STATUS_B]);
        cmos.write(1, &[BINARY]);
        assert_eq!([read(&cmos, HOURS), read(&cmos, SECONDS)], [0x80 | 11, 58]);
    }

    #[test]
    fn calendar() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(19_722), (2023, 12, 31));
        assert_eq!(civil(47_540), (2100, 2, 28));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }

    #[test]
    fn memory_keeps_what_is_written_and_status_tells_no_update() {
        let cmos = Cmos::default();
        cmos.write(0, &[0x80 | 0x40]);
        cmos.write(1, &[0x5a]);
        assert_eq!(read(&cmos, 0x40), 0x5a);
        cmos.write(0, &[STATUS_A]);
        cmos.write(1, &[0xff]);
        assert_eq!(read(&cmos, STATUS_A) & UPDATE_IN_PROGRESS, 0);
        assert_eq!(read(&cmos, STATUS_D), VALID);
    }
}
