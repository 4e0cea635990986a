//! Whether a path means /dev/kvm.
use std::ffi::{CStr, c_char, c_int};

/// Where clients look for the device.
const DEVICE: &[u8] = b"/dev/kvm";

/// Whether `path`, relative to the folder `dir` if it is relative, means /dev/kvm as clients write it: no links are
/// followed.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn is_device(dir: c_int, path: *const c_char) -> bool {
    if path.is_null() {
        return false;
    }
    // SAFETY: as the caller promises.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if !path.ends_with(b"kvm") {
        return false;
    }
    if path.first() == Some(&b'/') {
        return same(path);
    }
    // Rarely used, so rarely looked up.
    let here = if dir == libc::AT_FDCWD { c"/proc/self/cwd".to_owned() } else { link_of(dir) };
    let mut whole = [0u8; 128];
    // SAFETY: the buffer is as long as told.
    let len = unsafe { libc::readlink(here.as_ptr(), whole.as_mut_ptr().cast(), whole.len()) };
    let Some(folder) = usize::try_from(len).ok().and_then(|len| whole.get(..len)) else { return false };
    same(&[folder, b"/", path].concat())
}

fn link_of(fd: c_int) -> std::ffi::CString {
    // A number holds no zero byte.
    std::ffi::CString::new(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

/// Whether an absolute path is the device's, but for doubled slashes and dots.
fn same(path: &[u8]) -> bool {
    let parts = |path: &'static [u8]| path.split(|b| *b == b'/').filter(|part| !part.is_empty());
    let given = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
    given.eq(parts(DEVICE))
}
