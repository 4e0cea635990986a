//! The GSI routing table: which pins and messages a global system interrupt leads to.
//!
//! A table is immutable once it is built: `KVM_SET_GSI_ROUTING` publishes a new one.

extern crate alloc;

use alloc::vec::Vec;

use abi::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_IRQ_ROUTES, KVM_MSI_VALID_DEVID, KvmIrqRoutingEntry,
};

use crate::{ioapic::IOAPIC_PINS, message::Trigger, msi::Msi};

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Input 0 to 15 of the pair of 8259A.
    Pic {
        /// The input.
        line: u8,
    },
    /// A pin of the IOAPIC, 0 to 23.
    Ioapic {
        /// The pin.
        pin: u8,
    },
    /// A message, sent on each rising edge.
    Msi(Msi),
}

/// Why a table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingError {
    /// More than `KVM_MAX_IRQ_ROUTES` entries (`EINVAL`).
    TooMany,
    /// GSI out of range, unknown type or flag, no such pin, or a reserved address bit (`EINVAL`).
    BadEntry,
    /// Two routes of one GSI to the same controller, or a message beside another route (`EINVAL`).
    Conflict,
    /// No memory (`ENOMEM`).
    NoMemory,
}

impl core::fmt::Display for RoutingError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::TooMany => "more than 4096 interrupt routes",
            Self::BadEntry => "an interrupt route names a GSI, type, pin or address that does not exist",
            Self::Conflict => "two interrupt routes of one GSI exclude each other",
            Self::NoMemory => "no memory for the interrupt routing table",
        })
    }
}

impl core::error::Error for RoutingError {}

/// A validated routing table.
#[derive(Clone, Debug, Default)]
pub struct RoutingTable {
    /// Sorted by GSI.
    routes: Vec<(u32, Route)>,
}

impl RoutingTable {
    /// A table without routes (split interrupt controllers, before the client sets one).
    pub const fn empty() -> Self {
        Self { routes: Vec::new() }
    }

    /// The table that `KVM_CREATE_IRQCHIP` makes: GSI n leads to IOAPIC pin n, below 16 to PIC input n as well.
    ///
    /// # Errors
    /// [`RoutingError::NoMemory`].
    pub fn default_table() -> Result<Self, RoutingError> {
        let ioapic = (0..IOAPIC_PINS as u32).map(|n| KvmIrqRoutingEntry::to_irqchip(n, KVM_IRQCHIP_IOAPIC, n));
        let pic = (0..16u32).map(|n| {
            let chip = if n < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            KvmIrqRoutingEntry::to_irqchip(n, chip, n & 7)
        });
        Self::build(pic.chain(ioapic), false)
    }

    /// Checks and builds a table. `ids_32bit` is whether `KVM_X2APIC_API_USE_32BIT_IDS` is on.
    ///
    /// # Errors
    /// See [`RoutingError`]. Looks at no more than `KVM_MAX_IRQ_ROUTES` + 1 entries.
    pub fn build(entries: impl Iterator<Item = KvmIrqRoutingEntry>, ids_32bit: bool) -> Result<Self, RoutingError> {
        let mut table = Self::empty();
        for entry in entries {
            if table.routes.len() >= KVM_MAX_IRQ_ROUTES {
                return Err(RoutingError::TooMany);
            }
            let route = parse(&entry, ids_32bit)?;
            table.routes.try_reserve(1).map_err(|_| RoutingError::NoMemory)?;
            table.routes.push((entry.gsi, route));
        }
        // In place, so no allocation; the order within a GSI is of no consequence.
        table.routes.sort_unstable_by_key(|(gsi, route)| (*gsi, rank(route)));
        for pair in table.routes.windows(2) {
            let ((gsi_a, a), (gsi_b, b)) = (pair[0], pair[1]);
            if gsi_a == gsi_b && (rank(&a) == rank(&b) || matches!(b, Route::Msi(_))) {
                return Err(RoutingError::Conflict);
            }
        }
        Ok(table)
    }

    /// The routes of a GSI; none if it leads nowhere.
    pub fn lookup(&self, gsi: u32) -> impl Iterator<Item = &Route> + '_ {
        let start = self.routes.partition_point(|(g, _)| *g < gsi);
        self.routes[start..].iter().take_while(move |(g, _)| *g == gsi).map(|(_, route)| route)
    }

    /// GSIs that lead to this route, for end-of-interrupt notifications.
    pub fn gsis_of(&self, route: Route) -> impl Iterator<Item = u32> + '_ {
        self.routes.iter().filter(move |(_, r)| *r == route).map(|(gsi, _)| *gsi)
    }

    /// All routes, by GSI.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Route)> + '_ {
        self.routes.iter().map(|(gsi, route)| (*gsi, route))
    }

    /// Whether a message of one of the first `gsis` GSIs is level-triggered and has this vector: with split interrupt
    /// controllers these are the pins of the client's IOAPIC, which hears of its end (`KVM_EXIT_IOAPIC_EOI`).
    pub fn is_level_vector(&self, vector: u8, gsis: u32, ids_32bit: bool) -> bool {
        self.routes.iter().take_while(|(gsi, _)| *gsi < gsis).any(|(_, route)| match route {
            Route::Msi(msi) => {
                let message = msi.decode(ids_32bit);
                message.vector == vector && message.trigger == Trigger::Level
            }
            _ => false,
        })
    }
}

/// Routes of one GSI with the same rank exclude each other.
fn rank(route: &Route) -> u8 {
    match route {
        Route::Pic { line: 0..8 } => 0,
        Route::Pic { .. } => 1,
        Route::Ioapic { .. } => 2,
        Route::Msi(_) => 3,
    }
}

fn parse(entry: &KvmIrqRoutingEntry, ids_32bit: bool) -> Result<Route, RoutingError> {
    // A device id beside a message is accepted and means nothing on x86.
    let flags = if entry.type_ == KVM_IRQ_ROUTING_MSI { KVM_MSI_VALID_DEVID } else { 0 };
    if entry.gsi as usize >= KVM_MAX_IRQ_ROUTES || entry.flags & !flags != 0 {
        return Err(RoutingError::BadEntry);
    }
    match entry.type_ {
        KVM_IRQ_ROUTING_IRQCHIP => {
            let [chip, pin, ..] = entry.u;
            let pin = u8::try_from(pin).map_err(|_| RoutingError::BadEntry)?;
            match (chip, pin) {
                (KVM_IRQCHIP_PIC_MASTER, 0..8) => Ok(Route::Pic { line: pin }),
                (KVM_IRQCHIP_PIC_SLAVE, 0..8) => Ok(Route::Pic { line: pin + 8 }),
                (KVM_IRQCHIP_IOAPIC, _) if usize::from(pin) < IOAPIC_PINS => Ok(Route::Ioapic { pin }),
                _ => Err(RoutingError::BadEntry),
            }
        }
        KVM_IRQ_ROUTING_MSI => {
            let [lo, hi, data, ..] = entry.u;
            let msi = Msi { address: u64::from(hi) << 32 | u64::from(lo), data };
            if msi.is_valid(ids_32bit) { Ok(Route::Msi(msi)) } else { Err(RoutingError::BadEntry) }
        }
        _ => Err(RoutingError::BadEntry),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use abi::{KVM_IRQ_ROUTING_HV_SINT, Pod};
    use proptest::prelude::*;
    use std::vec;

    fn build(entries: &[KvmIrqRoutingEntry]) -> Result<RoutingTable, RoutingError> {
        RoutingTable::build(entries.iter().copied(), false)
    }

    fn chip(gsi: u32, chip: u32, pin: u32) -> KvmIrqRoutingEntry {
        KvmIrqRoutingEntry::to_irqchip(gsi, chip, pin)
    }

    #[test]
    fn default_is_the_identity() {
        let table = RoutingTable::default_table().unwrap();
        for gsi in 0..24 {
            let routes: Vec<Route> = table.lookup(gsi).copied().collect();
            let pin = Route::Ioapic { pin: gsi as u8 };
            if gsi < 16 {
                assert_eq!(routes, [Route::Pic { line: gsi as u8 }, pin]);
            } else {
                assert_eq!(routes, [pin]);
            }
        }
        assert_eq!(table.lookup(24).count(), 0);
        assert_eq!(table.gsis_of(Route::Ioapic { pin: 9 }).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn refusals() {
        let msi = KvmIrqRoutingEntry::to_msi(5, 0xfee0_0000, 0x40);
        for (entries, error) in [
            (vec![chip(4096, 2, 0)], RoutingError::BadEntry),
            (vec![chip(0, 2, 24)], RoutingError::BadEntry),
            (vec![chip(0, 0, 8)], RoutingError::BadEntry),
            (vec![chip(0, 3, 0)], RoutingError::BadEntry),
            (vec![chip(0, 2, 256)], RoutingError::BadEntry),
            (vec![KvmIrqRoutingEntry { flags: 1, ..chip(0, 2, 0) }], RoutingError::BadEntry),
            (vec![KvmIrqRoutingEntry { type_: KVM_IRQ_ROUTING_HV_SINT, ..chip(0, 0, 0) }], RoutingError::BadEntry),
            (vec![chip(5, 2, 1), chip(5, 2, 2)], RoutingError::Conflict),
            (vec![msi, chip(5, 2, 2)], RoutingError::Conflict),
            (vec![msi, msi], RoutingError::Conflict),
            (vec![chip(1, 2, 0); 4097], RoutingError::TooMany),
        ] {
            assert_eq!(build(&entries).unwrap_err(), error, "{:?}", entries[0]);
        }
        assert!(build(&[chip(5, 0, 1), chip(5, 1, 1), chip(5, 2, 1), chip(6, 2, 1)]).is_ok());
    }

    #[test]
    fn messages() {
        let table = build(&[
            KvmIrqRoutingEntry::to_msi(30, 0xfee0_1000, 0x40),
            KvmIrqRoutingEntry::to_msi(31, 0xfee0_1000, 0xc041),
        ])
        .unwrap();
        assert_eq!(table.lookup(30).next(), Some(&Route::Msi(Msi { address: 0xfee0_1000, data: 0x40 })));
        assert!(table.is_level_vector(0x41, 32, false) && !table.is_level_vector(0x40, 32, false));
        assert!(!table.is_level_vector(0x41, 31, false), "not a pin of the client's IOAPIC");
        let hi = KvmIrqRoutingEntry::to_msi(30, 0x01_fee0_0000, 0);
        assert!(RoutingTable::build([hi].into_iter(), true).is_err());
    }

    proptest! {
        #[test]
        fn any_entries(words in proptest::collection::vec(any::<[u32; 12]>(), 0..8), small in any::<bool>()) {
            let entries: Vec<_> = words.iter().map(|w| {
                let mut e = KvmIrqRoutingEntry::from_prefix(w.bytes()).unwrap();
                if small {
                    e.gsi &= 7; e.type_ &= 3; e.flags = 0; e.u[0] &= 3; e.u[1] &= 31;
                }
                e
            }).collect();
            if let Ok(table) = RoutingTable::build(entries.iter().copied(), false) {
                prop_assert_eq!(table.iter().count(), entries.len());
                for e in &entries {
                    prop_assert!(table.lookup(e.gsi).count() >= 1);
                }
            }
        }
    }
}
