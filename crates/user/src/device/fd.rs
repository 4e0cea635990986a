//! Real descriptors and the pages behind them.
use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use hv::Errno;
use platform::{Hva, fallible::Shared};

use crate::sys;

/// The calling thread's `errno`.
pub(super) fn last_errno() -> Errno {
    Errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// A memfd of a fixed size. No program may shrink it under the hypervisor.
pub(super) fn memfd(name: &CStr, bytes: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: the name is a C string; the descriptor is new and ours.
    let fd = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        if fd < 0 {
            return Err(last_errno());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let bytes = libc::off_t::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain calls on a descriptor of ours.
    let failed = unsafe {
        libc::ftruncate(fd.as_raw_fd(), bytes) != 0 || libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) != 0
    };
    if failed { Err(last_errno()) } else { Ok(fd) }
}

/// Maps a descriptor.
pub(super) fn map(at: usize, len: usize, prot: i32, flags: i32, fd: RawFd, offset: u64) -> Result<*mut u8, Errno> {
    let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
    // SAFETY: a new mapping; with MAP_FIXED the client has chosen what it replaces.
    let at = unsafe { sys::call(libc::SYS_mmap, [at, len, prot as usize, flags as usize, fd as usize, offset]) }?;
    Ok(ptr::with_exposed_provenance_mut(at))
}

/// Another descriptor of the same file; if the client closed it meanwhile, the call fails or copies another descriptor
/// of the client's, as dup(2) would.
pub(super) fn dup(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the new descriptor is ours.
    unsafe {
        let copy = sys::call(libc::SYS_fcntl, [fd as usize, libc::F_DUPFD_CLOEXEC as usize, 0, 0, 0, 0])?;
        Ok(OwnedFd::from_raw_fd(copy as RawFd))
    }
}

/// Device and inode of a file.
pub(super) fn identity(fd: RawFd) -> Result<(u64, u64), Errno> {
    // SAFETY: all-zero is a valid structure, which the call fills.
    unsafe {
        let mut stat: libc::stat = mem::zeroed();
        sys::call(libc::SYS_fstat, [fd as usize, (&raw mut stat).addr(), 0, 0, 0, 0])?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

/// Where the file's next `read` begins, which all its descriptors share.
pub(super) fn position(fd: RawFd) -> Result<u64, Errno> {
    // SAFETY: asks only.
    unsafe { sys::call(libc::SYS_lseek, [fd as usize, 0, libc::SEEK_CUR as usize, 0, 0, 0]) }.map(|at| at as u64)
}

/// Has it begin at `to`.
pub(super) fn move_to(fd: RawFd, to: u64) -> Result<(), Errno> {
    // SAFETY: the file of a descriptor of ours holds nothing.
    unsafe { sys::call(libc::SYS_lseek, [fd as usize, to as usize, libc::SEEK_SET as usize, 0, 0, 0]) }.map(drop)
}

/// `close`.
pub(super) fn close(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: the client's own descriptor, which it gives up.
    unsafe { sys::call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// The hypervisor's own mapping of the pages that a vCPU shares with its client.
#[derive(Debug)]
pub(super) struct Pages {
    at: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: only an address range, which is unmapped once.
unsafe impl Send for Pages {}
// SAFETY: as above; nothing is accessed through it.
unsafe impl Sync for Pages {}

impl Pages {
    pub(super) fn map(fd: &OwnedFd, bytes: u64) -> Result<Shared<Self>, Errno> {
        let bytes = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let at = map(0, bytes, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0)?.cast();
        // Without memory the mapping goes with the value.
        Ok(Shared::try_new(Self { at, bytes })?)
    }

    pub(super) fn at(&self) -> Hva {
        Hva(self.at as u64)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the vCPU that used it has no descriptor and no running call any more.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}
