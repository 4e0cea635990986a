//! A device node of the kernel.
use std::{
    ffi::{CStr, CString},
    os::fd::RawFd,
    ptr,
};

use super::{Errno, Sys};

/// The device node at a path.
pub(super) struct Kernel(pub(super) CString);

fn check(answer: i32) -> Result<i32, Errno> {
    if answer < 0 { Err(Errno::last()) } else { Ok(answer) }
}

extern "C" fn interrupted(_: libc::c_int) {}

impl Sys for Kernel {
    fn open(&self) -> Result<RawFd, Errno> {
        // SAFETY: a C string.
        check(unsafe { libc::open(self.0.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })
    }

    unsafe fn ioctl(&self, fd: RawFd, nr: u32, arg: u64) -> Result<i32, Errno> {
        // SAFETY: as the caller promises. The request's type differs between C libraries.
        check(unsafe { libc::ioctl(fd, nr as _, arg) })
    }

    fn mmap(&self, fd: RawFd, len: usize, prot: i32, flags: i32, offset: u64) -> Result<*mut u8, Errno> {
        assert_eq!(flags & libc::MAP_FIXED, 0);
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, offset) };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(at.cast()) }
    }

    unsafe fn munmap(&self, at: *mut u8, len: usize) -> Result<(), Errno> {
        // SAFETY: as the caller promises.
        check(unsafe { libc::munmap(at.cast(), len) }).map(drop)
    }

    fn pread(&self, fd: RawFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the buffer is as long as told.
        let read = unsafe { libc::pread(fd, buf.as_mut_ptr().cast(), buf.len(), offset) };
        usize::try_from(read).map_err(|_| Errno::last())
    }

    fn read(&self, fd: RawFd, buf: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: the buffer is as long as told.
        let read = unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len()) };
        usize::try_from(read).map_err(|_| Errno::last())
    }

    fn dup(&self, fd: RawFd) -> Result<RawFd, Errno> {
        // SAFETY: a plain call.
        check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })
    }

    fn close(&self, fd: RawFd) -> Result<(), Errno> {
        // SAFETY: the number belongs to the caller's `Fd`.
        check(unsafe { libc::close(fd) }).map(drop)
    }

    unsafe fn close_range(&self, first: RawFd, last: RawFd, flags: u32) -> Result<(), Errno> {
        // By number: not every C library has the function.
        // SAFETY: as the caller promises.
        check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } as i32).map(drop)
    }

    fn path(&self) -> Option<&CStr> {
        Some(&self.0)
    }

    fn on_signal(&self) -> extern "C" fn(libc::c_int) {
        interrupted
    }
}
