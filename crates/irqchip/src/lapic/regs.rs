//! The registers, by MMIO offset in xAPIC mode and by MSR in x2APIC mode. Register n is at offset n * 16 and is MSR
//! 0x800 + n.

use core::ops::Deref;

use super::{
    ApicMode, ESR_ILLEGAL_REGISTER, Effects, GeneralProtection, Lapic, Lvt, Now, SVR_ENABLE,
    SVR_SUPPRESS_EOI_BROADCAST, lvt,
};
use crate::{
    message::Trigger,
    shared::{LapicShared, x2apic_ldr},
};

/// First of the x2APIC's MSRs.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last of the x2APIC's MSRs.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// APIC id.
    Id,
    /// Version.
    Version,
    /// Task priority.
    Tpr,
    /// Arbitration priority; reads as 0.
    Apr,
    /// Processor priority.
    Ppr,
    /// End of interrupt.
    Eoi,
    /// Remote read; reads as 0.
    Rrd,
    /// Logical destination.
    Ldr,
    /// Destination format.
    Dfr,
    /// Spurious-interrupt vector.
    Svr,
    /// In-service word 0 to 7.
    Isr(u8),
    /// Trigger-mode word 0 to 7.
    Tmr(u8),
    /// Interrupt-request word 0 to 7.
    Irr(u8),
    /// Error status.
    Esr,
    /// Interrupt command, low half or all of it.
    Icr,
    /// Interrupt command, high half.
    Icr2,
    /// A local vector table entry.
    Lvt(Lvt),
    /// Timer's initial count.
    InitialCount,
    /// Timer's current count.
    CurrentCount,
    /// Timer's divide configuration.
    Divide,
    /// Self IPI (x2APIC only).
    SelfIpi,
}

impl Reg {
    /// The register with number `n` (offset / 16); `None` if reserved.
    pub const fn from_index(n: u32) -> Option<Self> {
        Some(match n {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::Tpr,
            0x09 => Self::Apr,
            0x0a => Self::Ppr,
            0x0b => Self::Eoi,
            0x0c => Self::Rrd,
            0x0d => Self::Ldr,
            0x0e => Self::Dfr,
            0x0f => Self::Svr,
            0x10..=0x17 => Self::Isr(n as u8 & 7),
            0x18..=0x1f => Self::Tmr(n as u8 & 7),
            0x20..=0x27 => Self::Irr(n as u8 & 7),
            0x28 => Self::Esr,
            0x2f => Self::Lvt(Lvt::Cmci),
            0x30 => Self::Icr,
            0x31 => Self::Icr2,
            0x32 => Self::Lvt(Lvt::Timer),
            0x33 => Self::Lvt(Lvt::Thermal),
            0x34 => Self::Lvt(Lvt::Performance),
            0x35 => Self::Lvt(Lvt::Lint0),
            0x36 => Self::Lvt(Lvt::Lint1),
            0x37 => Self::Lvt(Lvt::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::Divide,
            0x3f => Self::SelfIpi,
            _ => return None,
        })
    }
}

const TPR_BITS: u32 = 0xff;
const DIVIDE_BITS: u32 = 0xb;
/// Focus-processor checking was a feature of old processors; the bit can still be set in xAPIC mode.
const SVR_FOCUS: u32 = 1 << 9;
const ICR_RESERVED: u32 = 0xfff3_2000;
/// Delivery status is never busy here: it reads as 0 and is no error in a write.
const ICR_STATUS: u32 = 1 << 12;
pub(super) const ICR_WRITABLE: u32 = !(ICR_RESERVED | ICR_STATUS);

impl<S: Deref<Target = LapicShared>> Lapic<S> {
    /// The version register: 0x14, the number of LVT entries, directed EOI.
    pub fn version(&self) -> u32 {
        let entries = if self.config.cmci { lvt::COUNT } else { lvt::COUNT - 1 } as u32;
        0x14 | (entries - 1) << 16 | u32::from(self.config.directed_eoi) << 24
    }

    fn exists(&self, reg: Reg) -> bool {
        reg != Reg::Lvt(Lvt::Cmci) || self.config.cmci
    }

    /// The value of a register as xAPIC software reads it.
    pub(super) fn read_register(&self, reg: Reg, now: Now) -> u32 {
        let x2apic = self.mode() == ApicMode::X2apic;
        match reg {
            Reg::Id if x2apic => self.id,
            Reg::Id => u32::from(self.xapic_id) << 24,
            Reg::Version => self.version(),
            Reg::Tpr => self.tpr.into(),
            Reg::Ppr => self.ppr().into(),
            Reg::Ldr if x2apic => x2apic_ldr(self.id),
            Reg::Ldr => u32::from(self.ldr) << 24,
            Reg::Dfr => u32::from(self.dfr) << 28 | 0x0fff_ffff,
            Reg::Svr => self.svr,
            Reg::Isr(n) => self.isr[usize::from(n & 7)],
            Reg::Tmr(n) => self.shared.tmr(usize::from(n & 7)),
            Reg::Irr(n) => self.shared.irr(usize::from(n & 7)),
            Reg::Esr => self.esr,
            Reg::Icr => self.icr as u32,
            Reg::Icr2 => (self.icr >> 32) as u32,
            Reg::Lvt(entry) => self.lvt[entry as usize],
            Reg::InitialCount => self.timer.initial(),
            Reg::CurrentCount => self.timer.current(now),
            Reg::Divide => self.timer.divide(),
            Reg::Apr | Reg::Rrd | Reg::Eoi | Reg::SelfIpi => 0,
        }
    }

    /// Writes that both modes have in common; what is read-only or does not exist is ignored.
    fn write_register(&mut self, reg: Reg, value: u32, now: Now) -> Effects {
        let mut effects = Effects::default();
        match reg {
            Reg::Tpr => self.set_tpr(value as u8),
            Reg::Eoi => effects.eoi = self.eoi(),
            Reg::Svr => self.write_svr(value),
            Reg::Esr => self.esr = self.shared.take_errors(),
            Reg::Icr => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & ICR_WRITABLE);
                effects = self.send_ipi();
            }
            Reg::Lvt(Lvt::Timer) => effects = self.write_lvt_timer(value),
            Reg::Lvt(entry) => self.write_lvt(entry, value),
            Reg::InitialCount => {
                self.timer.set_initial(value, &self.config, now);
                effects.timer = true;
            }
            Reg::Divide => {
                self.timer.set_divide(value, &self.config, now);
                effects.timer = true;
            }
            Reg::SelfIpi => {
                if (value as u8) < 16 {
                    self.error(super::ESR_SEND_ILLEGAL_VECTOR);
                } else if self.software_enabled() {
                    self.shared.set_vector(value as u8, Trigger::Edge);
                }
            }
            _ => {}
        }
        effects
    }

    fn write_svr(&mut self, value: u32) {
        let mut bits = 0xff | SVR_ENABLE | SVR_FOCUS;
        if self.config.directed_eoi {
            bits |= SVR_SUPPRESS_EOI_BROADCAST;
        }
        self.svr = value & bits;
        if !self.software_enabled() {
            for entry in &mut self.lvt {
                *entry |= lvt::MASKED;
            }
        }
        self.publish();
    }

    /// A guest read of `data.len()` bytes at `offset` (0 to 0xfff) of the register page. 1, 2 or 4 bytes inside the
    /// first four of a register give them; anything else reads as zero, and a reserved register is an error in ESR.
    /// Outside xAPIC mode nothing answers: all ones.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8], now: Now) {
        if self.mode() != ApicMode::Xapic {
            data.fill(0xff);
            return;
        }
        data.fill(0);
        let Some(reg) = self.mmio_register(offset) else { return };
        let start = (offset & 0xf) as usize;
        if !matches!(data.len(), 1 | 2 | 4) || start + data.len() > 4 {
            return;
        }
        let value = self.read_register(reg, now).to_le_bytes();
        for (to, from) in data.iter_mut().zip(&value[start..]) {
            *to = *from;
        }
    }

    /// A guest write at `offset` (0 to 0xfff) of the register page. Registers are written with 4 aligned bytes;
    /// anything else is ignored, and a reserved register is an error in ESR. Outside xAPIC mode nothing answers.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], now: Now) -> Effects {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return Effects::default() };
        if self.mode() != ApicMode::Xapic || offset & 0xf != 0 {
            return Effects::default();
        }
        let Some(reg) = self.mmio_register(offset) else { return Effects::default() };
        let value = u32::from_le_bytes(bytes);
        match reg {
            Reg::Id => self.xapic_id = (value >> 24) as u8,
            Reg::Ldr => self.ldr = (value >> 24) as u8,
            Reg::Dfr => self.dfr = (value >> 28) as u8,
            Reg::Icr2 => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            reg => return self.write_register(reg, value, now),
        }
        self.publish();
        Effects::default()
    }

    fn mmio_register(&mut self, offset: u64) -> Option<Reg> {
        let reg = u32::try_from(offset >> 4)
            .ok()
            .and_then(Reg::from_index)
            .filter(|&reg| reg != Reg::SelfIpi && self.exists(reg));
        if reg.is_none() {
            self.error(ESR_ILLEGAL_REGISTER);
        }
        reg
    }

    fn x2apic_register(&self, msr: u32) -> Result<Reg, GeneralProtection> {
        let index = msr.checked_sub(MSR_X2APIC_FIRST).ok_or(GeneralProtection)?;
        if self.mode() != ApicMode::X2apic {
            return Err(GeneralProtection);
        }
        match Reg::from_index(index) {
            None | Some(Reg::Apr | Reg::Rrd | Reg::Dfr | Reg::Icr2) => Err(GeneralProtection),
            Some(reg) if self.exists(reg) => Ok(reg),
            Some(_) => Err(GeneralProtection),
        }
    }

    /// Reads one of the x2APIC's MSRs.
    ///
    /// # Errors
    /// Not in x2APIC mode, a reserved MSR, or a write-only one (EOI, self IPI).
    pub fn x2apic_read(&self, msr: u32, now: Now) -> Result<u64, GeneralProtection> {
        match self.x2apic_register(msr)? {
            Reg::Eoi | Reg::SelfIpi => Err(GeneralProtection),
            Reg::Icr => Ok(self.icr),
            reg => Ok(self.read_register(reg, now).into()),
        }
    }

    /// Writes one of the x2APIC's MSRs.
    ///
    /// # Errors
    /// Not in x2APIC mode, a reserved or read-only MSR, or a reserved bit that is not zero.
    pub fn x2apic_write(&mut self, msr: u32, value: u64, now: Now) -> Result<Effects, GeneralProtection> {
        let reg = self.x2apic_register(msr)?;
        let low = value as u32;
        let allowed = match reg {
            Reg::Tpr | Reg::SelfIpi => TPR_BITS,
            Reg::Eoi | Reg::Esr => 0,
            Reg::Svr => {
                let directed = if self.config.directed_eoi { SVR_SUPPRESS_EOI_BROADCAST } else { 0 };
                0xff | SVR_ENABLE | SVR_FOCUS | directed
            }
            Reg::Icr => !ICR_RESERVED,
            Reg::Lvt(entry) => entry.writable(self.config.tsc_deadline) | lvt::READ_ONLY,
            Reg::InitialCount => u32::MAX,
            Reg::Divide => DIVIDE_BITS,
            _ => return Err(GeneralProtection),
        };
        let high_allowed = reg == Reg::Icr;
        if low & !allowed != 0 || value >> 32 != 0 && !high_allowed {
            return Err(GeneralProtection);
        }
        if reg == Reg::Icr {
            self.icr = value;
        }
        Ok(self.write_register(reg, low, now))
    }
}
