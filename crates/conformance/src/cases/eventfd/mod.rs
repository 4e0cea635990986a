//! irqfd, ioeventfd and coalesced MMIO.
use crate::runner::{Case, case};
use abi::*;

mod coalesced;
mod irqfd;
mod writes;

pub(super) const CASES: &[Case] = &[
    case("irqfd-interrupts", "E01", irqfd::interrupts).needs(KVM_CAP_IRQFD),
    case("irqfd-wakes-a-sleeping-vcpu", "E01 D06", irqfd::wakes).needs(KVM_CAP_IRQFD),
    case("irqfd-taken-back", "E01", irqfd::deassigned).needs(KVM_CAP_IRQFD),
    case("irqfd-resamples", "E01", irqfd::resamples).needs(KVM_CAP_IRQFD_RESAMPLE),
    case("irqfd-bad-input", "E01", irqfd::errors).needs(KVM_CAP_IRQFD),
    case("ioeventfd-takes-mmio-writes", "E01 A19", writes::mmio).needs(KVM_CAP_IOEVENTFD),
    case("ioeventfd-takes-port-writes", "E01 A19", writes::pio).needs(KVM_CAP_IOEVENTFD),
    case("ioeventfd-compares-data", "E01 A19", writes::datamatch).needs(KVM_CAP_IOEVENTFD),
    case("ioeventfd-of-any-length", "E01 A19", writes::any_length).needs(KVM_CAP_IOEVENTFD_ANY_LENGTH),
    case("ioeventfd-taken-back", "E01 A19", writes::deassigned).needs(KVM_CAP_IOEVENTFD),
    case("ioeventfd-bad-input", "E01", writes::errors).needs(KVM_CAP_IOEVENTFD),
    case("coalesced-writes-wait-in-the-ring", "E01 A19", coalesced::ring).needs(KVM_CAP_COALESCED_MMIO),
    case("coalesced-ring-full", "E01 A19", coalesced::full).needs(KVM_CAP_COALESCED_MMIO),
    case("coalesced-zone-taken-back", "E01 A19", coalesced::unregistered).needs(KVM_CAP_COALESCED_MMIO),
    case("coalesced-ports", "E01 A19", coalesced::ports).needs(KVM_CAP_COALESCED_PIO),
    case("coalesced-ring-scribbled-over", "E01 A04", coalesced::scribbled).needs(KVM_CAP_COALESCED_MMIO),
];
