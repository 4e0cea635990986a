//! The pages that a vCPU shares with its client: `kvm_run`, PIO data, the ring of coalesced MMIO.
//!
//! The client may write to them at any moment, so they are reached by offset only, each field is read once, and
//! nothing that the hypervisor relies on is kept there.
use core::marker::PhantomData;

use abi::Pod;
use platform::{Hva, Memory, Platform, Word};

use crate::Errno;

/// Byte offset of the PIO data page.
pub(crate) const PIO_DATA: u64 = 0x1000;

/// The shared pages of one vCPU.
pub(crate) struct RunPage<P> {
    at: Hva,
    platform: PhantomData<fn() -> P>,
}

impl<P> Clone for RunPage<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P> Copy for RunPage<P> {}

impl<P: Platform> RunPage<P> {
    pub(crate) const fn new(at: Hva) -> Self {
        Self { at, platform: PhantomData }
    }

    pub(crate) fn load<T: Word>(self, offset: usize) -> Result<T, Errno> {
        Ok(P::Memory::load(self.at.add(offset as u64))?)
    }

    pub(crate) fn store<T: Word>(self, offset: usize, value: T) -> Result<(), Errno> {
        Ok(P::Memory::store(self.at.add(offset as u64), value)?)
    }

    /// Writes the exit reason and its payload.
    pub(crate) fn exit<T: Pod>(self, reason: u32, payload: &T) -> Result<(), Errno> {
        self.store(abi::KVM_RUN_EXIT_REASON_OFFSET, reason)?;
        self.copy_to(abi::KVM_RUN_UNION_OFFSET as u64, payload.bytes())
    }

    /// Writes an exit reason that has no payload.
    pub(crate) fn reason(self, reason: u32) -> Result<(), Errno> {
        self.store(abi::KVM_RUN_EXIT_REASON_OFFSET, reason)
    }

    /// Reads the payload, as the client left it.
    pub(crate) fn payload<T: Pod>(self) -> Result<T, Errno> {
        let mut value = T::zeroed();
        self.copy_from(abi::KVM_RUN_UNION_OFFSET as u64, value.bytes_mut())?;
        Ok(value)
    }

    pub(crate) fn copy_to(self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        Ok(P::Memory::copy_to(self.at.add(offset), from)?)
    }

    pub(crate) fn copy_from(self, offset: u64, to: &mut [u8]) -> Result<(), Errno> {
        Ok(P::Memory::copy_from(self.at.add(offset), to)?)
    }
}
