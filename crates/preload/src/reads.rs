//! `read` and `pread` of statistics, with what the C library's headers make of them where they know the buffer's size.
use std::ffi::{c_int, c_void};

use libc::{off_t, size_t, ssize_t};
use serve::descriptors;
use user::device;

use crate::{fail, next::next};

/// Such a call's answer for a descriptor of ours.
fn read_ours(fd: c_int, to: *mut c_void, len: size_t, offset: Option<off_t>) -> ssize_t {
    match descriptors::read(fd, to.addr(), len, offset) {
        Ok(len) => len as ssize_t,
        Err(errno) => fail(errno) as ssize_t,
    }
}

macro_rules! reads {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int, to: *mut c_void, len: size_t) -> ssize_t {
            if device::owns(fd) {
                return read_ours(fd, to, len, None);
            }
            next!($name: unsafe extern "C" fn(c_int, *mut c_void, size_t) -> ssize_t, fd, to, len)
        }
    )*};
}
reads!(read __read);

/// The C library's function of this name, which ends the program if `room` is less than `len`.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __read_chk(fd: c_int, to: *mut c_void, len: size_t, room: size_t) -> ssize_t {
    if device::owns(fd) && len <= room {
        return read_ours(fd, to, len, None);
    }
    next!(__read_chk: unsafe extern "C" fn(c_int, *mut c_void, size_t, size_t) -> ssize_t, fd, to, len, room)
}

macro_rules! preads {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int, to: *mut c_void, len: size_t, offset: off_t) -> ssize_t {
            if device::owns(fd) {
                return read_ours(fd, to, len, Some(offset));
            }
            next!($name: unsafe extern "C" fn(c_int, *mut c_void, size_t, off_t) -> ssize_t, fd, to, len, offset)
        }
    )*};
}
preads!(pread pread64);

macro_rules! checked_preads {
    ($($name:ident)*) => {$(
        /// The C library's function of this name, which ends the program if `room` is less than `len`.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            fd: c_int,
            to: *mut c_void,
            len: size_t,
            offset: off_t,
            room: size_t,
        ) -> ssize_t {
            if device::owns(fd) && len <= room {
                return read_ours(fd, to, len, Some(offset));
            }
            next!($name: unsafe extern "C" fn(c_int, *mut c_void, size_t, off_t, size_t) -> ssize_t,
                fd, to, len, offset, room)
        }
    )*};
}
checked_preads!(__pread_chk __pread64_chk);
