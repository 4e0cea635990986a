//! The ABI's binary statistics format (KVM API documentation, 4.133,
//! `KVM_GET_STATS_FD`): a header, then wherever it says an identifier, the
//! descriptors and the numbers. The file is not trusted.

use std::io;

/// A file that can be read at any offset.
pub trait ReadAt {
    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end of the file.
    ///
    /// # Errors
    /// The file's own.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// The file cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// cannot read the statistics: {0}
    #[error("cannot read the statistics: {0}")]
    Io(#[from] io::Error),
    /// the statistics end early
    #[error("the statistics end early")]
    Short,
    /// the statistics claim {0} entries with names of {1} bytes
    #[error("the statistics claim {0} entries with names of {1} bytes")]
    Absurd(u32, u32),
    /// the statistics describe '{0}' outside of their data
    #[error("the statistics describe '{0}' outside of their data")]
    Outside(String),
}

/// What the number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Processor cycles.
    Cycles,
    /// 0 or 1.
    Boolean,
    /// A unit that was invented later.
    Other(u32),
}

/// How the number behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Cumulative,
    /// The state now.
    Instant,
    /// The highest so far.
    Peak,
    /// Counts of values in ranges of `bucket_size`.
    LinearHistogram,
    /// Counts of values in ranges that double.
    LogHistogram,
    /// A kind that was invented later.
    Other(u32),
}

/// One statistic's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The name.
    pub name: String,
    /// How it behaves.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// The number is in units of 10 (or 2, with `power_of_two`) to this power.
    pub exponent: i16,
    /// Base of the exponent.
    pub power_of_two: bool,
    /// Range of a linear histogram's bucket.
    pub bucket_size: u32,
    /// Byte offset in the data.
    offset: u32,
    /// Numbers it consists of.
    count: u16,
}

/// The unchanging part of a statistics file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Whose statistics these are, such as `kvm-1234/vcpu-0`.
    pub id: String,
    /// All statistics, in the file's order.
    pub descriptors: Vec<Descriptor>,
    data_offset: u32,
    data_len: usize,
}

const HEADER_LEN: usize = 24;
const DESCRIPTOR_LEN: usize = 16;
/// More than any hypervisor has; bounds what is read and kept.
const MAX_DESCRIPTORS: u32 = 4096;
const MAX_NAME: u32 = 256;
const MAX_DATA: usize = 1 << 20;

fn read_exact(file: &impl ReadAt, mut buf: &mut [u8], mut offset: u64) -> Result<(), StatsError> {
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => return Err(StatsError::Short),
            Ok(n) => {
                let n = n.min(buf.len());
                offset += n as u64;
                buf = &mut buf[n..];
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Little-endian fields one after another.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        // Callers take no more than the fixed sizes they read.
        let (field, rest) = self.0.split_first_chunk().expect("a fixed-size structure");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    // The names go to a terminal.
    String::from_utf8_lossy(&bytes[..end]).chars().filter(|c| !c.is_control()).collect()
}

impl Layout {
    /// Reads header, identifier and descriptors.
    ///
    /// # Errors
    /// [`StatsError`] when the file is short or makes no sense.
    pub fn read(file: &impl ReadAt) -> Result<Self, StatsError> {
        let mut header = [0; HEADER_LEN];
        read_exact(file, &mut header, 0)?;
        let mut fields = Fields(&header);
        let _flags = fields.u32();
        let [name_size, count, id_offset, desc_offset, data_offset] = std::array::from_fn(|_| fields.u32());
        if count > MAX_DESCRIPTORS || name_size == 0 || name_size > MAX_NAME {
            return Err(StatsError::Absurd(count, name_size));
        }
        let mut id = vec![0; name_size as usize];
        read_exact(file, &mut id, u64::from(id_offset))?;
        let each = DESCRIPTOR_LEN + name_size as usize;
        let mut bytes = vec![0; each * count as usize];
        read_exact(file, &mut bytes, u64::from(desc_offset))?;
        let descriptors: Vec<_> = bytes.chunks_exact(each).map(Descriptor::parse).collect();
        let mut data_len = 0;
        for d in &descriptors {
            let end = d.offset as usize + 8 * usize::from(d.count);
            if end > MAX_DATA {
                return Err(StatsError::Outside(d.name.clone()));
            }
            data_len = data_len.max(end);
        }
        Ok(Self { id: text(&id), descriptors, data_offset, data_len })
    }

    /// Reads the numbers: for each descriptor one, or one for each bucket of a histogram.
    ///
    /// # Errors
    /// [`StatsError`] when the file is short.
    pub fn values(&self, file: &impl ReadAt) -> Result<Vec<Vec<u64>>, StatsError> {
        let mut data = vec![0; self.data_len];
        read_exact(file, &mut data, u64::from(self.data_offset))?;
        let value = |d: &Descriptor| {
            let from = d.offset as usize;
            let (numbers, _) = data[from..from + 8 * usize::from(d.count)].as_chunks();
            numbers.iter().map(|n| u64::from_le_bytes(*n)).collect()
        };
        Ok(self.descriptors.iter().map(value).collect())
    }
}

impl Descriptor {
    /// Reads a descriptor and the name that follows it.
    fn parse(bytes: &[u8]) -> Self {
        let mut fields = Fields(&bytes[..DESCRIPTOR_LEN]);
        let flags = fields.u32();
        let exponent = i16::from_le_bytes(fields.take());
        let count = fields.u16();
        let offset = fields.u32();
        let bucket_size = fields.u32();
        Self {
            name: text(&bytes[DESCRIPTOR_LEN..]),
            kind: match flags & 0xf {
                0 => Kind::Cumulative,
                1 => Kind::Instant,
                2 => Kind::Peak,
                3 => Kind::LinearHistogram,
                4 => Kind::LogHistogram,
                other => Kind::Other(other),
            },
            unit: match flags >> 4 & 0xf {
                0 => Unit::None,
                1 => Unit::Bytes,
                2 => Unit::Seconds,
                3 => Unit::Cycles,
                4 => Unit::Boolean,
                other => Unit::Other(other),
            },
            exponent,
            power_of_two: flags >> 8 & 0xf == 1,
            bucket_size,
            offset,
            count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never gives everything at once, as a file may.
    struct Slow<'a>(&'a Vec<u8>);

    impl ReadAt for Slow<'_> {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let len = buf.len().min(7);
            self.0.read_at(&mut buf[..len], offset)
        }
    }

    fn put(file: &mut Vec<u8>, fields: &[u32]) {
        for f in fields {
            file.extend_from_slice(&f.to_le_bytes());
        }
    }

    fn name(file: &mut Vec<u8>, name: &str) {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        file.extend_from_slice(&bytes);
    }

    /// Two statistics: a count and a histogram of three buckets.
    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        put(&mut file, &[0, 16, 2, 24, 40, 40 + 64]);
        name(&mut file, "kvm-7/vcpu-1");
        put(&mut file, &[0, 1 << 16, 24, 0]);
        name(&mut file, "exits");
        // Logarithmic histogram, seconds, 10^-9, three numbers at 0.
        put(&mut file, &[4 | 2 << 4, 3 << 16 | 0xfff7, 0, 0]);
        name(&mut file, "wait\x1b[2J");
        for value in [5u64, 6, 7, 1234] {
            file.extend_from_slice(&value.to_le_bytes());
        }
        file
    }

    #[test]
    fn names_kinds_and_numbers() {
        let file = file();
        let layout = Layout::read(&Slow(&file)).unwrap();
        assert_eq!(layout.id, "kvm-7/vcpu-1");
        let [exits, wait] = &layout.descriptors[..] else { panic!() };
        assert_eq!((exits.name.as_str(), exits.kind, exits.unit), ("exits", Kind::Cumulative, Unit::None));
        assert_eq!((wait.kind, wait.unit, wait.exponent), (Kind::LogHistogram, Unit::Seconds, -9));
        assert_eq!(wait.name, "wait[2J", "no control characters");
        assert_eq!(layout.values(&Slow(&file)).unwrap(), [vec![1234], vec![5, 6, 7]]);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = file();
        for len in 0..whole.len() {
            let file = whole[..len].to_vec();
            let result = Layout::read(&Slow(&file)).and_then(|layout| layout.values(&Slow(&file)));
            assert!(result.is_err(), "{len} bytes");
        }
    }

    #[test]
    fn absurd_headers_are_refused() {
        for (field, value) in [(1, 0), (1, 1 << 20), (2, u32::MAX)] {
            let mut file = file();
            file[field * 4..field * 4 + 4].copy_from_slice(&u32::to_le_bytes(value));
            assert!(matches!(Layout::read(&Slow(&file)), Err(StatsError::Absurd(..))));
        }
        let mut file = file();
        file[40 + 8..40 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Layout::read(&Slow(&file)), Err(StatsError::Outside(_))));
    }

    proptest::proptest! {
        #[test]
        fn damage_does_not_panic(damage in proptest::collection::vec((0usize..136, proptest::num::u8::ANY), 1..8)) {
            let mut file = file();
            for (at, byte) in damage {
                file[at] = byte;
            }
            if let Ok(layout) = Layout::read(&Slow(&file)) {
                let _ = layout.values(&Slow(&file));
            }
        }
    }
}
