//! The interrupt controllers and the timer of a VM: where their models, their locks and the platform's timer meet.
//!
//! Lock order (see `platform::lock::rank`): PIT, resamplers, routing, IOAPIC, PIC. A vCPU that neither touches a controller nor
//! ends a level interrupt takes none of them: whether the 8259A asks for it stands in an atomic.
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use abi::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIoapicState, KvmIrqchip, KvmPicState, Pod,
};
use irqchip::{
    Ioapic, IrqSource, LineStatus, Message, Msi, Origin, Pic, Pit, Route, RoutingTable, Trigger, lapic::Eoi,
    routing::RoutingError,
};
use platform::{
    Atomic, Platform, Shared, SpinLock,
    fallible::try_box,
    lock::rank,
    time::{Timer, TimerCallback},
};

use super::{VmShared, resample::Resamplers, vcpus::Vcpus};
use crate::{Errno, vcpu::request};

/// Where the interrupt controllers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Irqchip {
    /// All in the client.
    None,
    /// All in the hypervisor.
    Kernel,
    /// Local APICs in the hypervisor, the rest in the client.
    Split,
}

/// The controllers of one VM.
pub(crate) struct Chips<P: Platform> {
    mode: AtomicU32,
    pit_exists: AtomicBool,
    /// The 8259A's INTR line.
    intr: AtomicBool,
    /// Vectors whose end of interrupt the IOAPIC has to hear of.
    eoi_vectors: [AtomicU64; 4],
    /// With split controllers: GSIs that are pins of the client's IOAPIC.
    client_pins: AtomicU32,
    /// KVM_X2APIC_API_USE_32BIT_IDS, and the quirk that 0xff is a broadcast also in x2APIC mode.
    ids_32bit: AtomicBool,
    no_broadcast_quirk: AtomicBool,
    routing: SpinLock<P, Shared<RoutingTable>>,
    ioapic: SpinLock<P, Ioapic>,
    pic: SpinLock<P, Pic>,
    pit: SpinLock<P, PitUnit<P>>,
    pub(super) resamplers: Resamplers<P>,
}

struct PitUnit<P: Platform> {
    pit: Pit,
    timer: Option<P::Timer<PitTick<P>>>,
}

/// What the PIT's timer does when it expires.
pub(crate) struct PitTick<P: Platform>(Shared<VmShared<P>>);

impl<P: Platform> TimerCallback for PitTick<P> {
    fn expired(&self, _cx: &Atomic) {
        self.0.chips.pit_expired(&self.0.vcpus);
    }
}

impl<P: Platform> Chips<P> {
    /// On the heap: a kernel's stack is small.
    #[inline(never)]
    pub(crate) fn new() -> Result<Box<Self>, Errno> {
        let table = Shared::try_new(RoutingTable::empty())?;
        Ok(try_box(Self {
            mode: AtomicU32::new(Irqchip::None as u32),
            pit_exists: AtomicBool::new(false),
            intr: AtomicBool::new(false),
            eoi_vectors: [const { AtomicU64::new(0) }; 4],
            client_pins: AtomicU32::new(0),
            ids_32bit: AtomicBool::new(false),
            no_broadcast_quirk: AtomicBool::new(false),
            routing: SpinLock::<P, _>::new(rank::ROUTING, table)?,
            ioapic: SpinLock::<P, _>::new(rank::IOAPIC, Ioapic::new())?,
            pic: SpinLock::<P, _>::new(rank::PIC, Pic::new())?,
            pit: SpinLock::<P, _>::new(rank::PIT, PitUnit { pit: Pit::new(), timer: None })?,
            resamplers: Resamplers::new()?,
        })?)
    }

    /// Where the controllers are.
    pub(crate) fn mode(&self) -> Irqchip {
        match self.mode.load(SeqCst) {
            1 => Irqchip::Kernel,
            2 => Irqchip::Split,
            _ => Irqchip::None,
        }
    }

    /// KVM_CREATE_IRQCHIP. The caller excludes other changes.
    pub(crate) fn create(&self, mode: Irqchip) -> Result<(), Errno> {
        if self.mode() != Irqchip::None {
            return Err(Errno::EEXIST);
        }
        let table = match mode {
            Irqchip::Kernel => RoutingTable::default_table(),
            _ => Ok(RoutingTable::empty()),
        };
        let table = Shared::try_new(table.map_err(|_| Errno::ENOMEM)?)?;
        let old = core::mem::replace(&mut *self.routing.lock(), table);
        drop(old);
        self.mode.store(mode as u32, SeqCst);
        Ok(())
    }

    /// KVM_CAP_SPLIT_IRQCHIP. The caller excludes other changes.
    pub(crate) fn create_split(&self, client_pins: u32) -> Result<(), Errno> {
        self.client_pins.store(client_pins, SeqCst);
        self.create(Irqchip::Split)
    }

    /// Whether the end of an interrupt is to be told to the client's IOAPIC.
    pub(crate) fn is_clients(&self, eoi: Eoi) -> bool {
        let pins = self.client_pins.load(SeqCst);
        let split = self.mode() == Irqchip::Split && !eoi.suppressed;
        split && self.routing().is_level_vector(eoi.vector, pins, self.ids_32bit())
    }

    /// KVM_CAP_X2APIC_API.
    pub(crate) fn set_x2apic_api(&self, ids_32bit: bool, no_broadcast_quirk: bool) {
        if ids_32bit {
            self.ids_32bit.store(true, SeqCst);
        }
        if no_broadcast_quirk {
            self.no_broadcast_quirk.store(true, SeqCst);
        }
    }

    /// Whether APIC ids of the client's structures have 32 bits.
    pub(crate) fn ids_32bit(&self) -> bool {
        self.ids_32bit.load(SeqCst)
    }

    /// The 8259A asks for an interrupt.
    pub(crate) fn intr(&self) -> bool {
        self.intr.load(SeqCst)
    }

    fn device(&self) -> Origin {
        Origin::Device { broadcast_quirk: !self.no_broadcast_quirk.load(SeqCst) }
    }

    fn send(&self, vcpus: &Vcpus<P>, message: &Message) -> LineStatus {
        vcpus.send(message, self.device()).status()
    }

    /// A message-signalled interrupt: how many processors it reached.
    pub(crate) fn signal_msi(&self, vcpus: &Vcpus<P>, msi: Msi) -> Result<LineStatus, Errno> {
        if !msi.is_valid(self.ids_32bit()) {
            return Err(Errno::EINVAL);
        }
        Ok(self.send(vcpus, &msi.decode(self.ids_32bit())))
    }

    /// The routes as they are.
    pub(super) fn routing(&self) -> Shared<RoutingTable> {
        self.routing.lock().clone()
    }

    /// Drives a GSI.
    pub(crate) fn set_irq(&self, vcpus: &Vcpus<P>, gsi: u32, source: IrqSource, level: bool) -> LineStatus {
        let table = self.routing();
        let mut status = LineStatus::Ignored;
        for route in table.lookup(gsi) {
            let one = match *route {
                Route::Pic { line } => self.set_pic(vcpus, line, source, level),
                Route::Ioapic { pin } => self.ioapic.lock().set_irq(pin, source, level, |m| self.send(vcpus, m)),
                Route::Msi(msi) if level => self.send(vcpus, &msi.decode(self.ids_32bit())),
                Route::Msi(_) => LineStatus::Ignored,
            };
            status = status.and(one);
        }
        status
    }

    fn set_pic(&self, vcpus: &Vcpus<P>, line: u8, source: IrqSource, level: bool) -> LineStatus {
        let mut pic = self.pic.lock();
        let status = pic.set_irq(line, source, level);
        self.publish_intr(vcpus, &pic);
        status
    }

    /// Called with the 8259As locked, after they may have changed.
    #[inline]
    fn publish_intr(&self, vcpus: &Vcpus<P>, pic: &Pic) {
        let pending = pic.intr_pending();
        if pending || self.intr() {
            self.tell_intr(vcpus, pending);
        }
    }

    #[inline(never)]
    fn tell_intr(&self, vcpus: &Vcpus<P>, pending: bool) {
        if pending != self.intr() {
            self.intr.store(pending, SeqCst);
        }
        if pending {
            for vcpu in vcpus.iter().filter(|v| v.lapic.identity().accepts_pic) {
                vcpu.request(request::EVENT);
            }
        }
    }

    /// The acknowledge cycle of a vCPU that takes the 8259A's interrupt: its vector.
    pub(crate) fn acknowledge_pic(&self, vcpus: &Vcpus<P>) -> u8 {
        let (vector, acked) = {
            let mut pic = self.pic.lock();
            let vector = pic.acknowledge();
            self.publish_intr(vcpus, &pic);
            (vector, pic.take_acked())
        };
        self.pic_acked(vcpus, acked);
        vector
    }

    /// A byte read from a port of the 8259As.
    #[inline(never)]
    pub(crate) fn pic_read(&self, vcpus: &Vcpus<P>, port: u16) -> u8 {
        let mut pic = self.pic.lock();
        let value = pic.read(port);
        self.publish_intr(vcpus, &pic);
        value
    }

    /// A byte written to a port of the 8259As.
    #[inline(never)]
    pub(crate) fn pic_write(&self, vcpus: &Vcpus<P>, port: u16, value: u8) {
        let acked = {
            let mut pic = self.pic.lock();
            pic.write(port, value);
            self.publish_intr(vcpus, &pic);
            pic.take_acked()
        };
        self.pic_acked(vcpus, acked);
    }

    #[inline]
    fn pic_acked(&self, vcpus: &Vcpus<P>, lines: u16) {
        if lines != 0 {
            self.pic_lines_acked(vcpus, lines);
        }
    }

    #[inline(never)]
    fn pic_lines_acked(&self, vcpus: &Vcpus<P>, lines: u16) {
        self.lines_acked(vcpus, |route| matches!(route, Route::Pic { line } if lines >> line & 1 != 0));
    }

    /// Guest-physical address of the IOAPIC's registers.
    pub(crate) fn ioapic_base(&self) -> u64 {
        self.ioapic.lock().base()
    }

    pub(crate) fn ioapic_read(&self, gpa: u64, data: &mut [u8]) {
        let ioapic = self.ioapic.lock();
        ioapic.mmio_read(gpa.wrapping_sub(ioapic.base()), data);
    }

    pub(crate) fn ioapic_write(&self, vcpus: &Vcpus<P>, gpa: u64, data: &[u8]) {
        let notified = self.notified_pins();
        let mut ioapic = self.ioapic.lock();
        let offset = gpa.wrapping_sub(ioapic.base());
        ioapic.mmio_write(offset, data, |m| self.send(vcpus, m));
        self.publish_eoi_vectors(&ioapic, notified);
    }

    /// Called with the IOAPIC locked, after its entries may have changed.
    fn publish_eoi_vectors(&self, ioapic: &Ioapic, notified: u32) {
        for (to, from) in self.eoi_vectors.iter().zip(ioapic.eoi_vectors(notified)) {
            to.store(from, SeqCst);
        }
    }

    /// Those who wait for ends of interrupts, or the routes to them, have changed.
    pub(super) fn publish_notified(&self) {
        let notified = self.notified_pins();
        self.publish_eoi_vectors(&self.ioapic.lock(), notified);
    }

    /// A local APIC tells the end of an interrupt.
    pub(crate) fn eoi(&self, vcpus: &Vcpus<P>, eoi: Eoi) {
        let wanted = self.eoi_vectors[usize::from(eoi.vector >> 6)].load(SeqCst) & 1 << (eoi.vector & 63) != 0;
        if eoi.suppressed || self.mode() != Irqchip::Kernel || eoi.trigger == Trigger::Edge && !wanted {
            return;
        }
        // First those who may lower the line, then the pin, which sends again if it is still high.
        let pins = self.ioapic.lock().pins_of(eoi.vector);
        self.lines_acked(vcpus, |route| matches!(route, Route::Ioapic { pin } if pins >> pin & 1 != 0));
        self.ioapic.lock().eoi(eoi.vector, eoi.trigger, |m| self.send(vcpus, m));
    }

    /// KVM_SET_GSI_ROUTING.
    pub(crate) fn set_routing(&self, table: RoutingTable) -> Result<(), Errno> {
        let table = Shared::try_new(table)?;
        // The old table is freed outside of the lock.
        let old = core::mem::replace(&mut *self.routing.lock(), table);
        drop(old);
        self.publish_notified();
        Ok(())
    }

    /// KVM_GET_IRQCHIP.
    pub(crate) fn state(&self, chip_id: u32) -> Result<KvmIrqchip, Errno> {
        let mut chip = KvmIrqchip { chip_id, ..KvmIrqchip::default() };
        let mut put = |bytes: &[u8]| chip.chip[..bytes.len()].copy_from_slice(bytes);
        match chip_id {
            KVM_IRQCHIP_PIC_MASTER => put(self.pic.lock().state(false).bytes()),
            KVM_IRQCHIP_PIC_SLAVE => put(self.pic.lock().state(true).bytes()),
            KVM_IRQCHIP_IOAPIC => put(self.ioapic.lock().state().bytes()),
            _ => return Err(Errno::EINVAL),
        }
        Ok(chip)
    }

    /// KVM_SET_IRQCHIP.
    pub(crate) fn set_state(&self, vcpus: &Vcpus<P>, chip: &KvmIrqchip) -> Result<(), Errno> {
        match chip.chip_id {
            KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE => {
                let state = KvmPicState::from_prefix(&chip.chip).ok_or(Errno::EINVAL)?;
                let mut pic = self.pic.lock();
                pic.set_state(chip.chip_id == KVM_IRQCHIP_PIC_SLAVE, &state);
                self.publish_intr(vcpus, &pic);
            }
            KVM_IRQCHIP_IOAPIC => {
                let state = KvmIoapicState::from_prefix(&chip.chip).ok_or(Errno::EINVAL)?;
                let notified = self.notified_pins();
                let mut ioapic = self.ioapic.lock();
                ioapic.set_state(&state, |m| self.send(vcpus, m));
                self.publish_eoi_vectors(&ioapic, notified);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

/// The interval timer.
impl<P: Platform> Chips<P> {
    /// KVM_CREATE_PIT2. `vm` is the VM that these chips are of. The caller excludes other changes.
    pub(crate) fn create_pit(&self, vm: &Shared<VmShared<P>>) -> Result<(), Errno> {
        if self.has_pit() {
            return Err(Errno::EEXIST);
        }
        let timer = P::Timer::new(PitTick(vm.clone()))?;
        *self.pit.lock() = PitUnit { pit: Pit::new(), timer: Some(timer) };
        self.pit_exists.store(true, SeqCst);
        self.publish_notified();
        Ok(())
    }

    /// The VM goes: cancels the timer, whose callback holds the VM's shared part.
    pub(crate) fn destroy_pit(&self) {
        let timer = self.pit.lock().timer.take();
        // Waits for a running callback, which may want the lock.
        drop(timer);
    }

    pub(crate) fn has_pit(&self) -> bool {
        self.pit_exists.load(SeqCst)
    }

    /// A byte read from a port of the timer, whose deadline stays.
    #[inline(never)]
    pub(crate) fn pit_read(&self, port: u16) -> u8 {
        self.pit.lock().pit.read(port, P::now_ns)
    }

    /// A byte written to a port of the timer.
    #[inline(never)]
    pub(crate) fn pit_write(&self, port: u16, value: u8) {
        self.with_pit(|pit, now| pit.write(port, value, now));
    }

    /// A byte read from port 0x61.
    #[inline(never)]
    pub(crate) fn speaker_read(&self) -> u8 {
        self.pit.lock().pit.speaker_read(P::now_ns())
    }

    /// A byte written to port 0x61.
    #[inline(never)]
    pub(crate) fn speaker_write(&self, value: u8) {
        self.with_pit(|pit, now| pit.speaker_write(value, now));
    }

    /// The timer's model, to be looked at or changed; it is armed again afterwards.
    pub(crate) fn with_pit<R>(&self, f: impl FnOnce(&mut Pit, u64) -> R) -> R {
        let mut unit = self.pit.lock();
        let result = f(&mut unit.pit, P::now_ns());
        unit.arm();
        result
    }

    fn pulse(&self, vcpus: &Vcpus<P>) -> LineStatus {
        let status = self.set_irq(vcpus, 0, IrqSource::PIT, true);
        self.set_irq(vcpus, 0, IrqSource::PIT, false);
        status
    }

    fn pit_expired(&self, vcpus: &Vcpus<P>) {
        let mut unit = self.pit.lock();
        let ticks = unit.pit.expired(P::now_ns());
        if ticks != 0 {
            let status = self.pulse(vcpus);
            unit.pit.pulsed(ticks, status);
        }
        unit.arm();
    }

    /// The guest ended an interrupt of the timer.
    pub(super) fn timer_acked(&self, vcpus: &Vcpus<P>) {
        if !self.has_pit() {
            return;
        }
        let mut unit = self.pit.lock();
        if unit.pit.acked() {
            let status = self.pulse(vcpus);
            unit.pit.pulsed(1, status);
        }
    }
}

impl<P: Platform> PitUnit<P> {
    fn arm(&self) {
        let Some(timer) = &self.timer else { return };
        match self.pit.next_deadline() {
            Some(deadline) => timer.arm(deadline),
            None => timer.cancel(),
        }
    }
}

impl From<RoutingError> for Errno {
    fn from(error: RoutingError) -> Self {
        if error == RoutingError::NoMemory { Self::ENOMEM } else { Self::EINVAL }
    }
}
