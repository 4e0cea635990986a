//! Memory for generated code, mapped twice: where it is written it cannot be executed, and the other way round.
use std::{io, os::fd::FromRawFd, os::fd::OwnedFd, ptr::NonNull};

use std::os::fd::AsRawFd;

/// Executable memory of a fixed size, filled from its start.
#[derive(Debug)]
pub(super) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    size: usize,
    used: usize,
    /// The memory has held other code before.
    reused: bool,
}

/// Stubs start at multiples of this.
const ALIGN: usize = 32;

impl CodeMemory {
    /// Maps `size` bytes (a multiple of the page size).
    pub fn new(size: usize) -> io::Result<Self> {
        let fd = memory_file()?;
        // SAFETY: plain system call on a descriptor that we own.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let writable = map(&fd, size, libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = match map(&fd, size, libc::PROT_READ | libc::PROT_EXEC) {
            Ok(executable) => executable,
            Err(error) => {
                // SAFETY: mapped above, and nobody has seen the address.
                unsafe { libc::munmap(writable.as_ptr().cast(), size) };
                return Err(error);
            }
        };
        Ok(Self { writable, executable, size, used: 0, reused: false })
    }

    /// Copies `code` behind what is there; None if there is no room.
    pub fn push(&mut self, code: &[u8]) -> Option<NonNull<u8>> {
        if code.len() > self.size - self.used {
            return None;
        }
        // SAFETY: the range [used, used + len) is inside the mapping, no stub in it is live or running (stubs
        // run on this thread only while `self` is borrowed by nobody), and `code` is a Rust slice elsewhere.
        let entry = unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.as_ptr().add(self.used), code.len());
            self.executable.add(self.used)
        };
        self.used = (self.used + code.len()).next_multiple_of(ALIGN).min(self.size);
        if self.reused {
            // The old code at this address may have been prefetched, and was written through another linear address
            // (SDM vol. 3, 8.1.3): serialize.
            std::arch::x86_64::__cpuid(0);
        }
        Some(entry)
    }

    /// Forgets all code.
    pub fn clear(&mut self) {
        self.used = 0;
        self.reused = true;
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both were mapped with this size, and whoever could call into them is being dropped too.
        unsafe {
            libc::munmap(self.writable.as_ptr().cast(), self.size);
            libc::munmap(self.executable.as_ptr().cast(), self.size);
        }
    }
}

fn memory_file() -> io::Result<OwnedFd> {
    // Kernels since 6.3 want to be told that the memory is to be executed; older ones do not know the flag.
    const MFD_EXEC: libc::c_uint = 0x10;
    for flags in [libc::MFD_CLOEXEC | MFD_EXEC, libc::MFD_CLOEXEC] {
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"rekvm-vector".as_ptr(), flags) };
        if fd >= 0 {
            // SAFETY: a new descriptor that nobody else owns.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::Error::last_os_error())
}

fn map(fd: &OwnedFd, size: usize, protection: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // A child of the client must not share the memory in which we write code. If that is refused the child has it
    // and does not use it.
    // SAFETY: the range was mapped above.
    unsafe { libc::madvise(at, size, libc::MADV_DONTFORK) };
    NonNull::new(at.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}
