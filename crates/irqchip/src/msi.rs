//! Message-signalled interrupts: the address and data that a device writes (SDM vol. 3, 11.11).

use crate::message::{DeliveryMode, DestMode, Message, Shorthand, Trigger};

/// Address and data of a message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Bits 63:0 of the address; with 32-bit destination ids bits 63:40 are the id's bits 31:8.
    pub address: u64,
    /// The data.
    pub data: u32,
}

impl Msi {
    /// Whether the address can stand in a route or in `KVM_SIGNAL_MSI`: with 32-bit ids bits 39:32 are reserved.
    pub fn is_valid(&self, ids_32bit: bool) -> bool {
        !ids_32bit || self.address & 0xff_0000_0000 == 0
    }

    /// What the message says. `ids_32bit` is whether `KVM_X2APIC_API_USE_32BIT_IDS` is on. The fixed part of the
    /// address (0xfee) is not looked at, as in Linux's KVM.
    pub fn decode(&self, ids_32bit: bool) -> Message {
        let lo = self.address as u32;
        let hi = (self.address >> 32) as u32;
        let mut dest = lo >> 12 & 0xff;
        if ids_32bit {
            dest |= hi & 0xffff_ff00;
        }
        Message {
            dest,
            dest_mode: if lo & 1 << 2 != 0 { DestMode::Logical } else { DestMode::Physical },
            shorthand: Shorthand::None,
            delivery_mode: DeliveryMode::from_bits(self.data >> 8),
            vector: self.data as u8,
            trigger: if self.data & 1 << 15 != 0 { Trigger::Level } else { Trigger::Edge },
            // Nobody deasserts a level by a message: the bit is not looked at. QEMU's IOAPIC leaves it clear.
            assert: true,
            redirect_hint: lo & 1 << 3 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode() {
        let m = Msi { address: 0xfee0_5000, data: 0x41 }.decode(false);
        assert_eq!(m, Message::fixed(5, 0x41));
        let m = Msi { address: 0xfeef_f00c, data: 0xc931 }.decode(false);
        assert_eq!((m.dest, m.dest_mode, m.redirect_hint), (0xff, DestMode::Logical, true));
        assert_eq!((m.trigger, m.assert, m.vector), (Trigger::Level, true, 0x31));
        assert_eq!(m.delivery_mode, DeliveryMode::LowestPriority);
        let m = Msi { address: 0, data: 0x8023 }.decode(false);
        assert_eq!((m.trigger, m.assert), (Trigger::Level, true), "the bit for the level is no matter");
    }

    #[test]
    fn ids_of_32_bits() {
        let msi = Msi { address: 0x0001_2300_fee4_5000, data: 0 };
        assert_eq!(msi.decode(true).dest, 0x0001_2345);
        assert_eq!(msi.decode(false).dest, 0x45);
        assert!(msi.is_valid(true));
        let bad = Msi { address: 0x01_fee0_0000, data: 0 };
        assert!(!bad.is_valid(true));
        assert!(bad.is_valid(false));
    }
}
