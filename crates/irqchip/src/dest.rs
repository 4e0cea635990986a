//! Which local APICs a message is for, and handing it to them.

use crate::{
    MAX_VCPUS,
    message::{DestMode, Message, Shorthand},
    shared::{Accept, Identity, LapicShared},
};

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Another processor's interrupt command register; `sender` is its index among the targets.
    Ipi {
        /// Index of the sending vCPU.
        sender: usize,
    },
    /// A device: IOAPIC or MSI.
    Device {
        /// Destination 0xff reaches x2APIC targets too, although it is an ordinary id there: the behaviour until
        /// `KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK` is set.
        broadcast_quirk: bool,
    },
}

/// The vCPUs that have to look at their APIC, and how the delivery went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveredSet {
    bits: [u64; MAX_VCPUS / 64],
    /// APICs that the destination named.
    pub matched: u32,
    /// APICs that took it, newly or merged with an earlier one.
    pub accepted: u32,
    /// Of those, the ones where it was pending already.
    pub coalesced: u32,
}

impl DeliveredSet {
    const fn new() -> Self {
        Self { bits: [0; MAX_VCPUS / 64], matched: 0, accepted: 0, coalesced: 0 }
    }

    /// Whether the vCPU with this index has to be kicked.
    pub fn contains(&self, index: usize) -> bool {
        self.bits.get(index / 64).is_some_and(|w| w & 1 << (index % 64) != 0)
    }

    /// Indices of the vCPUs to kick, ascending.
    pub fn kicks(&self) -> impl Iterator<Item = usize> + '_ {
        self.bits.iter().enumerate().flat_map(|(word, &bits)| {
            let mut rest = bits;
            core::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    word * 64 + bit
                })
            })
        })
    }

    /// The outcome as `KVM_IRQ_LINE_STATUS` and `KVM_SIGNAL_MSI` tell it.
    pub fn status(&self) -> crate::LineStatus {
        if self.accepted == 0 {
            crate::LineStatus::Ignored
        } else if self.coalesced == self.accepted {
            crate::LineStatus::Coalesced
        } else {
            crate::LineStatus::Delivered(self.accepted)
        }
    }

    fn hand_over(&mut self, message: &Message, index: usize, target: &LapicShared) {
        match target.accept(message) {
            Accept::Dropped => {}
            Accept::Coalesced => {
                self.accepted += 1;
                self.coalesced += 1;
            }
            Accept::Delivered => {
                self.accepted += 1;
                if let Some(word) = self.bits.get_mut(index / 64) {
                    *word |= 1 << (index % 64);
                }
            }
        }
    }
}

/// Whether a message names this APIC. An APIC that is switched off is never named.
pub fn matches(message: &Message, origin: Origin, index: usize, target: &Identity) -> bool {
    if !target.hardware_enabled {
        return false;
    }
    let sender = match origin {
        Origin::Ipi { sender } => Some(sender),
        Origin::Device { .. } => None,
    };
    match message.shorthand {
        Shorthand::SelfOnly => return sender == Some(index),
        Shorthand::AllIncludingSelf => return true,
        Shorthand::AllExcludingSelf => return sender != Some(index),
        Shorthand::None => {}
    }
    let dest = message.dest;
    let broadcast = if target.x2apic {
        let quirk = matches!(origin, Origin::Device { broadcast_quirk: true });
        dest == u32::MAX || quirk && dest == 0xff
    } else {
        dest == 0xff
    };
    if broadcast {
        return true;
    }
    match (message.dest_mode, target.x2apic) {
        (DestMode::Physical, true) => dest == target.x2apic_id,
        // An id that does not fit the 8-bit register still reaches an APIC that has not left xAPIC mode yet, so
        // that processors above 255 can be started.
        (DestMode::Physical, false) => {
            dest == u32::from(target.xapic_id) || target.x2apic_id > 0xff && dest == target.x2apic_id
        }
        (DestMode::Logical, true) => {
            let ldr = target.x2apic_ldr();
            ldr >> 16 == dest >> 16 && ldr & dest & 0xffff != 0
        }
        (DestMode::Logical, false) => {
            let Ok(dest) = u8::try_from(dest) else { return false };
            if target.dfr == 0xf {
                target.ldr & dest != 0
            } else {
                target.ldr >> 4 == dest >> 4 && target.ldr & dest & 0xf != 0
            }
        }
    }
}

/// Delivers a message to those of `targets` that it names, each given with its vCPU index (below [`MAX_VCPUS`];
/// others cannot be kicked). Looks at each target once.
///
/// A message for one destination of several goes to the software-enabled APIC with the lowest processor priority;
/// among equals to the one that won least often.
pub fn deliver<'a>(
    message: &Message,
    origin: Origin,
    targets: impl Iterator<Item = (usize, &'a LapicShared)>,
) -> DeliveredSet {
    let mut set = DeliveredSet::new();
    let mut best: Option<(usize, &LapicShared)> = None;
    for (index, target) in targets {
        let identity = target.identity();
        if !matches(message, origin, index, &identity) {
            continue;
        }
        set.matched += 1;
        if !message.arbitrated() {
            set.hand_over(message, index, target);
        } else if identity.software_enabled && best.is_none_or(|(_, b)| beats(target, b)) {
            best = Some((index, target));
        }
    }
    if let Some((index, target)) = best {
        target.won_arbitration();
        set.hand_over(message, index, target);
    }
    set
}

fn beats(a: &LapicShared, b: &LapicShared) -> bool {
    let (pa, pb) = (a.ppr() >> 4, b.ppr() >> 4);
    // The counters wrap: compare their distance.
    pa < pb || pa == pb && (a.arbitrations().wrapping_sub(b.arbitrations()) as i32) < 0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::message::{DeliveryMode, Trigger};
    use std::vec::Vec;

    const DEVICE: Origin = Origin::Device { broadcast_quirk: false };

    fn xapic(id: u32, ldr: u8, dfr: u8) -> Identity {
        Identity {
            x2apic_id: id,
            xapic_id: id as u8,
            ldr,
            dfr,
            hardware_enabled: true,
            x2apic: false,
            software_enabled: true,
            accepts_pic: false,
        }
    }

    fn x2apic(id: u32) -> Identity {
        Identity { x2apic: true, ..xapic(id, 0, 0xf) }
    }

    fn to(dest: u32, dest_mode: DestMode) -> Message {
        Message { dest_mode, ..Message::fixed(dest, 64) }
    }

    #[test]
    fn table() {
        use DestMode::{Logical as L, Physical as P};
        let quirk = Origin::Device { broadcast_quirk: true };
        let ipi = Origin::Ipi { sender: 9 };
        for (dest, mode, origin, target, expected) in [
            (3, P, DEVICE, xapic(3, 0, 0xf), true),
            (4, P, DEVICE, xapic(3, 0, 0xf), false),
            (0xff, P, DEVICE, xapic(3, 0, 0xf), true),
            (0xffff_ffff, P, DEVICE, xapic(3, 0, 0xf), false),
            (300, P, DEVICE, xapic(300, 0, 0xf), true),
            (300 & 0xff, P, DEVICE, xapic(300, 0, 0xf), true),
            (3, P, DEVICE, Identity { xapic_id: 9, ..xapic(3, 0, 0xf) }, false),
            (9, P, DEVICE, Identity { xapic_id: 9, ..xapic(3, 0, 0xf) }, true),
            // Flat model: one bit a processor.
            (0b0110, L, DEVICE, xapic(3, 0b0100, 0xf), true),
            (0b0110, L, DEVICE, xapic(3, 0b1000, 0xf), false),
            (0xff, L, DEVICE, xapic(3, 0, 0xf), true),
            (0x100, L, DEVICE, xapic(3, 0xff, 0xf), false),
            // Cluster model: cluster number and member bit.
            (0x21, L, DEVICE, xapic(3, 0x21, 0), true),
            (0x23, L, DEVICE, xapic(3, 0x22, 0), true),
            (0x31, L, DEVICE, xapic(3, 0x21, 0), false),
            (0x22, L, DEVICE, xapic(3, 0x21, 0), false),
            // x2APIC: id 0x25 is cluster 2, bit 5.
            (0x25, P, ipi, x2apic(0x25), true),
            (0xffff_ffff, P, ipi, x2apic(0x25), true),
            (0xff, P, ipi, x2apic(0x25), false),
            (0xff, P, DEVICE, x2apic(0x25), false),
            (0xff, P, quirk, x2apic(0x25), true),
            (0xff, P, Origin::Ipi { sender: 1 }, x2apic(0xff), true),
            (2 << 16 | 1 << 5, L, ipi, x2apic(0x25), true),
            (2 << 16 | 0xffff, L, ipi, x2apic(0x25), true),
            (3 << 16 | 1 << 5, L, ipi, x2apic(0x25), false),
            (2 << 16 | 1 << 4, L, ipi, x2apic(0x25), false),
            (0xffff_ffff, L, ipi, x2apic(0x25), true),
        ] {
            assert_eq!(
                matches(&to(dest, mode), origin, 0, &target),
                expected,
                "{dest:#x} {mode:?} {origin:?} {target:?}"
            );
            let off = Identity { hardware_enabled: false, ..target };
            assert!(!matches(&to(dest, mode), origin, 0, &off));
        }
    }

    fn machine(n: u32) -> Vec<LapicShared> {
        (0..n)
            .map(|id| {
                let shared = LapicShared::new(id);
                shared.set_identity(xapic(id, 1 << (id & 7), 0xf));
                shared
            })
            .collect()
    }

    fn kicked(message: &Message, origin: Origin, m: &[LapicShared]) -> Vec<usize> {
        deliver(message, origin, m.iter().enumerate()).kicks().collect()
    }

    #[test]
    fn shorthands() {
        let ipi = Origin::Ipi { sender: 1 };
        for (shorthand, expected) in [
            (Shorthand::SelfOnly, &[1usize][..]),
            (Shorthand::AllIncludingSelf, &[0, 1, 2]),
            (Shorthand::AllExcludingSelf, &[0, 2]),
        ] {
            let message = Message { shorthand, ..Message::fixed(77, 64) };
            assert_eq!(kicked(&message, ipi, &machine(3)), expected);
        }
    }

    #[test]
    fn pending_already_is_not_kicked_again() {
        let m = machine(2);
        let message = Message::fixed(1, 64);
        let first = deliver(&message, DEVICE, m.iter().enumerate());
        assert!(first.contains(1) && !first.contains(0) && !first.contains(1 << 20));
        let second = deliver(&message, DEVICE, m.iter().enumerate());
        assert_eq!((second.matched, second.accepted, second.coalesced), (1, 1, 1));
        assert_eq!(second.kicks().count(), 0);
        assert_eq!(second.status(), crate::LineStatus::Coalesced);
        let nobody = deliver(&Message::fixed(5, 64), DEVICE, m.iter().enumerate());
        assert_eq!(nobody.status(), crate::LineStatus::Ignored);
    }

    #[test]
    fn lowest_priority_goes_to_the_least_busy_and_rotates() {
        let m = machine(3);
        m[0].set_ppr(0x40);
        let lowest = |vector| Message {
            delivery_mode: DeliveryMode::LowestPriority,
            trigger: Trigger::Edge,
            ..Message { vector, ..to(0xff, DestMode::Logical) }
        };
        assert_eq!(kicked(&lowest(64), DEVICE, &m), [1]);
        assert_eq!(kicked(&lowest(65), DEVICE, &m), [2]);
        assert_eq!(kicked(&lowest(66), DEVICE, &m), [1]);
        m[1].set_ppr(0x50);
        m[2].set_ppr(0x50);
        assert_eq!(kicked(&lowest(67), DEVICE, &m), [0]);
        let hint = Message { redirect_hint: true, ..to(0xff, DestMode::Logical) };
        assert_eq!(kicked(&hint, DEVICE, &m).len(), 1);
    }

    #[test]
    fn lowest_priority_passes_software_disabled_apics_by() {
        let m = machine(2);
        m[0].set_identity(Identity { software_enabled: false, ..m[0].identity() });
        let message = Message { delivery_mode: DeliveryMode::LowestPriority, ..to(0xff, DestMode::Logical) };
        assert_eq!(kicked(&message, DEVICE, &m), [1]);
    }

    #[test]
    fn kicks_cover_the_whole_range() {
        let m = machine(130);
        let message = Message { shorthand: Shorthand::AllIncludingSelf, ..Message::fixed(0, 64) };
        assert_eq!(kicked(&message, DEVICE, &m), (0..130).collect::<Vec<_>>());
    }
}
