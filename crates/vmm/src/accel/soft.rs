//! The device inside this process: rekvm's own core on the software CPU.
//!
//! Its boundary is the system call's, so each operation is a call of the same name. Its path
//! means nothing: there is one such device.

use super::{Errno, Sys};
use std::ffi::CStr;
use std::os::fd::RawFd;
use user::device;
pub use user::device::{Options, PagingKind, TlbKind};

/// The in-process device. Its descriptors are real ones, but only this object understands them.
#[derive(Debug, Default)]
pub struct Soft(pub Options);

impl Sys for Soft {
    fn open(&self, _path: &CStr) -> Result<RawFd, Errno> {
        device::open_with(self.0).map_err(|e| Errno(e.0))
    }

    unsafe fn ioctl(&self, fd: RawFd, request: u32, arg: usize) -> Result<i32, Errno> {
        // SAFETY: the caller promises that `arg` fits the request.
        unsafe { device::ioctl(fd, request, arg as u64) }.map_err(|e| Errno(e.0))
    }

    fn mmap(&self, fd: RawFd, len: usize, offset: u64) -> Result<*mut u8, Errno> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        device::mmap(fd, len, prot, libc::MAP_SHARED, offset).map_err(|e| Errno(e.0))
    }

    unsafe fn munmap(&self, addr: *mut u8, len: usize) -> Result<(), Errno> {
        // SAFETY: the caller gives back a range it got from `mmap`.
        unsafe { device::munmap(addr, len) }.map_err(|e| Errno(e.0))
    }

    fn close(&self, fd: RawFd) {
        // A descriptor is closed once, by the handle that owns it.
        let _ = device::close(fd);
    }

    fn pread(&self, fd: RawFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
        device::pread(fd, buf, offset).map_err(|e| Errno(e.0))
    }

    fn audit(&self, vm: RawFd) -> Option<Result<String, String>> {
        device::audit(vm)
    }

    fn signal_note(&self) -> fn() {
        user::signals::note
    }
}
