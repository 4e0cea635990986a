//! The buses of devices inside the hypervisor: which port or guest-physical address is whose.
//!
//! Where a device is on a PC is known; what varies is which devices there are (KVM_CREATE_IRQCHIP, ...), and where the IOAPIC is. They
//! come, and stay. So vCPUs look at two words, and nobody has to wait for them.
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use irqchip::{Pic, Pit, ioapic::IOAPIC_MMIO_SIZE};
use platform::Platform;

use super::VmShared;

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

/// The port of [`Device::Speaker`].
const SPEAKER: u16 = 0x61;

impl Device {
    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Whose a port is, if that device exists.
    const fn of_port(port: u16) -> Option<Self> {
        match port {
            port if Pic::owns(port) => Some(Self::Pic),
            port if Pit::owns(port) => Some(Self::Pit),
            SPEAKER => Some(Self::Speaker),
            _ => None,
        }
    }
}

/// The buses of one VM.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    /// The devices that exist.
    devices: AtomicU32,
    /// Guest-physical address of the IOAPIC's registers.
    ioapic: AtomicU64,
}

impl Bus {
    /// From now on there is `device`, which has ports.
    pub(crate) fn add(&self, device: Device) {
        self.devices.fetch_or(device.bit(), SeqCst);
    }

    /// The registers of the IOAPIC are at `base` from now on.
    pub(crate) fn place_ioapic(&self, base: u64) {
        self.ioapic.store(base, SeqCst);
        self.add(Device::Ioapic);
    }

    #[inline]
    fn has(&self, device: Device) -> bool {
        self.devices.load(SeqCst) & device.bit() != 0
    }

    /// The device that answers the whole of an access to `len` ports.
    #[inline]
    pub(crate) fn of_port(&self, port: u16, len: u8) -> Option<Device> {
        let device = Device::of_port(port)?;
        let whole = len == 1 || Device::of_port(port.wrapping_add(u16::from(len) - 1)) == Some(device);
        (whole && self.has(device)).then_some(device)
    }

    /// The same of an access to memory.
    #[inline]
    pub(crate) fn of_address(&self, gpa: u64, len: u64) -> Option<Device> {
        let offset = gpa.wrapping_sub(self.ioapic.load(SeqCst));
        let whole = offset.saturating_add(len) <= IOAPIC_MMIO_SIZE;
        (whole && self.has(Device::Ioapic)).then_some(Device::Ioapic)
    }
}

impl<P: Platform> VmShared<P> {
    /// IN of `len` bytes from a device inside the hypervisor. All of them have ports of a byte, and answer wider accesses port by port.
    #[inline]
    pub(crate) fn port_in(&self, device: Device, port: u16, len: u8) -> u32 {
        let first = self.byte_in(device, port);
        if len == 1 { first.into() } else { self.rest_in(device, port, len, first) }
    }

    #[inline(never)]
    fn rest_in(&self, device: Device, port: u16, len: u8, first: u8) -> u32 {
        let byte = |n: u8| u32::from(self.byte_in(device, port.wrapping_add(n.into()))) << (8 * (n & 3));
        (1..len).fold(first.into(), |value, n| value | byte(n))
    }

    /// OUT to a device inside the hypervisor.
    #[inline]
    pub(crate) fn port_out(&self, device: Device, port: u16, len: u8, value: u32) {
        self.byte_out(device, port, value as u8);
        if len != 1 {
            self.rest_out(device, port, len, value);
        }
    }

    #[inline(never)]
    fn rest_out(&self, device: Device, port: u16, len: u8, value: u32) {
        for n in 1..len {
            self.byte_out(device, port.wrapping_add(n.into()), (value >> (8 * (n & 3))) as u8);
        }
    }

    #[inline]
    fn byte_in(&self, device: Device, port: u16) -> u8 {
        match device {
            Device::Pic => self.chips.pic_read(&self.vcpus, port),
            Device::Pit => self.chips.pit_read(port),
            Device::Speaker => self.chips.speaker_read(),
            Device::Ioapic => 0xff,
        }
    }

    #[inline]
    fn byte_out(&self, device: Device, port: u16, value: u8) {
        match device {
            Device::Pic => self.chips.pic_write(&self.vcpus, port, value),
            Device::Pit => self.chips.pit_write(port, value),
            Device::Speaker => self.chips.speaker_write(value),
            Device::Ioapic => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_answers_accesses_to_its_own_ports_alone() {
        let bus = Bus::default();
        assert!((0..=u16::MAX).all(|port| bus.of_port(port, 1).is_none()));
        bus.add(Device::Pic);
        bus.add(Device::Pit);
        let whose = [
            (0x20, 1, Some(Device::Pic)),
            (0x20, 2, Some(Device::Pic)),
            (0x21, 2, None),
            (0x1f, 2, None),
            (0x4d0, 2, Some(Device::Pic)),
            (0x4d0, 4, None),
            (0x40, 4, Some(Device::Pit)),
            (0x43, 1, Some(Device::Pit)),
            (0x41, 4, None),
            (0x61, 1, None),
            (0xffff, 4, None),
        ];
        for (port, len, device) in whose {
            assert_eq!(bus.of_port(port, len), device, "{port:#x} {len}");
        }
        bus.add(Device::Speaker);
        assert_eq!((bus.of_port(0x61, 1), bus.of_port(0x61, 2)), (Some(Device::Speaker), None));
    }

    #[test]
    fn the_ioapic_is_where_it_was_put_last() {
        let bus = Bus::default();
        assert_eq!(bus.of_address(0, 4), None);
        for base in [0xfec0_0000, 0xfec1_0000] {
            bus.place_ioapic(base);
            for (at, len, is) in [(0, 4, true), (0x10, 16, true), (0xfc, 4, true), (0xfc, 8, false), (0x100, 1, false)]
            {
                assert_eq!(bus.of_address(base + at, len).is_some(), is, "{at:#x} {len}");
            }
            assert_eq!((bus.of_address(base - 1, 1), bus.of_address(0, 1)), (None, None));
        }
        assert_eq!(bus.of_address(0xfec0_0000, 4), None);
    }
}
