//! Memory that a VM owns (2007's memory slots): a shared mapping of this process, which can be mapped once more for the
//! client.
use std::{io, ptr};

use platform::{Hva, MaySleep, OutOfMemory, Pages};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Zeroed memory of this process, unmapped when dropped.
#[derive(Debug)]
pub struct SharedPages {
    at: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: only an address range, which is unmapped once.
unsafe impl Send for SharedPages {}
// SAFETY: as above; nothing is accessed through it.
unsafe impl Sync for SharedPages {}

impl Pages for SharedPages {
    fn new(bytes: u64, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        let bytes = usize::try_from(bytes).map_err(|_| OutOfMemory)?;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes, RW, flags, -1, 0) };
        if at == libc::MAP_FAILED { Err(OutOfMemory) } else { Ok(Self { at, bytes }) }
    }

    fn at(&self) -> Hva {
        Hva(self.at as u64)
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no vCPU uses it any more.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

/// Maps the `bytes` of a [`SharedPages`] that lie at `from` once more, at `to`, with the rights `prot`.
///
/// # Safety
/// The bytes at `from` belong to a live [`SharedPages`], those at `to` to a mapping that is the caller's to replace.
pub(crate) unsafe fn map_again(from: Hva, to: *mut u8, bytes: usize, prot: i32) -> io::Result<()> {
    let (from, to) = (from.0 as *mut libc::c_void, to.cast::<libc::c_void>());
    // A shared mapping that is moved with an old size of 0 stays, and is mapped a second time: mremap(2).
    // SAFETY: as the caller promises.
    let at = unsafe { libc::mremap(from, 0, bytes, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to) };
    // SAFETY: the mapping that has just been made.
    if at == libc::MAP_FAILED || prot != RW && unsafe { libc::mprotect(at, bytes, prot) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
