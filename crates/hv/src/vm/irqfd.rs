//! KVM_IRQFD: eventfds of the client that raise a GSI.
//!
//! A plain one is a pulse for each signal. A resampled one holds its GSI high until the guest has ended the interrupt;
//! then the GSI goes low and the client hears of it by a second eventfd.
use abi::{KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KvmIrqfd};
use alloc::vec::Vec;
use irqchip::IrqSource;
use platform::{Atomic, EventCallback, EventFd, MaySleep, Platform, Shared};

use super::{Irqchip, Vm, VmShared};
use crate::{Errno, Outcome, backend::Backend, uaccess};

/// What a signal does.
pub(super) struct Raise<P: Platform> {
    vm: Shared<VmShared<P>>,
    gsi: u32,
    resampled: bool,
}

impl<P: Platform> EventCallback for Raise<P> {
    fn signalled(&self, _cx: &Atomic) {
        let (chips, vcpus) = (&self.vm.chips, &self.vm.vcpus);
        if self.resampled {
            chips.set_irq(vcpus, self.gsi, IrqSource::IRQFD_RESAMPLE, true);
        } else {
            chips.set_irq(vcpus, self.gsi, IrqSource::USERSPACE, true);
            chips.set_irq(vcpus, self.gsi, IrqSource::USERSPACE, false);
        }
    }
}

/// One binding. The VM's descriptor holds it, since its watch refers to what vCPUs share.
pub(super) struct Irqfd<P: Platform> {
    /// Declared first: no signal comes any more when the rest goes.
    _watch: <P::EventFd as EventFd>::Watch<Raise<P>>,
    event: P::EventFd,
    gsi: u32,
    /// What [`super::Chips::add_resampler`] answered.
    resampler: Option<u64>,
}

/// The bindings of a VM.
pub(super) struct Irqfds<P: Platform>(Vec<Irqfd<P>>);

impl<P: Platform> Default for Irqfds<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: Backend> Vm<B> {
    pub(super) fn irqfd(&self, arg: u64, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let irqfd: KvmIrqfd = uaccess::get::<<B::Platform as Platform>::Memory, _>(arg)?;
        if irqfd.flags & !(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(Errno::EINVAL);
        }
        if irqfd.flags & KVM_IRQFD_FLAG_DEASSIGN != 0 { self.unbind(&irqfd, cx) } else { self.bind(&irqfd, cx) }
    }

    fn bind(&self, irqfd: &KvmIrqfd, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let resampled = irqfd.flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
        let shared = self.shared();
        // Only controllers in the hypervisor hear of ends of interrupts.
        match shared.chips.mode() {
            Irqchip::None => return Err(Errno::EINVAL),
            Irqchip::Split if resampled => return Err(Errno::EINVAL),
            Irqchip::Split | Irqchip::Kernel => {}
        }
        let get = |fd: u32| <B::Platform as Platform>::EventFd::get(fd as i32, cx);
        let event = get(irqfd.fd)?;
        let mut all = self.0.irqfds.lock();
        if all.0.iter().any(|other| other.event.same(&event)) {
            return Err(Errno::EBUSY);
        }
        all.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let gsi = irqfd.gsi;
        let resampler = match resampled {
            true => Some(shared.chips.add_resampler(gsi, get(irqfd.resamplefd)?)?),
            false => None,
        };
        match event.watch(Raise { vm: shared.clone(), gsi, resampled }, cx) {
            Ok(_watch) => {
                all.0.push(Irqfd { _watch, event, gsi, resampler });
                Ok(Outcome::OK)
            }
            Err(error) => {
                if let Some(resampler) = resampler {
                    shared.chips.remove_resampler(&shared.vcpus, resampler);
                }
                Err(error.into())
            }
        }
    }

    /// Takes bindings back; that there is none is no error. No interrupt comes from them after this.
    fn unbind(&self, irqfd: &KvmIrqfd, cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        let event = <B::Platform as Platform>::EventFd::get(irqfd.fd as i32, cx)?;
        let shared = self.shared();
        let mut all = self.0.irqfds.lock();
        while let Some(at) = all.0.iter().position(|one| one.gsi == irqfd.gsi && one.event.same(&event)) {
            let resampler = all.0.swap_remove(at).resampler;
            if let Some(resampler) = resampler {
                shared.chips.remove_resampler(&shared.vcpus, resampler);
            }
        }
        Ok(Outcome::OK)
    }
}
