//! IA32_APIC_BASE: where the registers are, and the modes of the APIC with the transitions between them
//! (SDM vol. 3, 11.4.4 and 11.12.5).

use core::ops::Deref;

use super::{GeneralProtection, LAPIC_MMIO_SIZE, Lapic};
use crate::shared::LapicShared;

/// Guest physical address of the registers after reset.
pub const APIC_BASE_DEFAULT: u64 = 0xfee0_0000;
/// The bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// x2APIC mode.
pub const APIC_BASE_EXTD: u64 = 1 << 10;
/// The APIC is on.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;

/// The mode that IA32_APIC_BASE says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Switched off.
    Disabled,
    /// Registers in memory.
    Xapic,
    /// Registers as MSRs.
    X2apic,
}

/// `None` for EXTD without EN.
fn mode_of(base: u64) -> Option<ApicMode> {
    match (base & APIC_BASE_ENABLE != 0, base & APIC_BASE_EXTD != 0) {
        (false, false) => Some(ApicMode::Disabled),
        (true, false) => Some(ApicMode::Xapic),
        (true, true) => Some(ApicMode::X2apic),
        (false, true) => None,
    }
}

impl<S: Deref<Target = LapicShared>> Lapic<S> {
    /// The mode.
    pub fn mode(&self) -> ApicMode {
        mode_of(self.base).unwrap_or(ApicMode::Disabled)
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.base
    }

    /// Guest physical address at which the registers answer, in xAPIC mode only.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == ApicMode::Xapic).then_some(self.register_page())
    }

    /// Where IA32_APIC_BASE says that they are, whatever the mode.
    pub fn register_page(&self) -> u64 {
        self.base & !(LAPIC_MMIO_SIZE - 1)
    }

    /// Writes IA32_APIC_BASE. `by_host` is for a client's KVM_SET_MSRS and KVM_SET_SREGS, which may change from any
    /// mode to any other. Ask [`Lapic::mmio_base`] and [`Lapic::next_deadline`] again afterwards.
    ///
    /// # Errors
    /// Reserved bits, an address beyond the physical ones, x2APIC where CPUID has none, EXTD without EN; for a guest
    /// also the ways from x2APIC to xAPIC and from disabled to x2APIC.
    pub fn set_apic_base(&mut self, value: u64, by_host: bool) -> Result<(), GeneralProtection> {
        let address_bits = u32::from(self.config.maxphyaddr.clamp(32, 52));
        let address = ((1u64 << address_bits) - 1) & !0xfff;
        let mut allowed = address | APIC_BASE_BSP | APIC_BASE_ENABLE;
        // A client may restore the mode before it sets CPUID.
        if self.config.x2apic || by_host {
            allowed |= APIC_BASE_EXTD;
        }
        if value & !allowed != 0 {
            return Err(GeneralProtection);
        }
        let old = self.mode();
        let new = mode_of(value).ok_or(GeneralProtection)?;
        let forbidden =
            matches!((old, new), (ApicMode::X2apic, ApicMode::Xapic) | (ApicMode::Disabled, ApicMode::X2apic));
        if forbidden && !by_host {
            return Err(GeneralProtection);
        }
        self.base = value;
        if new == ApicMode::X2apic && old != new {
            // Both ids are fixed now. Only a switched-off APIC comes back from here, so what xAPIC
            // software had set is gone for good; and a message's destination has another format.
            self.xapic_id = self.id as u8;
            self.ldr = 0;
            self.dfr = 0xf;
            self.icr &= 0xffff_ffff;
        }
        match (old, new) {
            // State may be lost when the APIC is switched off: start over, so that nothing old comes back.
            (ApicMode::Xapic | ApicMode::X2apic, ApicMode::Disabled) if !by_host => self.init(),
            (ApicMode::Disabled, ApicMode::Xapic) if !by_host => self.xapic_id = self.id as u8,
            _ => {}
        }
        self.publish();
        Ok(())
    }
}
