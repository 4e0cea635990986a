//! The kernel's `/dev/kvm`: each operation is the system call of its name.

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{Errno, Sys};

/// The running kernel.
#[derive(Debug, Default)]
pub struct Kernel;

fn check(value: i32) -> Result<i32, Errno> {
    if value < 0 { Err(Errno::last()) } else { Ok(value) }
}

impl Sys for Kernel {
    fn open(&self, path: &CStr) -> Result<RawFd, Errno> {
        // SAFETY: the path is a C string; nothing is written through it.
        check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })
    }

    unsafe fn ioctl(&self, fd: RawFd, request: u32, arg: usize) -> Result<i32, Errno> {
        // SAFETY: the caller promises that `arg` fits the request.
        check(unsafe { libc::ioctl(fd, libc::Ioctl::from(request), arg) })
    }

    fn mmap(&self, fd: RawFd, len: usize, offset: u64) -> Result<*mut u8, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let addr = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, offset)
        };
        if addr == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(addr.cast()) }
    }

    unsafe fn munmap(&self, addr: *mut u8, len: usize) -> Result<(), Errno> {
        // SAFETY: the caller gives back a range it got from `mmap`.
        check(unsafe { libc::munmap(addr.cast(), len) }).map(drop)
    }

    fn close(&self, fd: RawFd) {
        // SAFETY: the descriptor is owned by the caller's handle and closed once.
        unsafe { libc::close(fd) };
    }

    fn pread(&self, fd: RawFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: the buffer is valid for writes of its own length.
        let n = unsafe { libc::pread(fd, buf.as_mut_ptr().cast(), buf.len(), offset) };
        usize::try_from(n).map_err(|_| Errno::last())
    }
}
