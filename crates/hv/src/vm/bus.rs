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
    first: u64,
    len: u64,
    device: Device,
}

/// The ranges of one space.
type Ranges = Vec<Entry>;

/// The ranges of one VM, by [`Space`].
#[derive(Debug, Default)]
struct Table([Ranges; 2]);

impl Table {
    fn copy(&self) -> Result<Self, Errno> {
        let mut copy = Self::default();
        for (to, from) in copy.0.iter_mut().zip(&self.0) {
            to.try_reserve_exact(from.len()).map_err(|_| Errno::ENOMEM)?;
            to.extend_from_slice(from);
        }
        Ok(copy)
    }
}

/// The buses of one VM.
pub(crate) struct Bus<P: Platform> {
    table: Published<Table>,
    /// The entries as writers see them.
    writer: Mutex<P, Table>,
}

impl<P: Platform> Bus<P> {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            table: Published::new(Table::default(), MAX_VCPUS)?,
            writer: Mutex::<P, _>::new(rank::BUS, Table::default())?,
        })
    }

    /// Registers `len` ports or bytes from `first` on; a device's earlier range there is replaced.
    pub(crate) fn register(
        &self,
        space: Space,
        ranges: &[(u64, u64)],
        device: Device,
        cx: &MaySleep,
    ) -> Result<(), Errno> {
        let mut table = self.writer.lock();
        let mut next = table.copy()?;
        let [pio, mmio] = &mut next.0;
        let entries = match space {
            Space::Pio => pio,
            Space::Mmio => mmio,
        };
        entries.retain(|entry| entry.device != device);
        for (first, len) in ranges {
            try_push(entries, Entry { first: *first, len: *len, device })?;
        }
        drop(self.table.replace::<P>(try_box(next.copy()?)?, cx));
        *table = next;
        Ok(())
    }

    /// The device that answers a whole access, as vCPU `reader` sees the bus.
    #[inline]
    pub(crate) fn find(&self, reader: usize, space: Space, at: u64, len: u64) -> Option<Device> {
        let table = self.table.read(reader)?;
        let [pio, mmio] = &table.0;
        let entries = match space {
            Space::Pio => pio,
            Space::Mmio => mmio,
        };
        let whole = |e: &&Entry| at.wrapping_sub(e.first).saturating_add(len) <= e.len;
        entries.iter().find(whole).map(|e| e.device)
    }
}

impl<P: Platform> VmShared<P> {
    /// IN from a device inside the hypervisor. A device of bytes answers wider accesses port by port.
    pub(crate) fn port_in(&self, device: Device, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = match device {
                Device::Pic if Pic::owns(port) => self.chips.pic_read(&self.vcpus, port),
                Device::Pit if Pit::owns(port) => self.chips.read_pit(|pit, now| pit.read(port, now)),
                Device::Speaker => self.chips.read_pit(|pit, now| pit.speaker_read(now)),
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
