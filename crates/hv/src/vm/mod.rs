//! A virtual machine.
use platform::{MaySleep, Shared};

use crate::{Errno, Kvm, Outcome, backend::Backend};

/// A virtual machine. It lives until its descriptor and those of its vCPUs and statistics are closed.
#[derive(Debug)]
pub struct Vm<B: Backend>(Shared<Machine<B>>);

impl<B: Backend> Clone for Vm<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Machine<B: Backend> {
    kvm: Kvm<B>,
}

impl<B: Backend> Vm<B> {
    /// The device it was made by.
    pub fn kvm(&self) -> &Kvm<B> {
        &self.0.kvm
    }

    /// `ioctl` on a VM's descriptor.
    pub fn ioctl(&self, _nr: u32, _arg: u64, _cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        Err(Errno::ENOTTY)
    }
}
