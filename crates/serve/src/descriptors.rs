//! What system calls on descriptors mean for the device, whoever made them.
//!
//! [`asks_the_device`] and [`is_of_kvm`] touch nothing of the thread and allocate nothing.
use std::ffi::{c_int, c_uint};

use platform::{Hva, Memory};
use user::{ClientMemory, device, sys};

/// Requests that the kernel itself answers for every descriptor.
const OF_EVERY_FILE: [u32; 4] =
    [libc::FIOCLEX as u32, libc::FIONCLEX as u32, libc::FIONBIO as u32, libc::FIOASYNC as u32];
/// The type that all requests of KVM carry (KVMIO).
const OF_KVM: u32 = 0xae;

/// Whether the device answers this request to `fd`, which is known to be of it or not.
pub fn asks_the_device(fd: c_int, request: u32) -> bool {
    device::owns(fd) && !OF_EVERY_FILE.contains(&request)
}

/// Whether a request is KVM's: a descriptor that takes it may have come over a socket (`device::adopt`).
pub fn is_of_kvm(request: u32) -> bool {
    request >> 8 & 0xff == OF_KVM
}

/// What a read takes at a time.
const PART: usize = 512;

/// `pread` of a descriptor of ours, or `read` without an offset, into the client's memory.
///
/// # Errors
/// The error number.
pub fn read(fd: c_int, to: usize, len: usize, offset: Option<i64>) -> Result<usize, c_int> {
    let offset = offset.map(u64::try_from).transpose().map_err(|_| libc::EINVAL)?;
    let (mut part, mut done) = ([0; PART], 0);
    loop {
        let room = &mut part[..PART.min(len - done)];
        let read = match offset {
            Some(offset) => device::pread(fd, room, offset.saturating_add(done as u64)),
            None => device::read(fd, room),
        };
        let read = read.map_err(|error| error.0)?;
        let there = Hva((to as u64).wrapping_add(done as u64));
        ClientMemory::copy_to(there, &room[..read]).map_err(|_| libc::EFAULT)?;
        done += read;
        if read < PART || done == len {
            return Ok(done);
        }
    }
}

/// `close_range`, before the kernel does it: forgets what is closed, unless it is only marked for exec.
pub fn close_range(first: c_uint, last: c_uint, flags: c_uint) {
    if flags & libc::CLOSE_RANGE_CLOEXEC == 0 {
        let limited = |fd: c_uint| c_int::try_from(fd).unwrap_or(c_int::MAX);
        device::forget(limited(first)..=limited(last));
    }
}

/// After the kernel has made `new` a copy of `old`: what `new` stands for now. If it cannot be known, it is closed.
///
/// # Errors
/// The error number with which the call is to fail.
pub fn copied(old: c_int, new: c_int) -> Result<(), c_int> {
    if new == old {
        return Ok(());
    }
    if !device::owns(old) {
        if device::owns(new) {
            device::forget(new..=new);
        }
        return Ok(());
    }
    device::copied(old, new).map_err(|error| {
        device::forget(new..=new);
        // SAFETY: made for this call, and told to nobody.
        let _ = unsafe { sys::call(libc::SYS_close, [new as usize, 0, 0, 0, 0, 0]) };
        error.0
    })
}
