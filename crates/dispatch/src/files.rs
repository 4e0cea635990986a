//! Calls that take a path: /dev/kvm, and the link by which a program finds itself.
use std::{
    ffi::{CString, c_char},
    io,
    os::unix::ffi::OsStrExt,
    sync::OnceLock,
};

use platform::{Hva, Memory};
use serve::node;
use user::{ClientMemory, sys};

use crate::{Client, LoadError};

/// The client's file, and the words before its child programs.
struct Prepared {
    path: CString,
    children: Option<Vec<CString>>,
}

static PREPARED: OnceLock<Prepared> = OnceLock::new();

/// Keeps what is asked for later.
pub(crate) fn prepare(client: &Client) -> Result<(), LoadError> {
    let path = CString::new(client.path.as_os_str().as_bytes());
    let path = path.map_err(|error| LoadError::Prepare(io::Error::other(error)))?;
    let _ = PREPARED.set(Prepared { path, children: client.children.clone() });
    Ok(())
}

/// The links by which a program finds its own file.
const MYSELF: [&[u8]; 2] = [b"/proc/self/exe", b"/proc/thread-self/exe"];

/// A path as far as it matters here.
pub(crate) struct Path {
    bytes: [u8; node::LONGEST],
    len: usize,
}

impl Path {
    /// Copies it from the client; empty if it is longer or cannot be read: then it is the kernel's business. Bare.
    pub(crate) fn copy(at: usize) -> Self {
        let mut path = Self { bytes: [0; node::LONGEST], len: 0 };
        for (n, byte) in path.bytes.iter_mut().enumerate() {
            match ClientMemory::load::<u8>(Hva(at as u64 + n as u64)) {
                Ok(0) => {
                    path.len = n;
                    break;
                }
                Ok(value) => *byte = value,
                Err(_) => break,
            }
        }
        path
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(b"")
    }

    /// Bare.
    pub(crate) fn is_device(&self, dir: usize) -> bool {
        node::is_device(dir as i32, self.bytes())
    }

    /// Bare.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The client's own file, if the path is the link to it: what the kernel has there is this program. Bare.
    pub(crate) fn myself(&self) -> Option<*const c_char> {
        MYSELF.contains(&self.bytes()).then(|| PREPARED.get().map(|prepared| prepared.path.as_ptr())).flatten()
    }
}

/// `readlink` of the client's own file. Bare.
pub(crate) fn read_myself(to: usize, len: usize) -> Result<usize, i32> {
    let path = PREPARED.get().map_or(&b""[..], |prepared| prepared.path.as_bytes());
    let part = path.get(..len).unwrap_or(path);
    ClientMemory::copy_to(Hva(to as u64), part).map_err(|_| libc::EFAULT)?;
    Ok(part.len())
}

/// Arguments of a child program that we can put ours in front of.
const WORDS: usize = 1024;

/// `execve`: returns only if it fails. Bare.
pub(crate) fn execute(path: usize, arguments: usize, environment: usize) -> isize {
    let program = Path::copy(path).myself().map_or(path, <*const c_char>::addr);
    let kernel = |path: usize, arguments: usize| {
        // SAFETY: the client's own call, or one with words of ours before its own.
        unsafe { sys::raw(libc::SYS_execve, [path, arguments, environment, 0, 0, 0]) }
    };
    let Some(before) = PREPARED.get().and_then(|prepared| prepared.children.as_ref()) else {
        return kernel(program, arguments);
    };
    // SAFETY: the client's path, of which the kernel only reads.
    let there = unsafe { sys::raw(libc::SYS_access, [program, libc::X_OK as usize, 0, 0, 0, 0]) };
    if there < 0 {
        return there;
    }
    let mut words = [0usize; WORDS];
    let mut len = 0;
    for word in before.iter().map(|word| word.as_ptr().addr()).chain([program]) {
        let Some(place) = words.get_mut(len) else { return -libc::E2BIG as isize };
        *place = word;
        len += 1;
    }
    // The client's first argument is the program's name, for which the path stands.
    for at in (arguments as u64..).step_by(8).skip(1) {
        let (Ok(word), Some(place)) = (ClientMemory::load::<u64>(Hva(at)), words.get_mut(len)) else {
            return -libc::E2BIG as isize;
        };
        *place = word as usize;
        len += 1;
        if word == 0 {
            return kernel(words[0], words.as_ptr().addr());
        }
    }
    -libc::E2BIG as isize
}
