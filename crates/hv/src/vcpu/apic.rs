//! The local APIC of a vCPU with its timer: `irqchip`'s model, the platform's timer, and what its writes set off.
use core::ops::Deref;

use irqchip::{
    Lapic, LapicShared, Origin,
    lapic::{Config, Deadline, Effects, Now},
};
use platform::{
    Atomic, OutOfMemory, Platform, Shared,
    time::{Timer, TimerCallback},
};

use super::{Tsc, request};
use crate::{
    cpuid::Cpuid,
    stats::Counter,
    vm::{Irqchip, VmShared},
};

/// The shared part of a vCPU's local APIC, kept alive by its VM.
pub(crate) struct ApicHandle<P: Platform> {
    vm: Shared<VmShared<P>>,
    index: usize,
}

impl<P: Platform> Deref for ApicHandle<P> {
    type Target = LapicShared;
    fn deref(&self) -> &LapicShared {
        &self.vm.vcpu(self.index).lapic
    }
}

/// What the timer does when it expires: the vCPU looks at its local APIC.
pub(crate) struct ApicTick<P: Platform>(ApicHandle<P>);

impl<P: Platform> TimerCallback for ApicTick<P> {
    fn expired(&self, _cx: &Atomic) {
        self.0.vm.vcpu(self.0.index).request(request::TIMER);
    }
}

/// A local APIC.
pub(crate) struct LocalApic<P: Platform> {
    pub(crate) lapic: Lapic<ApicHandle<P>>,
    timer: P::Timer<ApicTick<P>>,
    index: usize,
    /// The IOAPIC is the client's.
    split: bool,
    /// The end of an interrupt that the client's IOAPIC has to hear of.
    ended: Option<u8>,
}

impl<P: Platform> LocalApic<P> {
    pub(crate) fn new(vm: &Shared<VmShared<P>>, index: usize, bsp: bool) -> Result<Self, OutOfMemory> {
        let handle = || ApicHandle { vm: vm.clone(), index };
        let lint0_reenabled = !vm.quirk_disabled(abi::KVM_X86_QUIRK_LINT0_REENABLED);
        let config = Config { bsp, lint0_reenabled, ..Config::default() };
        let split = vm.chips.mode() == Irqchip::Split;
        let timer = P::Timer::new(ApicTick(handle()))?;
        Ok(Self { lapic: Lapic::new(handle(), config), timer, index, split, ended: None })
    }

    /// What follows from CPUID.
    pub(crate) fn configure(&mut self, cpuid: &Cpuid) {
        let config = Config {
            x2apic: cpuid.has_x2apic(),
            tsc_deadline: cpuid.has_tsc_deadline(),
            maxphyaddr: cpuid.physical_bits() as u8,
            // An IOAPIC of the client's may have an EOI register.
            directed_eoi: self.split && cpuid.has_x2apic(),
            ..*self.lapic.config()
        };
        self.lapic.set_config(config);
    }

    pub(crate) fn now(tsc: &Tsc) -> Now {
        Now { ns: P::now_ns(), tsc: tsc.read::<P>() }
    }

    /// Does what a write asks for.
    pub(crate) fn apply(&mut self, effects: Effects, vm: &VmShared<P>, tsc: &Tsc) {
        if let Some(message) = effects.ipi {
            vm.vcpus.send(&message, Origin::Ipi { sender: self.index });
        }
        if let Some(eoi) = effects.eoi {
            if vm.chips.is_clients(eoi) {
                self.ended = Some(eoi.vector);
            }
            vm.chips.eoi(&vm.vcpus, eoi);
        }
        // A deadline that has passed already interrupts behind this instruction, and not when the platform's timer gets to it.
        if effects.timer && self.timer_expired(tsc) {
            vm.vcpu(self.index).stats.count(Counter::TimerExpirations);
        }
    }

    /// No interrupt is requested, and the client has nothing to be told.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.ended.is_none() && !self.lapic.shared().has_requests()
    }

    /// The vector whose end the client has to be told, once.
    pub(crate) fn take_ended(&mut self) -> Option<u8> {
        self.ended.take()
    }

    /// Sets the platform's timer to the next deadline.
    pub(crate) fn arm(&mut self, tsc: &Tsc) {
        match self.lapic.next_deadline() {
            None => self.timer.cancel(),
            Some(Deadline::Nanoseconds(ns)) => self.timer.arm(ns),
            Some(Deadline::Tsc(deadline)) => self.timer.arm(tsc.deadline_ns::<P>(deadline)),
        }
    }

    /// The platform's timer expired, or time may have passed: true if the APIC's timer fired.
    pub(crate) fn timer_expired(&mut self, tsc: &Tsc) -> bool {
        let fired = self.lapic.timer_expired(Self::now(tsc));
        self.arm(tsc);
        fired
    }

    /// Offset of `gpa` in the register page, if that is where it answers.
    pub(crate) fn offset(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.wrapping_sub(self.lapic.mmio_base()?);
        (offset < irqchip::lapic::LAPIC_MMIO_SIZE).then_some(offset)
    }

    /// Whether `gpa` is in the register page of an APIC that does not answer there: it is off, or in x2APIC mode.
    pub(crate) fn is_hole(&self, gpa: u64) -> bool {
        self.lapic.mmio_base().is_none()
            && gpa.wrapping_sub(self.lapic.register_page()) < irqchip::lapic::LAPIC_MMIO_SIZE
    }

    pub(crate) fn mmio_read(&mut self, offset: u64, data: &mut [u8], tsc: &Tsc) {
        self.lapic.mmio_read(offset, data, Self::now(tsc));
    }

    pub(crate) fn mmio_write(&mut self, offset: u64, data: &[u8], vm: &VmShared<P>, tsc: &Tsc) {
        let effects = self.lapic.mmio_write(offset, data, Self::now(tsc));
        self.apply(effects, vm, tsc);
    }
}
