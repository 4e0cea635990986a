//! `/dev/kvm`: what can be asked before there is a VM.
mod caps;
mod ioctl;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use platform::{MaySleep, Mutex, Shared, fallible::try_push, lock::rank};

use crate::{Errno, Vm, backend::Backend};

/// The device. One per process (or kernel) and back end.
pub struct Kvm<B: Backend>(Shared<Device<B>>);

impl<B: Backend> Clone for Kvm<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> core::fmt::Debug for Kvm<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kvm").field("backend", &B::NAME).finish_non_exhaustive()
    }
}

struct Device<B: Backend> {
    backend: B,
    /// The living VMs, each once, by their numbers (row D04).
    vms: Mutex<B::Platform, Vec<u32>>,
    next: AtomicU32,
}

impl<B: Backend> Kvm<B> {
    /// A device whose guests run on `backend`.
    pub fn new(backend: B, _cx: &MaySleep) -> Result<Self, Errno> {
        let vms = Mutex::<B::Platform, _>::new(rank::VM_LIST, Vec::new())?;
        Ok(Self(Shared::try_new(Device { backend, vms, next: AtomicU32::new(1) })?))
    }

    /// The back end.
    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    /// Calls `each` with the number of every living VM, oldest first.
    pub fn for_each_vm(&self, each: impl FnMut(u32)) {
        self.0.vms.lock().iter().copied().for_each(each);
    }

    /// KVM_CREATE_VM.
    fn create_vm(&self, cx: &MaySleep) -> Result<Vm<B>, Errno> {
        let number = self.0.next.fetch_add(1, Relaxed);
        // In the list first: the VM's end takes it out again, also if making it fails half way.
        try_push(&mut *self.0.vms.lock(), number)?;
        Vm::create(self, number, cx).inspect_err(|_| self.forget_vm(number))
    }

    /// The VM is gone.
    pub(crate) fn forget_vm(&self, number: u32) {
        self.0.vms.lock().retain(|n| *n != number);
    }
}
