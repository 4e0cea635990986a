//! `syscall()`: calls that a client makes by number.
use std::ffi::{c_char, c_int, c_long};

use libc::AT_FDCWD;
use serve::node;
use user::{device, sys};

use crate::{
    descriptors, fail,
    files::{is_device, is_device_at},
    signals,
};

/// The C library's function of this name. What is not ours goes to the kernel as there.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
    // SAFETY: the client's own arguments.
    let ours = unsafe { ours(number, [a, b, c, d, e, f]) };
    let result = match ours {
        Some(result) => result,
        // SAFETY: the client's own call.
        None => unsafe { sys::call(number, [a, b, c, d, e, f]) }.map_err(|error| error.0),
    };
    if let (Ok(new), libc::SYS_dup | libc::SYS_dup2 | libc::SYS_dup3) = (&result, number) {
        return descriptors::copied(a as c_int, *new as c_int).into();
    }
    if let (Ok(new), libc::SYS_fcntl, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) = (&result, number, b as c_int) {
        return descriptors::copied(a as c_int, *new as c_int).into();
    }
    match result {
        Ok(value) => value as c_long,
        Err(errno) => fail(errno).into(),
    }
}

/// The answer of a call that concerns the device.
///
/// # Safety
/// As for `syscall`.
unsafe fn ours(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> Option<Result<usize, c_int>> {
    let fd = a as c_int;
    let open = |flags: usize| serve::open(flags as c_int).map(|fd| fd as usize);
    let access = |mode: usize| node::access(mode as c_int).map(|value| value as usize);
    // SAFETY: the client's own arguments.
    unsafe {
        match number {
            libc::SYS_open if is_device(AT_FDCWD, a as *const c_char) => Some(open(b)),
            libc::SYS_openat if is_device(fd, b as *const c_char) => Some(open(c)),
            // The flags come first in `open_how`.
            libc::SYS_openat2 if is_device(fd, b as *const c_char) => {
                Some((c as *const u64).as_ref().ok_or(libc::EFAULT).and_then(|flags| open(*flags as usize)))
            }
            libc::SYS_creat if is_device(AT_FDCWD, a as *const c_char) => Some(open(0)),
            libc::SYS_access if is_device(AT_FDCWD, a as *const c_char) => Some(access(b)),
            libc::SYS_faccessat | node::FACCESSAT2 if is_device(fd, b as *const c_char) => Some(access(c)),
            libc::SYS_stat | libc::SYS_lstat if is_device(AT_FDCWD, a as *const c_char) => Some(node::tell_stat(b)),
            libc::SYS_fstat if device::is_device(fd) => Some(node::tell_stat(b)),
            libc::SYS_newfstatat if is_device_at(fd, b as *const c_char, d as c_int) => Some(node::tell_stat(c)),
            libc::SYS_statx if is_device_at(fd, b as *const c_char, c as c_int) => Some(node::tell_statx(e)),
            libc::SYS_ioctl if descriptors::takes(fd, b as u32) => {
                Some(descriptors::ioctl_ours(fd, b as u32, c as u64).map(|value| value as usize))
            }
            libc::SYS_mmap if d as c_int & libc::MAP_ANONYMOUS == 0 && device::owns(e as c_int) => {
                let mapped = device::mmap_at(a, e as c_int, b, c as c_int, d as c_int, f as u64);
                Some(mapped.map(|at| at.addr()).map_err(|error| error.0))
            }
            libc::SYS_read if device::owns(fd) => Some(serve::descriptors::read(fd, b, c, None)),
            libc::SYS_pread64 if device::owns(fd) => Some(serve::descriptors::read(fd, b, c, Some(d as i64))),
            libc::SYS_close if device::owns(fd) => Some(descriptors::close_ours(fd).map(|_| 0)),
            libc::SYS_close_range => {
                serve::descriptors::close_range(a as u32, b as u32, c as u32);
                None
            }
            libc::SYS_rt_sigaction => Some(signals::raw_action(a, b, c, d)),
            libc::SYS_rt_sigprocmask => {
                user::signals::mask_changed();
                None
            }
            _ => None,
        }
    }
}
