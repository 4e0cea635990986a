//! /dev/kvm as a client of `rekvm exec` finds it, whichever way the client's calls come to us: by the names of the C library's
//! functions (`preload`) or by the numbers of system calls (`dispatch`).
//!
//! [`node`] is what its path means before it is opened; [`open`] opens it, and tells the user once who serves;
//! [`descriptors`] is what calls on descriptors mean, [`statistics`] what `rekvm stat` is told, and [`wishes`] what the user has asked
//! for.
pub mod descriptors;
pub mod node;
pub mod statistics;
pub mod wishes;

pub use wishes::Wishes;

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use user::{cpuid, device, signals, sys};

static WISHES: OnceLock<Wishes> = OnceLock::new();

/// Says what is wanted, once, before the client can open anything.
pub fn wish(wishes: Wishes) {
    let _ = WISHES.set(wishes);
}

/// Does what is to be done before the client runs, on its first thread.
pub fn prepare() {
    // Without memory for it, opening the device says so.
    let _ = device::watch();
    let wanted = WISHES.get().is_some_and(|wishes| wishes.cpuid);
    if wanted && cpuid::show_virtualization().is_err() {
        // The client goes on, and says by itself what it misses.
        let line = b"rekvm: CPUID cannot be answered here: the client sees the processor's own\n";
        let _ = StandardError.write_all(line);
    }
}

/// `open` of /dev/kvm with the flags `flags`: a descriptor, or the error number.
pub fn open(flags: i32) -> Result<i32, i32> {
    static INTRODUCED: AtomicBool = AtomicBool::new(false);
    let wishes = WISHES.get().copied().unwrap_or_default();
    if !INTRODUCED.swap(true, Ordering::Relaxed) {
        introduce(&wishes);
    }
    signals::take_over().map_err(|error| error.0)?;
    let fd = device::open_with(wishes.options).map_err(|error| error.0)?;
    statistics::start(&format!("the software CPU{}, a client of rekvm exec", wishes.options));
    if flags & libc::O_CLOEXEC == 0 {
        // SAFETY: our own new descriptor.
        let _ = unsafe { sys::call(libc::SYS_fcntl, [fd as usize, libc::F_SETFD as usize, 0, 0, 0, 0]) };
    }
    Ok(fd)
}

/// Opens the log, and tells the user who serves the client.
fn introduce(wishes: &Wishes) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("REKVM_LOG").unwrap_or_else(|_| "warn".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| StandardError).with_ansi(false);
    // A client with a subscriber of its own keeps it.
    let _ = log.without_time().with_target(false).try_init();
    if !wishes.quiet {
        // A client without standard error does not need the sentence.
        let (process, options) = (std::process::id(), wishes.options);
        let line = format!("rekvm: /dev/kvm is served by the software CPU in process {process}{options}\n");
        let _ = StandardError.write_all(line.as_bytes());
    }
}

/// Standard error without the standard library's lock, which in a child of fork might be held by a thread that is not there.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let args = [libc::STDERR_FILENO as usize, bytes.as_ptr().addr(), bytes.len(), 0, 0, 0];
        // SAFETY: the bytes are as many as told.
        unsafe { sys::call(libc::SYS_write, args) }.map_err(|error| io::Error::from_raw_os_error(error.0))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
