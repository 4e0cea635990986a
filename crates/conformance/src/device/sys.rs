//! The system calls that reach a device: the kernel's own, or the in-process device's functions of the same shape.
use std::{ffi::CStr, os::fd::RawFd};

use super::Errno;

/// One kind of device behind the system-call boundary.
pub trait Sys: Sync {
    /// `open` of the device.
    fn open(&self) -> Result<RawFd, Errno>;

    /// `ioctl`.
    ///
    /// # Safety
    /// `arg` is what request `nr` asks for, or an address that nothing of this program is at.
    unsafe fn ioctl(&self, fd: RawFd, nr: u32, arg: u64) -> Result<i32, Errno>;

    /// `mmap` at a place of the kernel's choice; `flags` without MAP_FIXED.
    fn mmap(&self, fd: RawFd, len: usize, prot: i32, flags: i32, offset: u64) -> Result<*mut u8, Errno>;

    /// `munmap`.
    ///
    /// # Safety
    /// The range comes from `mmap` and nothing refers to it any more.
    unsafe fn munmap(&self, at: *mut u8, len: usize) -> Result<(), Errno>;

    /// `pread`.
    fn pread(&self, fd: RawFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno>;

    /// `read`.
    fn read(&self, fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno>;

    /// `dup`.
    fn dup(&self, fd: RawFd) -> Result<RawFd, Errno>;

    /// `close`.
    fn close(&self, fd: RawFd) -> Result<(), Errno>;

    /// `close_range`.
    ///
    /// # Safety
    /// The numbers belong to the caller.
    unsafe fn close_range(&self, first: RawFd, last: RawFd, flags: u32) -> Result<(), Errno>;

    /// Where the device is in the file system, if it is there.
    fn path(&self) -> Option<&CStr>;

    /// What a signal handler has to call, so that the device notices the signal.
    fn on_signal(&self) -> extern "C" fn(libc::c_int);
}
