//! Calls that take a descriptor: `ioctl`, `mmap`, `close`, `dup` and their kin.
use std::ffi::{c_int, c_uint, c_ulong, c_void};

use libc::{off_t, size_t};
use serve::descriptors::{self, asks_the_device, is_of_kvm};
use user::device;

use crate::{answer, fail, next::next};

/// `ioctl` of a descriptor of ours.
///
/// # Safety
/// `arg` is what the request asks for.
pub(crate) unsafe fn ioctl_ours(fd: c_int, request: u32, arg: u64) -> Result<c_int, c_int> {
    // SAFETY: as the caller promises.
    unsafe { device::ioctl(fd, request, arg) }.map_err(|error| error.0)
}

/// Whether a request to `fd` is for the device.
pub(crate) fn takes(fd: c_int, request: u32) -> bool {
    if device::owns(fd) { asks_the_device(fd, request) } else { is_of_kvm(request) && device::adopt(fd) }
}

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: c_ulong) -> c_int {
    if takes(fd, request as u32) {
        // SAFETY: the client's own argument.
        return answer(unsafe { ioctl_ours(fd, request as u32, arg) });
    }
    next!(ioctl: unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int, fd, request, arg)
}

macro_rules! mmaps {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            at: *mut c_void,
            len: size_t,
            prot: c_int,
            flags: c_int,
            fd: c_int,
            offset: off_t,
        ) -> *mut c_void {
            if flags & libc::MAP_ANONYMOUS == 0 && device::owns(fd) {
                // SAFETY: the client's own place.
                return match unsafe { device::mmap_at(at.addr(), fd, len, prot, flags, offset as u64) } {
                    Ok(at) => at.cast(),
                    Err(error) => {
                        fail(error.0);
                        libc::MAP_FAILED
                    }
                };
            }
            next!($name: unsafe extern "C" fn(*mut c_void, size_t, c_int, c_int, c_int, off_t) -> *mut c_void,
                at, len, prot, flags, fd, offset)
        }
    )*};
}
mmaps!(mmap mmap64);

/// `close` of a descriptor of ours.
pub(crate) fn close_ours(fd: c_int) -> Result<c_int, c_int> {
    device::close(fd).map(|()| 0).map_err(|error| error.0)
}

macro_rules! closes {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int) -> c_int {
            if device::owns(fd) {
                return answer(close_ours(fd));
            }
            next!($name: unsafe extern "C" fn(c_int) -> c_int, fd)
        }
    )*};
}
closes!(close __close);

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    descriptors::close_range(first, last, flags as c_uint);
    next!(close_range: unsafe extern "C" fn(c_uint, c_uint, c_int) -> c_int, first, last, flags)
}

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn closefrom(first: c_int) {
    descriptors::close_range(first.max(0) as c_uint, c_uint::MAX, 0);
    next!(closefrom: unsafe extern "C" fn(c_int) -> c_int, first);
}

/// What a call answers that has made the kernel's `new` a copy of `old`, or has failed.
pub(crate) fn copied(old: c_int, new: c_int) -> c_int {
    if new < 0 { new } else { answer(descriptors::copied(old, new).map(|()| new)) }
}

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup(old: c_int) -> c_int {
    copied(old, next!(dup: unsafe extern "C" fn(c_int) -> c_int, old))
}

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    copied(old, next!(dup2: unsafe extern "C" fn(c_int, c_int) -> c_int, old, new))
}

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    copied(old, next!(dup3: unsafe extern "C" fn(c_int, c_int, c_int) -> c_int, old, new, flags))
}

macro_rules! fcntls {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int, command: c_int, arg: c_ulong) -> c_int {
            let value = next!($name: unsafe extern "C" fn(c_int, c_int, ...) -> c_int, fd, command, arg);
            if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) { copied(fd, value) } else { value }
        }
    )*};
}
fcntls!(fcntl fcntl64);
