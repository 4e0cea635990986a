//! The system-call boundary of `/dev/kvm`.
//!
//! Everything the monitor wants from a hypervisor goes through the few
//! operations of [`Sys`]: what a program can do with a file descriptor. The
//! kernel's device ([`kernel`]) and the device inside this process ([`soft`])
//! both stand behind it, so there is one client for both (see [`crate::kvm`]).

use std::ffi::CStr;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;

pub mod kernel;
pub mod soft;

/// An error number of the operating system, such as `EINTR`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The calling thread's `errno`.
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

impl std::error::Error for Errno {}

/// What a program can do with `/dev/kvm` and the descriptors made from it.
///
/// An implementation is free to give descriptors that mean nothing to the
/// kernel: they are only ever passed back to the same object.
pub trait Sys: Send + Sync {
    /// Opens the device node.
    fn open(&self, path: &CStr) -> Result<RawFd, Errno>;

    /// `ioctl(2)`: `request` is the full number with direction and size.
    ///
    /// # Safety
    /// `arg` must be what the request expects: a number, or the address of a
    /// structure that is valid for the call (and, where the request keeps
    /// memory such as `KVM_SET_USER_MEMORY_REGION`, for as long as it is kept).
    unsafe fn ioctl(&self, fd: RawFd, request: u32, arg: usize) -> Result<i32, Errno>;

    /// `mmap(2)`, shared, readable and writable; `offset` is in bytes.
    fn mmap(&self, fd: RawFd, len: usize, offset: u64) -> Result<*mut u8, Errno>;

    /// `munmap(2)`.
    ///
    /// # Safety
    /// The range must come from [`Sys::mmap`] and not be used afterwards.
    unsafe fn munmap(&self, addr: *mut u8, len: usize) -> Result<(), Errno>;

    /// `close(2)`.
    fn close(&self, fd: RawFd);

    /// `pread(2)`; statistics descriptors are read this way.
    fn pread(&self, fd: RawFd, buf: &mut [u8], offset: u64) -> Result<usize, Errno>;

    /// Looks whether a VM's shadow tables are in order, where the device is one of this process: what was looked at, or
    /// what is wrong. None: there is nothing to look at.
    fn audit(&self, _vm: RawFd) -> Option<Result<String, String>> {
        None
    }

    /// A function that a signal handler is to call on a thread that may be inside an ioctl. The
    /// kernel notices signals by itself; a device in this process has to be told. The function
    /// is async-signal-safe.
    fn signal_note(&self) -> fn() {
        || ()
    }
}

/// An open descriptor of a [`Sys`], closed when dropped.
pub struct Handle {
    sys: Arc<dyn Sys>,
    fd: RawFd,
}

impl Handle {
    /// Takes ownership of `fd`, which belongs to `sys`.
    pub fn new(sys: Arc<dyn Sys>, fd: RawFd) -> Self {
        Self { sys, fd }
    }

    /// The system this descriptor belongs to.
    pub fn sys(&self) -> &Arc<dyn Sys> {
        &self.sys
    }

    /// The descriptor's number.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// See [`Sys::ioctl`].
    ///
    /// # Safety
    /// As for [`Sys::ioctl`].
    pub unsafe fn ioctl(&self, request: u32, arg: usize) -> Result<i32, Errno> {
        // SAFETY: the caller's promise is the callee's condition.
        unsafe { self.sys.ioctl(self.fd, request, arg) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.sys.close(self.fd);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("fd", &self.fd).finish_non_exhaustive()
    }
}
