//! ACPI's fixed hardware (ACPI 6.5, 4.8.3): event and control registers of
//! which only soft-off does something, and the power-management timer.

use super::lock;
use crate::bus::BusDevice;
use crate::control::{Control, Ending};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Ports the registers take.
pub const LEN: u64 = 12;
/// The sleep type that means soft-off; the DSDT's `_S5` names it.
pub const SLP_TYP_S5: u8 = 5;

const ENABLE: u64 = 2;
const CONTROL: u64 = 4;
const TIMER: u64 = 8;

/// Control register: ACPI owns the machine (there is no firmware that could).
const SCI_EN: u16 = 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_EN: u16 = 1 << 13;

/// Ticks a second of the timer.
const TIMER_HZ: u128 = 3_579_545;

/// The register block at [`crate::layout::PM_PORT`].
pub struct Pm {
    control: Arc<Control>,
    registers: Mutex<Registers>,
    start: Instant,
}

#[derive(Default)]
struct Registers {
    enable: u16,
    control: u16,
}

impl Pm {
    /// Registers whose soft-off ends the machine.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control, registers: Mutex::default(), start: Instant::now() }
    }

    /// All registers as one block of bytes.
    fn bytes(&self) -> [u8; LEN as usize] {
        let registers = lock(&self.registers);
        // The timer has 32 bits and wraps.
        let ticks = (self.start.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000) as u32;
        let mut bytes = [0; LEN as usize];
        // Status: no event ever happens.
        bytes[2..4].copy_from_slice(&registers.enable.to_le_bytes());
        bytes[4..6].copy_from_slice(&(registers.control | SCI_EN).to_le_bytes());
        bytes[8..12].copy_from_slice(&ticks.to_le_bytes());
        bytes
    }
}

impl BusDevice for Pm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes();
        for (byte, value) in data.iter_mut().zip(&bytes[(offset as usize).min(bytes.len())..]) {
            *byte = *value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = lock(&self.registers);
        for (address, &byte) in (offset..TIMER).zip(data) {
            let shift = 8 * (address & 1);
            let merge = |old: u16| (old & !(0xff << shift)) | u16::from(byte) << shift;
            match address & !1 {
                ENABLE => registers.enable = merge(registers.enable),
                CONTROL => registers.control = merge(registers.control),
                _ => {}
            }
        }
        if registers.control & SLP_EN != 0 {
            // SLP_EN always reads as zero.
            registers.control &= !SLP_EN;
            if registers.control >> SLP_TYP_SHIFT & 7 == u16::from(SLP_TYP_S5) {
                self.control.end(Ending::PowerOff);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pm() -> (Arc<Control>, Pm) {
        let control = Arc::new(Control::new().unwrap());
        (control.clone(), Pm::new(control))
    }

    #[test]
    fn soft_off_needs_type_and_enable() {
        let (control, pm) = pm();
        pm.write(4, &(5u16 << 10 | 1).to_le_bytes());
        pm.write(4, &(4u16 << 10 | SLP_EN).to_le_bytes());
        assert!(!control.ended());
        pm.write(4, &(5u16 << 10 | SLP_EN).to_le_bytes());
        assert_eq!(control.ending(), Some(Ending::PowerOff));
    }

    #[test]
    fn soft_off_by_single_bytes() {
        let (control, pm) = pm();
        pm.write(4, &[1]);
        pm.write(5, &[5 << 2 | 1 << 5]);
        assert_eq!(control.ending(), Some(Ending::PowerOff));
    }

    #[test]
    fn registers_read_back_and_the_timer_runs() {
        let (_, pm) = pm();
        pm.write(2, &[0x21, 0x01]);
        let mut data = [0xff; 4];
        pm.read(0, &mut data);
        assert_eq!(data, [0, 0, 0x21, 0x01]);
        let mut control = [0xff; 2];
        pm.read(4, &mut control);
        assert_eq!(control, [1, 0]);
        let ticks = || {
            let mut data = [0; 4];
            pm.read(8, &mut data);
            u32::from_le_bytes(data)
        };
        let before = ticks();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(ticks() - before > 5000);
        let mut odd = [0xff; 8];
        pm.read(11, &mut odd);
        assert_eq!(odd[1..], [0xff; 7]);
    }
}
