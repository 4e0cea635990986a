//! Error numbers as the kernel's functions return them.
use hv::Errno;

use crate::glue::Opaque;

/// EBADF.
pub const EBADF: i32 = 9;
/// ENOMEM.
pub const ENOMEM: i32 = 12;

/// The error number that a pointer stands for: the last page of the address space.
pub fn of_pointer(pointer: *const Opaque) -> Option<i32> {
    let value = pointer as isize;
    if (-4095..0).contains(&value) { Some(-(value as i32)) } else { None }
}

/// The error of a function that returns zero or a negative error number.
pub fn check(result: i32) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(Errno(-result)) }
}
