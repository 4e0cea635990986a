//! Interrupt controllers and the timer, as the client sees them.
use abi::{
    KvmIrqLevel, KvmIrqRouting, KvmIrqRoutingEntry, KvmIrqchip, KvmMsi, KvmPitConfig, KvmPitState, KvmPitState2,
    KvmReinjectControl,
};
use irqchip::{IrqSource, Msi, RoutingTable};
use platform::Platform;

use super::{Device, Irqchip, Vm};
use crate::{Errno, Outcome, backend::Backend, uaccess};

type Mem<B> = <<B as Backend>::Platform as Platform>::Memory;

impl<B: Backend> Vm<B> {
    /// KVM_CREATE_IRQCHIP, before any vCPU.
    pub(super) fn create_irqchip(&self) -> Result<Outcome<B>, Errno> {
        let _config = self.0.config.lock();
        let shared = self.shared();
        if shared.chips.mode() != Irqchip::None {
            return Err(Errno::EEXIST);
        }
        if self.vcpus().iter().next().is_some() {
            return Err(Errno::EINVAL);
        }
        shared.chips.create(Irqchip::Kernel)?;
        shared.bus.add(Device::Pic);
        shared.bus.place_ioapic(shared.chips.ioapic_base());
        Ok(Outcome::OK)
    }

    /// KVM_CREATE_PIT2, or with `arg` None KVM_CREATE_PIT, which has the speaker port too. Without a PIC its interrupts
    /// go nowhere.
    pub(super) fn create_pit(&self, arg: Option<u64>) -> Result<Outcome<B>, Errno> {
        let speaker = match arg {
            Some(arg) => {
                let config: KvmPitConfig = uaccess::get::<Mem<B>, _>(arg)?;
                if config.flags & !abi::KVM_PIT_SPEAKER_DUMMY != 0 {
                    return Err(Errno::EINVAL);
                }
                config.flags & abi::KVM_PIT_SPEAKER_DUMMY != 0
            }
            None => true,
        };
        let _config = self.0.config.lock();
        let shared = self.shared();
        if shared.chips.has_pit() {
            return Err(Errno::EEXIST);
        }
        shared.chips.create_pit(shared)?;
        shared.bus.add(Device::Pit);
        if speaker {
            shared.bus.add(Device::Speaker);
        }
        Ok(Outcome::OK)
    }

    /// KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS.
    pub(super) fn irq_line(&self, arg: u64, status: bool) -> Result<Outcome<B>, Errno> {
        let mut line: KvmIrqLevel = uaccess::get::<Mem<B>, _>(arg)?;
        if self.shared().chips.mode() == Irqchip::None {
            return Err(Errno::ENXIO);
        }
        let answer =
            self.shared().chips.set_irq(self.vcpus(), line.irq, IrqSource::USERSPACE, line.level != 0).to_abi();
        if status {
            line.irq = answer as u32;
            uaccess::put::<Mem<B>, _>(arg, &line)?;
        }
        Ok(Outcome::OK)
    }

    pub(super) fn signal_msi(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let msi: KvmMsi = uaccess::get::<Mem<B>, _>(arg)?;
        if self.shared().chips.mode() == Irqchip::None || msi.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let address = u64::from(msi.address_lo) | u64::from(msi.address_hi) << 32;
        let status = self.shared().chips.signal_msi(self.vcpus(), Msi { address, data: msi.data })?;
        Ok(Outcome::Value(status.to_abi().max(0)))
    }

    pub(super) fn set_gsi_routing(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let header: KvmIrqRouting = uaccess::get::<Mem<B>, _>(arg)?;
        if self.shared().chips.mode() == Irqchip::None || header.flags != 0 {
            return Err(Errno::EINVAL);
        }
        if header.nr as usize > abi::KVM_MAX_IRQ_ROUTES {
            return Err(Errno::EINVAL);
        }
        let most = abi::KVM_MAX_IRQ_ROUTES;
        let entries = uaccess::get_tail::<Mem<B>, KvmIrqRouting, KvmIrqRoutingEntry>(arg, header.nr, most)?;
        let chips = &self.shared().chips;
        chips.set_routing(RoutingTable::build(entries.into_iter(), chips.ids_32bit())?)?;
        Ok(Outcome::OK)
    }

    fn in_kernel(&self) -> Result<(), Errno> {
        if self.shared().chips.mode() == Irqchip::Kernel { Ok(()) } else { Err(Errno::ENXIO) }
    }

    pub(super) fn get_irqchip(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let chip: KvmIrqchip = uaccess::get::<Mem<B>, _>(arg)?;
        self.in_kernel()?;
        uaccess::put::<Mem<B>, _>(arg, &self.shared().chips.state(chip.chip_id)?)?;
        Ok(Outcome::OK)
    }

    pub(super) fn set_irqchip(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let chip: KvmIrqchip = uaccess::get::<Mem<B>, _>(arg)?;
        self.in_kernel()?;
        let shared = self.shared();
        let _config = self.0.config.lock();
        shared.chips.set_state(self.vcpus(), &chip)?;
        shared.bus.place_ioapic(shared.chips.ioapic_base());
        Ok(Outcome::OK)
    }

    fn with_pit(&self) -> Result<(), Errno> {
        if self.shared().chips.has_pit() { Ok(()) } else { Err(Errno::ENXIO) }
    }

    pub(super) fn get_pit(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        self.with_pit()?;
        let state: KvmPitState = self.shared().chips.with_pit(|pit, now| pit.state(now));
        uaccess::put::<Mem<B>, _>(arg, &state)?;
        Ok(Outcome::OK)
    }

    pub(super) fn set_pit(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let state: KvmPitState = uaccess::get::<Mem<B>, _>(arg)?;
        self.with_pit()?;
        self.shared().chips.with_pit(|pit, now| pit.set_state(&state, now));
        Ok(Outcome::OK)
    }

    pub(super) fn get_pit2(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        self.with_pit()?;
        let state: KvmPitState2 = self.shared().chips.with_pit(|pit, now| pit.state2(now));
        uaccess::put::<Mem<B>, _>(arg, &state)?;
        Ok(Outcome::OK)
    }

    pub(super) fn set_pit2(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let state: KvmPitState2 = uaccess::get::<Mem<B>, _>(arg)?;
        self.with_pit()?;
        self.shared().chips.with_pit(|pit, now| pit.set_state2(&state, now));
        Ok(Outcome::OK)
    }

    pub(super) fn reinject_control(&self, arg: u64) -> Result<Outcome<B>, Errno> {
        let control: KvmReinjectControl = uaccess::get::<Mem<B>, _>(arg)?;
        self.with_pit()?;
        self.shared().chips.with_pit(|pit, _| pit.set_reinject(control.pit_reinject != 0));
        Ok(Outcome::OK)
    }
}
