//! From an address to the device behind it, for ports and for memory alike.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that answers accesses to a range of addresses.
///
/// Any vCPU's thread may call at any time; devices lock what they share. The
/// length of `data` is what the guest asked for: at least 1, otherwise anything.
pub trait BusDevice: Send + Sync {
    /// Fills `data` from `offset` (relative to the device's first address).
    /// `data` comes with all bits set: bytes left alone read as an open bus.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` written at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A set of devices with the ranges they own.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Lets `device` answer for `len` addresses from `base`.
    ///
    /// # Panics
    /// When the range overlaps another: an error of the machine's builder, no guest is running yet.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) {
        assert!(self.find(base).is_none() && self.find(base + len - 1).is_none());
        self.ranges.insert(base, (len, device));
    }

    /// The device at `address`. An access of no bytes finds none, so devices see at least one.
    fn find(&self, address: u64) -> Option<(u64, &Arc<dyn BusDevice>)> {
        let (base, (len, device)) = self.ranges.range(..=address).next_back()?;
        let offset = address - base;
        (offset < *len).then_some((offset, device))
    }

    /// Reads; where nothing answers, all bits are one.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if !data.is_empty()
            && let Some((offset, device)) = self.find(address)
        {
            device.read(offset, data);
        }
    }

    /// Writes; where nothing answers, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if !data.is_empty()
            && let Some((offset, device)) = self.find(address)
        {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_their_device_only() {
        let (a, b) = (Arc::new(Probe::default()), Arc::new(Probe::default()));
        let mut bus = Bus::default();
        bus.insert(0x10, 4, a.clone());
        bus.insert(0x14, 4, b.clone());
        bus.write(0x13, &[1, 2]);
        bus.write(0x14, &[3]);
        bus.write(0x18, &[4]);
        bus.write(0xf, &[5]);
        assert_eq!(*a.0.lock().unwrap(), [(3, vec![1, 2])]);
        assert_eq!(*b.0.lock().unwrap(), [(0, vec![3])]);
        let mut data = [0; 2];
        bus.read(0x16, &mut data);
        assert_eq!(data, [2, 0xff]);
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }
}
