//! The device inside this process, on the software CPU.
use std::{ffi::CStr, os::fd::RawFd};

use user::device;

use super::{Errno, Sys};

/// The in-process device, with how its processor works.
pub(super) struct InProcess(pub(super) device::Options);

macro_rules! plain {
    ($call:expr) => {
        $call.map_err(|error| Errno(error.0))
    };
}

extern "C" fn note(_: libc::c_int) {
    user::signals::note();
}

impl Sys for InProcess {
    fn open(&self) -> Result<RawFd, Errno> {
        plain!(device::open_with(self.0))
    }

    unsafe fn ioctl(&self, fd: RawFd, nr: u32, arg: u64) -> Result<i32, Errno> {
        // SAFETY: as the caller promises.
        plain!(unsafe { device::ioctl(fd, nr, arg) })
    }

    fn mmap(&self, fd: RawFd, len: usize, prot: i32, flags: i32, offset: u64) -> Result<*mut u8, Errno> {
        plain!(device::mmap(fd, len, prot, flags, offset))
    }

    unsafe fn munmap(&self, at: *mut u8, len: usize) -> Result<(), Errno> {
        // SAFETY: as the caller promises.
        plain!(unsafe { device::munmap(at, len) })
    }

    fn pread(&self, fd: RawFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
        plain!(device::pread(fd, buf, offset))
    }

    fn read(&self, fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno> {
        plain!(device::read(fd, buf))
    }

    fn dup(&self, fd: RawFd) -> Result<RawFd, Errno> {
        plain!(device::dup(fd))
    }

    fn close(&self, fd: RawFd) -> Result<(), Errno> {
        plain!(device::close(fd))
    }

    unsafe fn close_range(&self, first: RawFd, last: RawFd, flags: u32) -> Result<(), Errno> {
        if flags == 0 {
            device::forget(first..=last);
        }
        // SAFETY: as the caller promises.
        let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
        if answer < 0 { Err(Errno::last()) } else { Ok(()) }
    }

    fn path(&self) -> Option<&CStr> {
        None
    }

    fn on_signal(&self) -> extern "C" fn(libc::c_int) {
        note
    }
}
