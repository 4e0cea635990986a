//! Interrupt controllers and timer in the hypervisor.
use crate::runner::{Case, case};
use abi::*;

pub(in crate::cases) mod apic;
pub(in crate::cases) mod calls;
mod ioapic;
mod pic;
mod pit;
mod split;
mod start;
mod tpr;

pub(super) const CASES: &[Case] = &[
    case("created-once-and-before-vcpus", "E01", calls::creation).needs(KVM_CAP_IRQCHIP),
    case("without-controllers", "E01", calls::without),
    case("state-of-the-pics", "E01", calls::pic_state).needs(KVM_CAP_IRQCHIP),
    case("state-of-the-ioapic", "E01", calls::ioapic_state).needs(KVM_CAP_IRQCHIP),
    case("chips-that-do-not-exist", "E01", calls::no_chip).needs(KVM_CAP_IRQCHIP),
    case("state-of-a-local-apic", "E01", calls::lapic_state).needs(KVM_CAP_IRQCHIP),
    case("routes-that-cannot-be", "E01", calls::bad_routes).needs(KVM_CAP_IRQ_ROUTING),
    case("pic-delivers", "E01 A19", pic::delivers).needs(KVM_CAP_IRQCHIP),
    case("pic-masks", "E01 A19", pic::masks).needs(KVM_CAP_IRQCHIP),
    case("pic-priorities", "E01 A19", pic::priorities).needs(KVM_CAP_IRQCHIP),
    case("status-of-a-line", "E01", pic::status).needs(KVM_CAP_IRQ_INJECT_STATUS),
    case("hlt-sleeps-and-is-woken", "D06 E01", pic::hlt_wakes).needs(KVM_CAP_IRQCHIP),
    case("hlt-without-interrupts-is-ended-by-a-signal", "D06 A09", pic::hlt_signal).needs(KVM_CAP_IRQCHIP),
    case("apic-registers", "E01 A19", apic::registers).needs(KVM_CAP_IRQCHIP),
    case("apic-self-ipi", "E01", apic::self_ipi).needs(KVM_CAP_IRQCHIP),
    case("apic-priorities", "E01 A13", apic::priorities).needs(KVM_CAP_IRQCHIP),
    case("apic-timer", "E01", apic::timer).needs(KVM_CAP_IRQCHIP),
    case("a-deadline-that-has-passed-interrupts-at-once", "E01 A12", apic::deadline)
        .needs(KVM_CAP_IRQCHIP)
        .needs(KVM_CAP_TSC_DEADLINE_TIMER),
    case("accesses-to-the-task-priority-are-told", "A05 A13 E01", tpr::accesses)
        .needs(KVM_CAP_VAPIC)
        .restricted("Linux emulates this code, and tells of accesses that the processor has left the guest for"),
    case("the-task-priority-in-memory", "A13 E01", tpr::word)
        .needs(KVM_CAP_VAPIC)
        .restricted("Linux emulates this code, and looks at the word when a processor enters the guest or has left it"),
    case("the-task-priority-and-bad-input", "A13 E01", tpr::errors).needs(KVM_CAP_VAPIC),
    case("x2apic", "E01", apic::x2apic).needs(KVM_CAP_IRQCHIP),
    case("msi", "E01", apic::msi).needs(KVM_CAP_SIGNAL_MSI),
    case("msi-by-a-route", "E01", apic::msi_route).needs(KVM_CAP_IRQ_ROUTING),
    case("nmi-by-an-ipi", "E01 A12", apic::nmi_ipi).needs(KVM_CAP_IRQCHIP),
    case("ioapic-edge", "E01", ioapic::edge).needs(KVM_CAP_IRQCHIP),
    case("ioapic-level", "E01", ioapic::level).needs(KVM_CAP_IRQCHIP),
    case("ioapic-masked-edge-is-remembered-no-longer", "E01", ioapic::masked).needs(KVM_CAP_IRQCHIP),
    case("ioapic-programmed-by-the-guest", "E01 A19", ioapic::programmed).needs(KVM_CAP_IRQCHIP),
    case("init-and-sipi", "E01 D01 D06", start::init_sipi).needs(KVM_CAP_IRQCHIP),
    case("another-bootstrap-processor", "E01", start::boot_cpu).needs(KVM_CAP_SET_BOOT_CPU_ID),
    case("pit-counts", "E01 A19", pit::counts).needs(KVM_CAP_PIT2),
    case("pit-state", "E01", pit::state).needs(KVM_CAP_PIT_STATE2),
    case("pit-ticks-arrive", "E01 D06", pit::ticks).needs(KVM_CAP_PIT2),
    case("pit-and-port-61", "E01 A19", pit::port_61).needs(KVM_CAP_PIT2),
    case("pit-without-a-pic", "E01", pit::without_pic).needs(KVM_CAP_PIT2),
    case("pit-and-bad-input", "E01", pit::errors).needs(KVM_CAP_PIT2),
    case("split-refuses-the-rest", "E01", split::refuses).needs(KVM_CAP_SPLIT_IRQCHIP),
    case("split-end-of-interrupt", "E01 A05", split::eoi).needs(KVM_CAP_SPLIT_IRQCHIP),
    case("split-external-interrupt", "E01 A12", split::external).needs(KVM_CAP_SPLIT_IRQCHIP),
    case("split-window-that-the-local-apic-keeps-shut", "E01 A12", split::shut_window).needs(KVM_CAP_SPLIT_IRQCHIP),
];
