//! What can go wrong with guest memory.
use core::fmt;

use platform::{BadAddress, OutOfMemory};

/// Why an ioctl on memory slots, aliases or the dirty log was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// The arguments contradict each other or the slot as it is: EINVAL.
    Invalid,
    /// The range overlaps another slot's: EEXIST.
    Exists,
    /// No such slot, or it has no dirty log: ENOENT.
    NotFound,
    /// The client's bitmap cannot be read or written: EFAULT.
    BadAddress,
    /// No memory for the hypervisor's own structures: ENOMEM.
    OutOfMemory,
}

impl SlotError {
    /// The positive Linux error number that the client gets.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Invalid => 22,
            Self::Exists => 17,
            Self::NotFound => 2,
            Self::BadAddress => 14,
            Self::OutOfMemory => 12,
        }
    }
}

impl From<BadAddress> for SlotError {
    fn from(_: BadAddress) -> Self {
        Self::BadAddress
    }
}

impl From<OutOfMemory> for SlotError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid memory slot arguments",
            Self::Exists => "memory slot overlaps another",
            Self::NotFound => "no such memory slot, or it has no dirty log",
            Self::BadAddress => "bad address of a dirty bitmap",
            Self::OutOfMemory => "out of memory",
        })
    }
}

/// Why an access to guest-physical memory failed; the address is the first byte that could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// No slot serves it: device memory, or nothing.
    NoMemory(u64),
    /// A write to a read-only slot: to be treated as device memory.
    ReadOnly(u64),
    /// The slot's memory is gone from the client: EFAULT.
    BadAddress(u64),
    /// A locked operation spans two pages that are not neighbours in the client.
    Split(u64),
}

impl MemoryError {
    /// The guest-physical address.
    pub const fn gpa(self) -> u64 {
        match self {
            Self::NoMemory(gpa) | Self::ReadOnly(gpa) | Self::BadAddress(gpa) | Self::Split(gpa) => gpa,
        }
    }
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::NoMemory(_) => "no memory",
            Self::ReadOnly(_) => "read-only memory",
            Self::BadAddress(_) => "memory that the client took away",
            Self::Split(_) => "a locked operation across unrelated pages",
        };
        write!(f, "{what} at guest-physical {:#x}", self.gpa())
    }
}
