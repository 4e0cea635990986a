//! The block device (virtio 1.2, 5.2): read, write, flush, serial number.
//!
//! A request is a chain of descriptors whose division into buffers means
//! nothing: first all bytes the device reads (16 of header, then data), then
//! all it writes (data, then one of status).

use super::disk::{Disk, SECTOR};
use super::mmio::VirtioDevice;
use crate::memory::GuestRam;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

/// Data segments in a request at most; the driver is told.
const SEGMENTS: u32 = 126;
/// Descriptors in a chain at most: the segments, header and status, and some
/// freedom in how those are cut.
const DESCRIPTORS: usize = 2 * (SEGMENTS as usize + 2);
const QUEUE_SIZE: u16 = 128;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A virtual disk.
#[derive(Debug)]
pub struct Block(Disk);

impl Block {
    /// A device for an open disk.
    pub fn new(disk: Disk) -> Self {
        Self(disk)
    }

    /// Carries out a request whose status byte was found: its status and the data bytes written.
    fn execute(&mut self, ram: &GuestRam, mut from: Buffers, to: Buffers) -> (u8, u32) {
        let mut header = [0; 16];
        if !from.take(ram, &mut header) {
            return (IOERR, 0);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => match self.read(ram, sector, &to) {
                // A chain is shorter than 4 GiB, so its length fits.
                Ok(()) => (OK, to.len() as u32),
                Err(_) => (IOERR, 0),
            },
            VIRTIO_BLK_T_OUT => match self.write(ram, sector, &from) {
                Ok(()) => (OK, 0),
                Err(_) => (IOERR, 0),
            },
            VIRTIO_BLK_T_FLUSH => match self.0.flush() {
                Ok(()) => (OK, 0),
                Err(_) => (IOERR, 0),
            },
            VIRTIO_BLK_T_GET_ID => to.put(ram, self.0.id()),
            _ => (UNSUPPORTED, 0),
        }
    }

    fn read(&mut self, ram: &GuestRam, sector: u64, to: &Buffers) -> std::io::Result<()> {
        let file = self.0.seek(sector, to.len())?;
        for &(address, len) in &to.0 {
            ram.read_exact_volatile_from(address, file, len as usize).map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    fn write(&mut self, ram: &GuestRam, sector: u64, from: &Buffers) -> std::io::Result<()> {
        if self.0.read_only() {
            return Err(std::io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let file = self.0.seek(sector, from.len())?;
        for &(address, len) in &from.0 {
            ram.write_all_volatile_to(address, file, len as usize).map_err(std::io::Error::other)?;
        }
        Ok(())
    }
}

/// Guest memory in one direction, in order: addresses and lengths, none empty.
#[derive(Debug, Default)]
struct Buffers(Vec<(GuestAddress, u32)>);

impl Buffers {
    fn len(&self) -> u64 {
        self.0.iter().map(|&(_, len)| u64::from(len)).sum()
    }

    /// Takes the first bytes; false when there are too few or they are not in memory.
    fn take(&mut self, ram: &GuestRam, bytes: &mut [u8]) -> bool {
        let mut done = 0;
        while done < bytes.len() {
            let Some((address, len)) = self.0.first_mut() else { return false };
            let part = (*len as usize).min(bytes.len() - done);
            if ram.read_slice(&mut bytes[done..done + part], *address).is_err() {
                return false;
            }
            done += part;
            *len -= part as u32;
            match address.0.checked_add(part as u64) {
                Some(next) => address.0 = next,
                None => return false,
            }
            if *len == 0 {
                self.0.remove(0);
            }
        }
        true
    }

    /// Takes the last byte's address.
    fn take_last(&mut self) -> Option<GuestAddress> {
        let (address, len) = self.0.last_mut()?;
        *len -= 1;
        let last = address.0.checked_add(u64::from(*len))?;
        if *len == 0 {
            self.0.pop();
        }
        Some(GuestAddress(last))
    }

    /// Writes as much of `bytes` as there is room for.
    fn put(&self, ram: &GuestRam, mut bytes: &[u8]) -> (u8, u32) {
        let mut written = 0;
        for &(address, len) in &self.0 {
            let (part, rest) = bytes.split_at(bytes.len().min(len as usize));
            if ram.write_slice(part, address).is_err() {
                return (IOERR, written);
            }
            written += part.len() as u32;
            bytes = rest;
        }
        (OK, written)
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
        if self.0.read_only() {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        features
    }

    /// `struct virtio_blk_config` as far as the features need it.
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::new();
        config.extend_from_slice(&self.0.sectors().to_le_bytes());
        // size_max: unused without its feature.
        config.extend_from_slice(&0u32.to_le_bytes());
        config.extend_from_slice(&SEGMENTS.to_le_bytes());
        // geometry: likewise.
        config.extend_from_slice(&[0; 4]);
        config.extend_from_slice(&(SECTOR as u32).to_le_bytes());
        config
    }

    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn process(&mut self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> u32 {
        let (mut from, mut to) = (Buffers::default(), Buffers::default());
        for (count, descriptor) in chain.enumerate() {
            if count == DESCRIPTORS {
                return 0;
            }
            if descriptor.len() > 0 {
                let list = if descriptor.is_write_only() { &mut to } else { &mut from };
                list.0.push((descriptor.addr(), descriptor.len()));
            }
        }
        // Without a place for the status there is nobody to tell anything.
        let Some(status_at) = to.take_last() else { return 0 };
        let (status, written) = self.execute(ram, from, to);
        match ram.write_obj(status, status_at) {
            Ok(()) => written.saturating_add(1),
            Err(_) => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::disk::DiskConfig;
    use proptest::prelude::*;
    use std::io::{Read, Seek, Write};
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{Queue, QueueOwnedT, QueueT};

    const HEADER: u64 = 0x8000;
    const DATA: u64 = 0x9000;
    const STATUS: u64 = 0xb000;

    struct Bench {
        file: tempfile::NamedTempFile,
        ram: GuestRam,
        block: Block,
    }

    /// Four sectors, filled with their number plus one.
    fn bench(read_only: bool) -> Bench {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for sector in 1..=4u8 {
            file.write_all(&[sector; 512]).unwrap();
        }
        let config = DiskConfig { path: file.path().into(), read_only };
        let block = Block::new(Disk::open(&config).unwrap());
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        Bench { file, ram, block }
    }

    impl Bench {
        fn header(&self, kind: u32, sector: u64) {
            self.ram.write_obj(u64::from(kind), GuestAddress(HEADER)).unwrap();
            self.ram.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
            self.ram.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
        }

        /// Runs a chain of (address, length, written by the device).
        fn run(&mut self, parts: &[(u64, u32, bool)]) -> u32 {
            let descriptors: Vec<_> = (1..)
                .zip(parts)
                .map(|(next, &(address, len, write))| {
                    let mut flags = if write { VRING_DESC_F_WRITE } else { 0 };
                    if usize::from(next) < parts.len() {
                        flags |= VRING_DESC_F_NEXT;
                    }
                    RawDescriptor::from(Descriptor::new(address, len, flags as u16, next))
                })
                .collect();
            let mock = MockSplitQueue::new(&self.ram, 16);
            mock.build_desc_chain(&descriptors).unwrap();
            let mut queue: Queue = mock.create_queue().unwrap();
            let chain = queue.iter(&self.ram).unwrap().next().unwrap();
            self.block.process(&self.ram, chain)
        }

        fn status(&self) -> u8 {
            self.ram.read_obj(GuestAddress(STATUS)).unwrap()
        }

        fn disk(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            self.file.rewind().unwrap();
            self.file.read_to_end(&mut bytes).unwrap();
            bytes
        }
    }

    const HEAD: (u64, u32, bool) = (HEADER, 16, false);
    const TAIL: (u64, u32, bool) = (STATUS, 1, true);

    #[test]
    fn sectors_are_read() {
        let mut bench = bench(true);
        bench.header(VIRTIO_BLK_T_IN, 1);
        assert_eq!(bench.run(&[HEAD, (DATA, 100, true), (DATA + 100, 924, true), TAIL]), 1025);
        assert_eq!(bench.status(), OK);
        let mut data = [0; 1024];
        bench.ram.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        assert_eq!((data[0], data[511], data[512], data[1023]), (2, 2, 3, 3));
    }

    #[test]
    fn sectors_are_written() {
        let mut bench = bench(false);
        bench.header(VIRTIO_BLK_T_OUT, 3);
        bench.ram.write_slice(&[9; 512], GuestAddress(DATA)).unwrap();
        assert_eq!(bench.run(&[HEAD, (DATA, 512, false), TAIL]), 1);
        assert_eq!(bench.status(), OK);
        let disk = bench.disk();
        assert_eq!(disk.len(), 2048);
        assert_eq!((disk[1535], &disk[1536..]), (3, &[9; 512][..]));
    }

    #[test]
    fn framing_is_free() {
        let mut bench = bench(false);
        bench.header(VIRTIO_BLK_T_IN, 0);
        let split = [(HEADER, 5, false), (HEADER + 5, 11, false), (STATUS - 512, 513, true)];
        assert_eq!(bench.run(&split), 513);
        assert_eq!(bench.status(), OK);
        bench.header(VIRTIO_BLK_T_FLUSH, 0);
        assert_eq!(bench.run(&[HEAD, TAIL]), 1);
        assert_eq!(bench.status(), OK);
    }

    #[test]
    fn the_serial_number_is_cut_to_the_room() {
        let mut bench = bench(false);
        bench.header(VIRTIO_BLK_T_GET_ID, 0);
        assert_eq!(bench.run(&[HEAD, (DATA, 5, true), TAIL]), 6);
        let mut id = [0; 6];
        bench.ram.read_slice(&mut id, GuestAddress(DATA)).unwrap();
        assert_eq!(&id, b"rekvm\0");
        bench.run(&[HEAD, (DATA, 64, true), TAIL]);
        assert_eq!(bench.status(), OK);
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let read = |bench: &mut Bench, sector, parts: &[_]| {
            bench.header(VIRTIO_BLK_T_IN, sector);
            bench.run(parts);
            bench.status()
        };
        let mut bench = bench(true);
        let whole = [HEAD, (DATA, 512, true), TAIL];
        assert_eq!(read(&mut bench, 4, &whole), IOERR, "beyond the end");
        assert_eq!(read(&mut bench, u64::MAX, &whole), IOERR, "overflow");
        assert_eq!(read(&mut bench, 0, &[HEAD, (DATA, 511, true), TAIL]), IOERR, "no sector");
        assert_eq!(read(&mut bench, 0, &[HEAD, (0xffff, 512, true), TAIL]), IOERR, "no memory");
        assert_eq!(read(&mut bench, 0, &[(HEADER, 15, false), TAIL]), IOERR, "short header");
        bench.header(VIRTIO_BLK_T_OUT, 0);
        bench.run(&[HEAD, (DATA, 512, false), TAIL]);
        assert_eq!(bench.status(), IOERR, "read-only");
        bench.header(77, 0);
        bench.run(&[HEAD, TAIL]);
        assert_eq!(bench.status(), UNSUPPORTED);
        bench.header(VIRTIO_BLK_T_IN, 0);
        assert_eq!(bench.run(&[HEAD]), 0, "no room for a status");
        assert_eq!(bench.disk()[0], 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn hostile_rings_do_no_harm(
            kind in prop::sample::select(vec![0u32, 1, 4, 8, 11]),
            sector in prop_oneof![0u64..6, any::<u64>()],
            table in prop::collection::vec(
                (prop_oneof![0u64..0x11000, any::<u64>()], prop_oneof![0u32..2048, any::<u32>()],
                 0u16..8, 0u16..20),
                16,
            ),
            heads in prop::collection::vec(0u16..20, 1..8),
        ) {
            let mut bench = bench(false);
            bench.header(kind, sector);
            let ram = bench.ram.clone();
            let mock = MockSplitQueue::new(&ram, 16);
            for (i, &(address, len, flags, next)) in (0..).zip(&table) {
                let descriptor = RawDescriptor::from(Descriptor::new(address, len, flags, next));
                mock.desc_table().store(i, descriptor).unwrap();
            }
            for (i, head) in heads.iter().enumerate() {
                mock.avail().ring().ref_at(i).unwrap().store(u16::to_le(*head));
            }
            mock.avail().idx().store(u16::to_le(heads.len() as u16));
            let mut queue: Queue = mock.create_queue().unwrap();
            // The guest's writes may hit the rings themselves: look up to a bound.
            for _ in 0..heads.len() {
                let Ok(mut chains) = queue.iter(&ram) else { break };
                let Some(chain) = chains.next() else { break };
                let head = chain.head_index();
                let written = bench.block.process(&ram, chain);
                let _ = queue.add_used(&ram, head, written);
            }
            prop_assert_eq!(bench.disk().len(), 2048, "the file keeps its size");
        }
    }
}
