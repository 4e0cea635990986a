//! The client's memory, in which guest memory lives. It belongs to somebody else: the client may unmap,
//! truncate or protect it at any moment, and other vCPUs and devices write it meanwhile. So there is never a
//! Rust reference to it; it is read and written by these accessors, each of which can fail.
use crate::{MaySleep, OutOfMemory};

/// A host virtual address: an address in the client, or one of memory that the hypervisor has made for a VM ([`Pages`]). In a
/// kernel the latter have bit 63 set, and no address that comes from a client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Hva(pub u64);

impl Hva {
    /// Where a client's addresses end, as on Linux with four levels of page tables, which leaves the last page out.
    pub const CLIENT_END: Self = Self(0x7fff_ffff_f000);

    /// An address that a client names: one in its own part of the address space.
    pub const fn of_client(address: u64) -> Result<Self, BadAddress> {
        if address < Self::CLIENT_END.0 { Ok(Self(address)) } else { Err(BadAddress) }
    }

    /// The address `bytes` further on; wraps, and a wrapped address fails when it is used.
    #[inline]
    #[must_use]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// The client's memory is not there, or not writable: EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

/// A value that one machine instruction moves: u8 to u64; u128 for 16-byte operands (moved in two halves, but
/// compared and exchanged as one).
pub trait Word: Copy + Eq + Send + 'static {
    /// Its size in bytes.
    const BYTES: u64;
    /// Its low 64 bits.
    fn low(self) -> u64;
    /// Zero-extended from `low`, or truncated.
    fn from_low(low: u64) -> Self;
    /// Bits 127:64, 0 for smaller words.
    fn high(self) -> u64;
    /// Both halves.
    fn from_halves(low: u64, high: u64) -> Self;
}

macro_rules! word {
    ($($t:ty),*) => {$(
        impl Word for $t {
            const BYTES: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            fn low(self) -> u64 { self as u64 }
            #[inline(always)]
            fn from_low(low: u64) -> Self { low as $t }
            #[inline(always)]
            fn high(self) -> u64 { 0 }
            #[inline(always)]
            fn from_halves(low: u64, _high: u64) -> Self { low as $t }
        }
    )*};
}
word!(u8, u16, u32, u64);

impl Word for u128 {
    const BYTES: u64 = 16;
    #[inline(always)]
    fn low(self) -> u64 {
        self as u64
    }
    #[inline(always)]
    fn from_low(low: u64) -> Self {
        low as u128
    }
    #[inline(always)]
    fn high(self) -> u64 {
        (self >> 64) as u64
    }
    #[inline(always)]
    fn from_halves(low: u64, high: u64) -> Self {
        low as u128 | (high as u128) << 64
    }
}

/// Zeroed memory that the hypervisor gives to a VM (2007's memory slots) and that the client can map. It is given back
/// when the value goes; what the client has mapped of it stays valid for the client.
pub trait Pages: Sized + Send + Sync + 'static {
    /// `bytes` of it, a multiple of 4096. A page costs nothing until it is touched.
    fn new(bytes: u64, cx: &MaySleep) -> Result<Self, OutOfMemory>;
    /// Where [`Memory`] reaches it.
    fn at(&self) -> Hva;
}

/// The family of accessors. Each is one access as other processors see it, as far as the host's processor
/// makes a plain move of that size and alignment so; none orders other accesses except the locked ones.
///
/// The addresses come from memory slots and from ioctl arguments ([`Hva::of_client`]), or are those of [`Pages`] and of a
/// vCPU's shared pages. An offset that is added to one never reaches from the client's half into the other.
pub trait Memory: Sized + 'static {
    /// Reads a word.
    fn load<T: Word>(at: Hva) -> Result<T, BadAddress>;
    /// Reads a word under a lock or in interrupt context: fails also if the page would have to be brought in first.
    #[inline]
    fn load_atomic<T: Word>(at: Hva) -> Result<T, BadAddress> {
        Self::load(at)
    }
    /// Writes a word.
    fn store<T: Word>(at: Hva, value: T) -> Result<(), BadAddress>;
    /// LOCK CMPXCHG: writes `new` if the word is `old`; returns what it was. Full barrier.
    fn compare_exchange<T: Word>(at: Hva, old: T, new: T) -> Result<T, BadAddress>;
    /// Copies from the client. On failure part of `to` may have been written.
    fn copy_from(at: Hva, to: &mut [u8]) -> Result<(), BadAddress>;
    /// Copies to the client. On failure part may have been written.
    fn copy_to(at: Hva, from: &[u8]) -> Result<(), BadAddress>;
    /// Copies `bytes` within the client, ascending, as REP MOVSB does when the ranges overlap.
    /// Returns how many bytes were copied; less than `bytes` means that the next one faulted.
    fn copy_within(from: Hva, to: Hva, bytes: u64) -> u64;
    /// Writes `count` copies of `value`. Returns how many were written.
    fn fill<T: Word>(at: Hva, value: T, count: u64) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_names_no_address_of_the_hypervisor() {
        let last = Hva(Hva::CLIENT_END.0 - 1);
        assert_eq!(Hva::of_client(last.0), Ok(last));
        assert_eq!(Hva::of_client(Hva::CLIENT_END.0), Err(BadAddress));
        assert_eq!(Hva::of_client(1 << 63), Err(BadAddress));
    }
}
