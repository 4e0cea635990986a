//! A guest processor.
use core::sync::atomic::AtomicU32;

use platform::{Hva, MaySleep, Platform, Shared};

use crate::{Errno, Outcome, Vm, backend::Backend};

/// Bits of a vCPU's request word. Any of them makes the guest leave at its next instruction boundary.
pub mod request {
    /// Set by packaging, also from a signal handler or an interrupt: a signal for the thread that is inside KVM_RUN
    /// has arrived, and KVM_RUN returns EINTR. Only to be set between the platform's `Waiter::attach(Some(word))`
    /// and `attach(None)`; followed by `Waiter::wake` unless the thread itself sets it.
    pub const SIGNAL: u32 = 1 << 31;
}

/// A guest processor. It keeps its VM alive.
pub struct Vcpu<B: Backend>(Shared<Processor<B>>);

impl<B: Backend> Clone for Vcpu<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Processor<B: Backend> {
    vm: Vm<B>,
    requests: AtomicU32,
    waiter: <B::Platform as Platform>::Waiter,
}

impl<B: Backend> core::fmt::Debug for Vcpu<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vcpu").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl<B: Backend> Vcpu<B> {
    /// Pages of 4 KiB that a vCPU shares with its client: `kvm_run`, PIO data, ring of coalesced MMIO.
    pub const RUN_PAGES: u64 = 3;

    /// Its VM.
    pub fn vm(&self) -> &Vm<B> {
        &self.0.vm
    }

    /// The number that KVM_CREATE_VCPU was given.
    pub fn id(&self) -> u32 {
        0
    }

    /// Says where the [`Self::RUN_PAGES`] zeroed pages are, through which `P::Memory` reaches what the client maps from
    /// the vCPU's descriptor. They stay there while the vCPU lives. Called once, before the descriptor exists; until
    /// then KVM_RUN answers EFAULT.
    pub fn set_run_pages(&self, _at: Hva) {}

    /// The request word (see [`request`]).
    pub fn requests(&self) -> &AtomicU32 {
        &self.0.requests
    }

    /// Where its thread sleeps.
    pub fn waiter(&self) -> &<B::Platform as Platform>::Waiter {
        &self.0.waiter
    }

    /// The signal set of KVM_SET_SIGNAL_MASK (bit n - 1 for signal n): signals to be blocked while KVM_RUN runs. None:
    /// the thread's own mask stays. Packaging switches masks around the ioctl KVM_RUN.
    pub fn signal_mask(&self) -> Option<u64> {
        None
    }

    /// `ioctl` on a vCPU's descriptor. KVM_RUN returns `Err(EINTR)` for a signal; every other end of KVM_RUN that the
    /// client is to handle is `Ok(Outcome::OK)` with `exit_reason` in the shared page.
    pub fn ioctl(&self, _nr: u32, _arg: u64, _cx: &MaySleep) -> Result<Outcome<B>, Errno> {
        Err(Errno::ENOTTY)
    }
}
