//! Calls of the in-process device.
use std::{os::fd::RawFd, ptr};

use hv::Errno;
use user::device;

pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// An ioctl with a structure.
pub fn ioctl<T>(fd: RawFd, nr: u32, arg: &mut T) -> Result<i32, Errno> {
    // SAFETY: the tests pass what each request asks for.
    unsafe { device::ioctl(fd, nr, ptr::from_mut(arg) as u64) }
}

/// An ioctl with a number.
pub fn number(fd: RawFd, nr: u32, arg: u64) -> Result<i32, Errno> {
    // SAFETY: these requests take numbers.
    unsafe { device::ioctl(fd, nr, arg) }
}
