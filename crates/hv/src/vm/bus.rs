//! The buses of devices inside the hypervisor: which port or guest-physical address is whose.
//!
//! The table is a snapshot that vCPUs read without a lock; devices are registered rarely (KVM_CREATE_IRQCHIP, ...).
use alloc::vec::Vec;

use irqchip::{Pic, Pit};
use platform::{MaySleep, Mutex, Platform, fallible::try_box, fallible::try_push, lock::rank, published::Published};

use super::{VmShared, vcpus::MAX_VCPUS};
use crate::Errno;

/// Ports or guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    Pio,
    Mmio,
}

/// A device inside the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// The 8259As, with their edge/level registers.
    Pic,
    /// The counters of the 8254.
    Pit,
    /// Port 0x61: the gate and the output of counter 2.
    Speaker,
    /// The IOAPIC.
    Ioapic,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    space: Space,
    first: u64,
    len: u64,
    device: Device,
}

/// Most ranges of a VM.
const MAX_RANGES: usize = 1000;

/// The ranges of one VM.
pub(crate) struct Bus<P: Platform> {
    table: Published<Vec<Entry>>,
    /// The entries as writers see them.
    writer: Mutex<P, Vec<Entry>>,
}

impl<P: Platform> Bus<P> {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { table: Published::new(Vec::new(), MAX_VCPUS)?, writer: Mutex::<P, _>::new(rank::BUS, Vec::new())? })
    }

    /// Registers `len` ports or bytes from `first` on; a device's earlier range there is replaced.
    pub(crate) fn register(
        &self,
        space: Space,
        ranges: &[(u64, u64)],
        device: Device,
        cx: &MaySleep,
    ) -> Result<(), Errno> {
        let mut entries = self.writer.lock();
        let mut next = Vec::new();
        for entry in entries.iter().filter(|e| e.device != device) {
            try_push(&mut next, *entry)?;
        }
        for (first, len) in ranges {
            try_push(&mut next, Entry { space, first: *first, len: *len, device })?;
        }
        if next.len() > MAX_RANGES {
            return Err(Errno::ENOSPC);
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(next.len()).map_err(|_| Errno::ENOMEM)?;
        copy.extend_from_slice(&next);
        drop(self.table.replace::<P>(try_box(copy)?, cx));
        *entries = next;
        Ok(())
    }

    /// The device that answers a whole access, as vCPU `reader` sees the bus.
    pub(crate) fn find(&self, reader: usize, space: Space, at: u64, len: u64) -> Option<Device> {
        let table = self.table.read(reader)?;
        table
            .iter()
            .find(|e| e.space == space && at.wrapping_sub(e.first) < e.len && e.len - (at - e.first) >= len)
            .map(|e| e.device)
    }
}

impl<P: Platform> VmShared<P> {
    /// IN from a device inside the hypervisor. A device of bytes answers wider accesses port by port.
    pub(crate) fn port_in(&self, device: Device, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = match device {
                Device::Pic if Pic::owns(port) => self.chips.pic_read(&self.vcpus, port),
                Device::Pit if Pit::owns(port) => self.chips.with_pit(|pit, now| pit.read(port, now)),
                Device::Speaker => self.chips.with_pit(|pit, now| pit.speaker_read(now)),
                _ => 0xff,
            };
        }
    }

    /// OUT to a device inside the hypervisor.
    pub(crate) fn port_out(&self, device: Device, port: u16, data: &[u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            match device {
                Device::Pic if Pic::owns(port) => self.chips.pic_write(&self.vcpus, port, *byte),
                Device::Pit if Pit::owns(port) => self.chips.with_pit(|pit, now| pit.write(port, *byte, now)),
                Device::Speaker => self.chips.with_pit(|pit, now| pit.speaker_write(*byte, now)),
                _ => {}
            }
        }
    }

    /// A read of device memory inside the hypervisor.
    pub(crate) fn mmio_read(&self, device: Device, gpa: u64, data: &mut [u8]) {
        match device {
            Device::Ioapic => self.chips.ioapic_read(gpa, data),
            _ => data.fill(0xff),
        }
    }

    /// A write to device memory inside the hypervisor.
    pub(crate) fn mmio_write(&self, device: Device, gpa: u64, data: &[u8]) {
        if device == Device::Ioapic {
            self.chips.ioapic_write(&self.vcpus, gpa, data);
        }
    }
}
