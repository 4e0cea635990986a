//! `/dev/kvm`: what can be asked before there is a VM.
use platform::{MaySleep, Shared};

use crate::{Errno, Outcome, Vm, backend::Backend};

/// The device. One per process (or kernel) and back end.
#[derive(Debug)]
pub struct Kvm<B: Backend>(Shared<Device<B>>);

impl<B: Backend> Clone for Kvm<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Device<B> {
    backend: B,
}

impl<B: Backend> Kvm<B> {
    /// A device whose guests run on `backend`.
    pub fn new(backend: B, _cx: &MaySleep) -> Result<Self, Errno> {
        Ok(Self(Shared::try_new(Device { backend })?))
    }

    /// The back end.
    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    /// `ioctl` on a descriptor of `/dev/kvm`. `nr` is the full request number, `arg` its argument.
    pub fn ioctl(&self, _nr: u32, _arg: u64, _cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        Err(Errno::ENOTTY)
    }

    /// Calls `each` with every living VM, each once.
    pub fn for_each_vm(&self, _each: impl FnMut(&Vm<B>)) {}
}
