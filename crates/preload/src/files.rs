//! Calls that take a path: `open`, `access`, `stat` and their kin.
use std::ffi::{c_char, c_int, c_uint};

use libc::{AT_FDCWD, mode_t};
use serve::node;

use crate::{answer, next::next};

/// Whether a path, relative to the folder `dir`, means the device.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn is_device(dir: c_int, path: *const c_char) -> bool {
    // SAFETY: as the caller promises.
    node::is_device(dir, unsafe { node::bytes(path) })
}

/// `open` and its kin with a mode.
macro_rules! opens {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(AT_FDCWD, path) } {
                return answer(serve::open(flags));
            }
            next!($name: unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int, path, flags, mode)
        }
    )*};
}
opens!(open open64 __open __open64);

/// `openat` and its kin with a mode.
macro_rules! opens_at {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(dir, path) } {
                return answer(serve::open(flags));
            }
            next!($name: unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int, dir, path, flags, mode)
        }
    )*};
}
opens_at!(openat openat64);

/// What the C library's headers make of `open` without a mode.
macro_rules! fortified {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(AT_FDCWD, path) } {
                return answer(serve::open(flags));
            }
            next!($name: unsafe extern "C" fn(*const c_char, c_int) -> c_int, path, flags)
        }
    )*};
}
fortified!(__open_2 __open64_2);

macro_rules! fortified_at {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(dir, path) } {
                return answer(serve::open(flags));
            }
            next!($name: unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int, dir, path, flags)
        }
    )*};
}
fortified_at!(__openat_2 __openat64_2);

macro_rules! creats {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, mode: mode_t) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(AT_FDCWD, path) } {
                return answer(serve::open(0));
            }
            next!($name: unsafe extern "C" fn(*const c_char, mode_t) -> c_int, path, mode)
        }
    )*};
}
creats!(creat creat64);

macro_rules! accesses {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, mode: c_int) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(AT_FDCWD, path) } {
                return answer(node::access(mode));
            }
            next!($name: unsafe extern "C" fn(*const c_char, c_int) -> c_int, path, mode)
        }
    )*};
}
accesses!(access euidaccess eaccess);

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    // SAFETY: the client's own path.
    if unsafe { is_device(dir, path) } {
        return answer(node::access(mode));
    }
    next!(faccessat: unsafe extern "C" fn(c_int, *const c_char, c_int, c_int) -> c_int, dir, path, mode, flags)
}

/// What `stat` says of the device.
fn stat_of_device(to: *mut libc::stat) -> c_int {
    answer(node::tell_stat(to.addr()).map(|_| 0))
}

macro_rules! stats {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, to: *mut libc::stat) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(AT_FDCWD, path) } {
                return stat_of_device(to);
            }
            next!($name: unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int, path, to)
        }
    )*};
}
stats!(stat stat64 lstat lstat64);

/// What older programs call, with the structure's version.
macro_rules! old_stats {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(version: c_int, path: *const c_char, to: *mut libc::stat) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device(AT_FDCWD, path) } {
                return stat_of_device(to);
            }
            next!($name: unsafe extern "C" fn(c_int, *const c_char, *mut libc::stat) -> c_int, version, path, to)
        }
    )*};
}
old_stats!(__xstat __xstat64 __lxstat __lxstat64);

/// Whether a call with a folder, a path and flags means the device: by its path, or by an open descriptor of it.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn is_device_at(dir: c_int, path: *const c_char, flags: c_int) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let empty = path.is_null() || *path == 0;
        (empty && flags & libc::AT_EMPTY_PATH != 0 && user::device::is_device(dir)) || is_device(dir, path)
    }
}

macro_rules! stats_at {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(dir: c_int, path: *const c_char, to: *mut libc::stat, flags: c_int) -> c_int {
            // SAFETY: the client's own path.
            if unsafe { is_device_at(dir, path, flags) } {
                return stat_of_device(to);
            }
            next!($name: unsafe extern "C" fn(c_int, *const c_char, *mut libc::stat, c_int) -> c_int,
                dir, path, to, flags)
        }
    )*};
}
stats_at!(fstatat fstatat64);

macro_rules! stats_of_descriptors {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int, to: *mut libc::stat) -> c_int {
            if user::device::is_device(fd) {
                return stat_of_device(to);
            }
            next!($name: unsafe extern "C" fn(c_int, *mut libc::stat) -> c_int, fd, to)
        }
    )*};
}
stats_of_descriptors!(fstat fstat64);

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    to: *mut libc::statx,
) -> c_int {
    // SAFETY: the client's own path.
    if unsafe { is_device_at(dir, path, flags) } {
        return answer(node::tell_statx(to.addr()).map(|_| 0));
    }
    next!(statx: unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint, *mut libc::statx) -> c_int,
        dir, path, flags, mask, to)
}
