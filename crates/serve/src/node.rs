//! /dev/kvm as a name in the file system: which paths mean it, and what `stat` and `access` say of it.
//!
//! Nothing here allocates or touches a variable of the thread, so that it can be asked from anywhere.
use std::{
    ffi::{c_char, c_int},
    fmt::Write,
    mem,
};

use libc::mode_t;
use platform::{Hva, Memory};
use user::{ClientMemory, sys};

/// Where clients look for the device.
const DEVICE: [&[u8]; 2] = [b"dev", b"kvm"];

/// The number of `faccessat2`, which the C library's headers do not name everywhere.
pub const FACCESSAT2: i64 = 439;

/// Longer paths are somebody else's.
pub const LONGEST: usize = 128;

/// Major and minor number of Linux's /dev/kvm.
const NUMBER: (u32, u32) = (10, 232);
/// Everybody may read and write it.
const MODE: mode_t = libc::S_IFCHR | 0o666;

/// Whether `path`, relative to the folder `dir` if it is relative, means /dev/kvm as clients write it: links are not
/// followed.
pub fn is_device(dir: c_int, path: &[u8]) -> bool {
    if !path.ends_with(b"kvm") {
        return false;
    }
    if path.first() == Some(&b'/') {
        return parts(path).eq(DEVICE);
    }
    let mut whole = [0; LONGEST];
    let link = Link::of(dir);
    let args = [libc::AT_FDCWD as usize, link.0.as_ptr().addr(), whole.as_mut_ptr().addr(), whole.len(), 0, 0];
    // SAFETY: the name is a C string, and the buffer as long as told.
    let len = unsafe { sys::raw(libc::SYS_readlinkat, args) };
    let folder = usize::try_from(len).ok().and_then(|len| whole.get(..len));
    folder.is_some_and(|folder| parts(folder).chain(parts(path)).eq(DEVICE))
}

/// A path's parts, without doubled slashes and dots.
fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The name of the link that /proc has for a folder.
struct Link([u8; 32], usize);

impl Link {
    fn of(dir: c_int) -> Self {
        // The last byte stays zero.
        let mut link = Self([0; 32], 0);
        let _ = match dir {
            libc::AT_FDCWD => link.write_str("/proc/self/cwd"),
            fd => write!(link, "/proc/self/fd/{fd}"),
        };
        link
    }
}

impl Write for Link {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            *self.0.get_mut(self.1).filter(|_| self.1 < 31).ok_or(std::fmt::Error)? = byte;
            self.1 += 1;
        }
        Ok(())
    }
}

/// `access` of the device: 0, or the error number.
pub fn access(mode: c_int) -> Result<c_int, c_int> {
    if mode & libc::X_OK != 0 { Err(libc::EACCES) } else { Ok(0) }
}

/// Writes what `stat` says of the device to the client's memory: 0, or the error number.
pub fn tell_stat(to: usize) -> Result<usize, c_int> {
    tell(&stat(), to)
}

/// The same for `statx`.
pub fn tell_statx(to: usize) -> Result<usize, c_int> {
    tell(&statx(), to)
}

fn tell<T>(plain: &T, to: usize) -> Result<usize, c_int> {
    // SAFETY: structures of the kernel's, which leave no byte undefined.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(plain).cast::<u8>(), size_of::<T>()) };
    ClientMemory::copy_to(Hva(to as u64), bytes).map(|()| 0).map_err(|_| libc::EFAULT)
}

/// `stat` of the device.
fn stat() -> libc::stat {
    // SAFETY: plain data, for which all zeroes are valid.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    (stat.st_mode, stat.st_nlink, stat.st_blksize) = (MODE, 1, 4096);
    stat.st_rdev = libc::makedev(NUMBER.0, NUMBER.1);
    stat
}

/// `statx` of the device.
fn statx() -> libc::statx {
    // SAFETY: plain data, for which all zeroes are valid.
    let mut statx: libc::statx = unsafe { mem::zeroed() };
    statx.stx_mask = libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_NLINK;
    (statx.stx_mode, statx.stx_nlink, statx.stx_blksize) = (MODE as u16, 1, 4096);
    (statx.stx_rdev_major, statx.stx_rdev_minor) = NUMBER;
    statx
}

/// The path `path` as bytes: empty for a null pointer.
///
/// # Safety
/// `path` is null or a C string that outlives the result.
pub unsafe fn bytes<'a>(path: *const c_char) -> &'a [u8] {
    // SAFETY: as the caller promises.
    if path.is_null() { b"" } else { unsafe { std::ffi::CStr::from_ptr(path) }.to_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_the_devices_path_means_it() {
        let here = |path: &[u8]| is_device(libc::AT_FDCWD, path);
        assert!(here(b"/dev/kvm") && here(b"//dev/./kvm"));
        for path in [&b"/dev/kvm0"[..], b"/dev/kvm/", b"/tmp/dev/kvm", b"/dev/akvm", b"kvm", b"", b"/kvm", b"dev/kvm"] {
            assert!(!here(path), "{}", String::from_utf8_lossy(path));
        }
        let dev = std::fs::File::open("/dev").unwrap();
        assert!(is_device(dev.as_raw_fd(), b"kvm") && is_device(dev.as_raw_fd(), b"./kvm"));
        let root = std::fs::File::open("/").unwrap();
        assert!(is_device(root.as_raw_fd(), b"dev/kvm") && !is_device(root.as_raw_fd(), b"kvm"));
        assert!(!is_device(-1, b"kvm"));
    }

    #[test]
    fn it_is_the_character_device_of_linux() {
        let (stat, statx) = (stat(), statx());
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR);
        assert_eq!((libc::major(stat.st_rdev), libc::minor(stat.st_rdev)), (10, 232));
        assert_eq!((statx.stx_rdev_major, statx.stx_rdev_minor), (10, 232));
        assert_eq!((access(libc::R_OK | libc::W_OK), access(libc::X_OK)), (Ok(0), Err(libc::EACCES)));
    }
}
