//! Interrupt controllers and timer of a PC, inside the hypervisor: the two 8259A ([`pic`]), the IOAPIC ([`ioapic`]),
//! the local APICs ([`lapic`]), the i8254 ([`pit`]), and the table that leads a GSI to them ([`routing`]).
//!
//! These are models only: no locks, no clock of their own, no call to the platform. Time comes in as nanoseconds (and
//! the guest's TSC); effects go out as return values or through a `deliver` closure that the core passes in, which
//! hands a [`Message`] to the local APICs with [`deliver`]. What other threads may do to a vCPU's APIC is apart from
//! what its owner does: [`LapicShared`] is atomic and shared, [`lapic::Lapic`] belongs to the vCPU.
//!
//! Numbers and state formats are those of `/dev/kvm`; behaviour is that of the data sheets (8259A, 82093AA, 8254) and
//! of the SDM, volume 3, chapter 11, with Linux's KVM followed where guests or clients could tell.
//! Any guest access and any restored state is accepted without a panic.

#![no_std]
#![forbid(unsafe_code)]

pub mod dest;
pub mod ioapic;
pub mod lapic;
pub mod line;
pub mod message;
pub mod msi;
pub mod pic;
pub mod pit;
pub mod routing;
pub mod shared;

pub use dest::{DeliveredSet, Origin, deliver};
pub use ioapic::Ioapic;
pub use lapic::Lapic;
pub use line::{IrqSource, LineStatus};
pub use message::{DeliveryMode, DestMode, Message, Shorthand, Trigger};
pub use msi::Msi;
pub use pic::Pic;
pub use pit::Pit;
pub use routing::{Route, RoutingTable};
pub use shared::{Accept, Identity, LapicShared};

/// Most vCPUs of one VM: indices that a [`DeliveredSet`] can name.
pub const MAX_VCPUS: usize = 1024;
