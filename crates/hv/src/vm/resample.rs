//! Who is told when the guest has ended an interrupt: the timer, for the ticks that it still owes, and the eventfds of
//! resampled irqfds.
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use irqchip::{IrqSource, Route};
use platform::{EventFd, Platform, SpinLock, fallible::try_push, lock::rank};

use super::{Chips, Vcpus};
use crate::Errno;

/// One resampled irqfd.
struct Resampler<P: Platform> {
    token: u64,
    gsi: u32,
    event: P::EventFd,
}

struct List<P: Platform> {
    all: Vec<Resampler<P>>,
    next: u64,
}

/// The resampled irqfds of a VM.
pub(super) struct Resamplers<P: Platform> {
    list: SpinLock<P, List<P>>,
    /// How many: ends of interrupts take no lock for none.
    count: AtomicUsize,
}

impl<P: Platform> Resamplers<P> {
    pub(super) fn new() -> Result<Self, Errno> {
        let list = SpinLock::<P, _>::new(rank::RESAMPLE, List { all: Vec::new(), next: 0 })?;
        Ok(Self { list, count: AtomicUsize::new(0) })
    }
}

impl<P: Platform> Chips<P> {
    /// From now on `event` is signalled when an interrupt of `gsi` has ended. The answer is for
    /// [`Self::remove_resampler`].
    pub(super) fn add_resampler(&self, gsi: u32, event: P::EventFd) -> Result<u64, Errno> {
        let token = {
            let mut list = self.resamplers.list.lock();
            let token = list.next;
            try_push(&mut list.all, Resampler { token, gsi, event })?;
            list.next += 1;
            self.resamplers.count.store(list.all.len(), SeqCst);
            token
        };
        self.publish_notified();
        Ok(token)
    }

    /// The last one of a GSI leaves it low.
    pub(super) fn remove_resampler(&self, vcpus: &Vcpus<P>, token: u64) {
        let removed = {
            let mut list = self.resamplers.list.lock();
            let Some(at) = list.all.iter().position(|one| one.token == token) else { return };
            let removed = list.all.swap_remove(at);
            self.resamplers.count.store(list.all.len(), SeqCst);
            if !list.all.iter().any(|other| other.gsi == removed.gsi) {
                self.set_irq(vcpus, removed.gsi, IrqSource::IRQFD_RESAMPLE, false);
            }
            removed
        };
        self.publish_notified();
        drop(removed);
    }

    /// The pins of the IOAPIC whose ends of interrupts somebody waits for.
    pub(super) fn notified_pins(&self) -> u32 {
        let list = self.resamplers.list.lock();
        let table = self.routing();
        let pins = |gsi: u32| {
            table.lookup(gsi).fold(0, |pins, route| match route {
                Route::Ioapic { pin } => pins | 1 << (pin & 31),
                _ => pins,
            })
        };
        list.all.iter().fold(pins(TIMER_GSI), |all, one| all | pins(one.gsi))
    }

    /// The guest has ended the interrupts of the routes that `acked` names. Called without any of the controllers' locks.
    pub(super) fn lines_acked(&self, vcpus: &Vcpus<P>, acked: impl Fn(&Route) -> bool) {
        let table = self.routing();
        if self.resamplers.count.load(SeqCst) != 0 {
            let list = self.resamplers.list.lock();
            for one in list.all.iter().filter(|one| table.lookup(one.gsi).any(&acked)) {
                self.set_irq(vcpus, one.gsi, IrqSource::IRQFD_RESAMPLE, false);
                one.event.signal();
            }
        }
        if table.lookup(TIMER_GSI).any(&acked) {
            self.timer_acked(vcpus);
        }
    }
}

/// The interval timer's interrupt.
const TIMER_GSI: u32 = 0;
