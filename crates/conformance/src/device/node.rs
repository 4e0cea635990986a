//! The device's node, by every call that takes a path: the C library's functions, and calls by number.
use std::{
    ffi::{CStr, CString, c_long},
    mem,
};

use libc::{AT_FDCWD, O_CLOEXEC, O_RDWR, syscall};

use super::{Errno, Fd, Sys};

/// `faccessat2`, which the C library's headers do not name everywhere.
const FACCESSAT2: c_long = 439;
/// `struct statx` (linux/stat.h): its size, and where mode, major and minor number are.
const STATX: (usize, usize, usize, usize) = (256, 28, 128, 132);

/// A node in a folder.
pub struct Node {
    sys: &'static dyn Sys,
    path: CString,
    folder: Fd,
    name: CString,
}

/// What a call by the name of the first value has answered.
pub type Answer<T> = (&'static str, Result<T, Errno>);

/// `struct open_how` (linux/openat2.h).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

fn check(answer: c_long) -> Result<i32, Errno> {
    if answer < 0 { Err(Errno::last()) } else { Ok(answer as i32) }
}

impl Node {
    pub(super) fn new(sys: &'static dyn Sys, path: &CStr) -> Self {
        let text = path.to_str().expect("a path that is text");
        let (folder, name) = text.rsplit_once('/').expect("a path with a folder");
        let [folder, name] = [folder, name].map(|part| CString::new(part).expect("no zero byte"));
        // SAFETY: a C string.
        let folder = check(unsafe { libc::open(folder.as_ptr(), O_CLOEXEC | libc::O_DIRECTORY) }.into());
        Self { sys, path: path.to_owned(), folder: Fd::new(sys, folder.expect("the device's folder opens")), name }
    }

    /// Opens it in every way, with O_CLOEXEC where `cloexec` says so; `creat` has no flags.
    pub fn open(&self, cloexec: bool) -> Vec<Answer<Fd>> {
        let (path, folder, name) = (self.path.as_ptr(), self.folder.raw(), self.name.as_ptr());
        let flags = O_RDWR | if cloexec { O_CLOEXEC } else { 0 };
        let how = OpenHow { flags: flags as u64, mode: 0, resolve: 0 };
        // SAFETY: C strings, and a structure as long as told.
        let mut answers = unsafe {
            vec![
                ("open", libc::open(path, flags).into()),
                ("openat, a path", libc::openat(AT_FDCWD, path, flags).into()),
                ("openat, a name in a folder", libc::openat(folder, name, flags).into()),
                ("SYS_open", syscall(libc::SYS_open, path, flags)),
                ("SYS_openat", syscall(libc::SYS_openat, folder, name, flags)),
                ("SYS_openat2", syscall(libc::SYS_openat2, folder, name, &raw const how, size_of::<OpenHow>())),
            ]
        };
        if !cloexec {
            // SAFETY: a C string. Neither makes or shortens anything, as the node is there.
            unsafe {
                answers
                    .extend([("creat", libc::creat(path, 0).into()), ("SYS_creat", syscall(libc::SYS_creat, path, 0))]);
            }
        }
        answers.into_iter().map(|(call, answer)| (call, check(answer).map(|fd| Fd::new(self.sys, fd)))).collect()
    }

    /// Whether it can be accessed, asked in every way.
    pub fn access(&self, mode: i32) -> Vec<Answer<i32>> {
        let (path, folder, name) = (self.path.as_ptr(), self.folder.raw(), self.name.as_ptr());
        // SAFETY: C strings.
        let answers = unsafe {
            [
                ("access", libc::access(path, mode).into()),
                ("faccessat", libc::faccessat(folder, name, mode, 0).into()),
                ("faccessat, effective", libc::faccessat(folder, name, mode, libc::AT_EACCESS).into()),
                ("SYS_access", syscall(libc::SYS_access, path, mode)),
                ("SYS_faccessat", syscall(libc::SYS_faccessat, folder, name, mode)),
                ("SYS_faccessat2", syscall(FACCESSAT2, folder, name, mode, 0)),
            ]
        };
        answers.map(|(call, answer)| (call, check(answer))).into()
    }

    /// What it is, with major and minor number, asked in every way, also by the descriptor `open` of it.
    pub fn kind(&self, open: &Fd) -> Vec<Answer<(u32, u32, u32)>> {
        let (path, folder, name, fd) = (self.path.as_ptr(), self.folder.raw(), self.name.as_ptr(), open.raw());
        let (nothing, empty) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: C strings, and a structure that the call fills.
        unsafe {
            vec![
                ("stat", stat(|to| libc::stat(path, to).into())),
                ("lstat", stat(|to| libc::lstat(path, to).into())),
                ("fstat", stat(|to| libc::fstat(fd, to).into())),
                ("fstatat", stat(|to| libc::fstatat(folder, name, to, 0).into())),
                ("fstatat of a descriptor", stat(|to| libc::fstatat(fd, nothing, to, empty).into())),
                ("SYS_stat", stat(|to| syscall(libc::SYS_stat, path, to))),
                ("SYS_lstat", stat(|to| syscall(libc::SYS_lstat, path, to))),
                ("SYS_fstat", stat(|to| syscall(libc::SYS_fstat, fd, to))),
                ("SYS_newfstatat", stat(|to| syscall(libc::SYS_newfstatat, folder, name, to, 0))),
                ("SYS_newfstatat of a descriptor", stat(|to| syscall(libc::SYS_newfstatat, fd, nothing, to, empty))),
                ("SYS_statx", statx(|to| syscall(libc::SYS_statx, folder, name, 0, 0x7ff, to))),
                ("SYS_statx of a descriptor", statx(|to| syscall(libc::SYS_statx, fd, nothing, empty, 0x7ff, to))),
            ]
        }
    }

    /// Asks what it is with an address where nothing is.
    pub fn kind_to_nowhere(&self) -> [Result<i32, Errno>; 2] {
        let (path, nowhere) = (self.path.as_ptr(), 8usize);
        // SAFETY: nothing is at that address.
        unsafe {
            [
                check(syscall(libc::SYS_stat, path, nowhere)),
                check(syscall(libc::SYS_statx, AT_FDCWD, path, 0, 0x7ff, nowhere)),
            ]
        }
    }
}

fn stat(call: impl FnOnce(*mut libc::stat) -> c_long) -> Result<(u32, u32, u32), Errno> {
    // SAFETY: plain data.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    check(call(&mut stat))?;
    Ok((stat.st_mode & libc::S_IFMT, libc::major(stat.st_rdev), libc::minor(stat.st_rdev)))
}

fn statx(call: impl FnOnce(*mut u64) -> c_long) -> Result<(u32, u32, u32), Errno> {
    let (size, mode, major, minor) = STATX;
    let mut words = vec![0u64; size / 8];
    check(call(words.as_mut_ptr()))?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    Ok((word(mode) & libc::S_IFMT, word(major), word(minor)))
}
