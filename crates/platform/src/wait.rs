//! Sleeping vCPUs.
use core::sync::atomic::AtomicU32;

use crate::{MaySleep, OutOfMemory};

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// The word changed, or somebody called wake.
    Woken,
    /// A signal that is to end KVM_RUN is pending for this thread.
    Signal,
}

/// The place where one vCPU sleeps, and how it is made to leave the guest. Every wait is on the vCPU's request
/// word: who sets a bit in it calls `wake`, and nothing is lost between the look at the word and the sleep.
pub trait Waiter: Sized + Send + Sync {
    /// Makes one.
    fn new() -> Result<Self, OutOfMemory>;
    /// Sleeps while `*word == value`. May return early without a reason.
    fn wait(&self, word: &AtomicU32, value: u32, cx: &MaySleep) -> WaitEnd;
    /// Wakes the vCPU if it sleeps on `word`.
    fn wake(&self, word: &AtomicU32);
    /// Makes the vCPU leave the guest if it is inside: an IPI in the kernel; nothing in user space, where the
    /// software CPU looks at the request word by itself. The caller has set a request bit before.
    fn kick(&self);
    /// Called by the vCPU's thread before it enters KVM_RUN's loop, with the request word that a pending signal
    /// has to make non-zero; and after it has left with None.
    fn attach(&self, word: Option<&AtomicU32>);
}
