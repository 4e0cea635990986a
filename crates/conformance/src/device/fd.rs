//! An owned descriptor of a device, a VM, a vCPU or a statistics file, and the ways to call ioctls on it.
use std::{
    mem::size_of_val,
    os::fd::RawFd,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use abi::{KVM_REINJECT_CONTROL, Pod, ioc_size};

use super::{Address, Errno, Sys};

/// A descriptor, closed when it goes.
pub struct Fd {
    sys: &'static dyn Sys,
    fd: RawFd,
    closed: AtomicBool,
}

impl Fd {
    pub(crate) fn new(sys: &'static dyn Sys, fd: RawFd) -> Self {
        Self { sys, fd, closed: AtomicBool::new(false) }
    }

    /// The number.
    pub fn raw(&self) -> RawFd {
        self.fd
    }

    /// An ioctl whose argument is a number.
    ///
    /// # Panics
    /// If the request takes a structure.
    pub fn number(&self, nr: u32, value: u64) -> Result<i32, Errno> {
        assert!(ioc_size(nr) == 0 && nr != KVM_REINJECT_CONTROL, "request {nr:#x} takes a structure");
        // SAFETY: the request takes a number.
        unsafe { self.sys.ioctl(self.fd, nr, value) }
    }

    /// An ioctl that makes a descriptor.
    pub fn make(&self, nr: u32, value: u64) -> Result<Fd, Errno> {
        Ok(Fd::new(self.sys, self.number(nr, value)?))
    }

    /// An ioctl that reads a structure.
    pub fn put<T: Pod>(&self, nr: u32, value: &T) -> Result<i32, Errno> {
        // A copy, so that a device that writes where it should read only harms the copy.
        self.exchange(nr, &mut { *value })
    }

    /// An ioctl that fills a structure.
    pub fn get<T: Pod>(&self, nr: u32) -> Result<T, Errno> {
        let mut value = T::zeroed();
        self.exchange(nr, &mut value)?;
        Ok(value)
    }

    /// An ioctl that reads a structure and writes its answer there.
    ///
    /// # Panics
    /// If the request's number says that the structure is larger.
    pub fn exchange<T: Pod>(&self, nr: u32, value: &mut T) -> Result<i32, Errno> {
        self.buffer(nr, value.bytes_mut())
    }

    /// An ioctl on a structure that is followed by elements, as many as its header says.
    ///
    /// # Panics
    /// If the request's number says that the structure is larger.
    pub fn buffer(&self, nr: u32, bytes: &mut [u8]) -> Result<i32, Errno> {
        assert!(ioc_size(nr) <= size_of_val(bytes), "request {nr:#x} takes more than {} bytes", bytes.len());
        // SAFETY: the bytes are there; cases whose header lies about their number use `at` with a fenced buffer.
        unsafe { self.sys.ioctl(self.fd, nr, ptr::from_mut(bytes).cast::<u8>() as u64) }
    }

    /// An ioctl with an address that may be a bad one.
    pub fn at(&self, nr: u32, address: Address) -> Result<i32, Errno> {
        // SAFETY: an `Address` is of a fenced buffer or of nothing.
        unsafe { self.sys.ioctl(self.fd, nr, address.0) }
    }

    /// Major and minor number, if the descriptor is of a device node.
    pub fn device_number(&self) -> Option<(u32, u32)> {
        // SAFETY: plain data, filled by the call.
        let stat = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            (libc::fstat(self.fd, &mut stat) == 0).then_some(stat)
        }?;
        (stat.st_mode & libc::S_IFMT == libc::S_IFCHR).then(|| (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)))
    }

    pub(crate) fn sys(&self) -> &'static dyn Sys {
        self.sys
    }

    /// KVM_SET_SIGNAL_MASK without a mask: the only request to which no address is an answer.
    pub fn remove_signal_mask(&self) -> Result<i32, Errno> {
        // SAFETY: nothing is at address 0.
        unsafe { self.sys.ioctl(self.fd, abi::KVM_SET_SIGNAL_MASK, 0) }
    }

    /// `dup`.
    pub fn dup(&self) -> Result<Fd, Errno> {
        Ok(Fd::new(self.sys, self.sys.dup(self.fd)?))
    }

    /// `close`, with its answer. Calls through this value fail from now on; those that are under way go on.
    pub fn close(&self) -> Result<(), Errno> {
        self.closed.store(true, Ordering::SeqCst);
        self.sys.close(self.fd)
    }

    /// `close_range` of all `fds`, and of what is between their numbers; they stay open if that is only marked for exec.
    pub fn close_range(fds: &[&Self], flags: u32) -> Result<(), Errno> {
        let numbers = || fds.iter().map(|fd| fd.fd);
        let (Some(first), Some(last)) = (numbers().min(), numbers().max()) else { return Ok(()) };
        if flags == 0 {
            fds.iter().for_each(|fd| fd.closed.store(true, Ordering::SeqCst));
        }
        // SAFETY: a case has made them one after the other, and nothing in between.
        unsafe { fds[0].sys.close_range(first, last, flags) }
    }

    /// `pread`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.sys.pread(self.fd, buf, offset)
    }

    /// `read`.
    pub fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        self.sys.read(self.fd, buf)
    }

    /// Whether it is closed by exec.
    pub fn closes_on_exec(&self) -> bool {
        // SAFETY: asks only.
        unsafe { libc::fcntl(self.fd, libc::F_GETFD) & libc::FD_CLOEXEC != 0 }
    }

    /// `mmap` with MAP_SHARED. The mapping stays until the process ends.
    pub fn map(&self, len: usize, offset: u64) -> Result<super::Memory, Errno> {
        let at = self.sys.mmap(self.fd, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, offset)?;
        Ok(super::Memory::of_mapping(at, len))
    }

    /// `munmap` of a whole mapping; it must not be used any more.
    pub fn unmap(&self, memory: super::Memory) -> Result<(), Errno> {
        // SAFETY: a mapping of `map`'s. Accesses through copies of `memory` would end the case with a signal.
        unsafe { self.sys.munmap(memory.address() as *mut u8, memory.len()) }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        if !*self.closed.get_mut() {
            let _ = self.sys.close(self.fd);
        }
    }
}
