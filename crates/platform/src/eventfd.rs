//! The client's eventfds: what irqfd, ioeventfd and resampling bind guests to.
use crate::{Atomic, MaySleep, OutOfMemory};

/// Why a descriptor cannot be used as an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFdError {
    /// No such descriptor: EBADF.
    BadDescriptor,
    /// It is something else: EINVAL.
    NotAnEventFd,
    /// ENOMEM.
    OutOfMemory,
}

/// What happens when an eventfd is signalled.
pub trait EventCallback: Send + Sync + 'static {
    /// Somebody has written to the eventfd, once or several times since the last call. Its count has been taken.
    fn signalled(&self, cx: &Atomic);
}

/// An eventfd of the client, kept open.
pub trait EventFd: Sized + Send + Sync + 'static {
    /// While it lives, `C` is called for the eventfd. Its end waits for a call that is under way.
    type Watch<C: EventCallback>: Send + Sync;

    /// The eventfd with this descriptor number in the calling client.
    fn get(fd: i32, cx: &MaySleep) -> Result<Self, EventFdError>;
    /// Whether both are one eventfd, by whatever descriptors they came.
    fn same(&self, other: &Self) -> bool;
    /// Adds 1 to its count.
    fn signal(&self);
    /// Calls `callback` soon after the eventfd is signalled, and at once if it has been already.
    fn watch<C: EventCallback>(&self, callback: C, cx: &MaySleep) -> Result<Self::Watch<C>, OutOfMemory>;
}
