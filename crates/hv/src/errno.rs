//! Error numbers as the system-call boundary has them.
use platform::{BadAddress, EventFdError, OutOfMemory};

/// An error number, positive: the client sees -1 and this in `errno` (or its negative, in the kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

#[allow(missing_docs)] // the names are the interface's own
impl Errno {
    pub const EPERM: Self = Self(1);
    pub const ENOENT: Self = Self(2);
    pub const EINTR: Self = Self(4);
    pub const EIO: Self = Self(5);
    pub const ENXIO: Self = Self(6);
    pub const E2BIG: Self = Self(7);
    pub const EBADF: Self = Self(9);
    pub const EAGAIN: Self = Self(11);
    pub const ENOMEM: Self = Self(12);
    pub const EFAULT: Self = Self(14);
    pub const EBUSY: Self = Self(16);
    pub const EEXIST: Self = Self(17);
    pub const ENODEV: Self = Self(19);
    pub const EINVAL: Self = Self(22);
    pub const ENOTTY: Self = Self(25);
    pub const ENOSPC: Self = Self(28);
    pub const EOPNOTSUPP: Self = Self(95);
}

impl From<OutOfMemory> for Errno {
    fn from(_: OutOfMemory) -> Self {
        Self::ENOMEM
    }
}

impl From<BadAddress> for Errno {
    fn from(_: BadAddress) -> Self {
        Self::EFAULT
    }
}

impl From<EventFdError> for Errno {
    fn from(error: EventFdError) -> Self {
        match error {
            EventFdError::BadDescriptor => Self::EBADF,
            EventFdError::NotAnEventFd => Self::EINVAL,
            EventFdError::OutOfMemory => Self::ENOMEM,
        }
    }
}
