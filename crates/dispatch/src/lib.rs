//! /dev/kvm inside a client that has no program loader, so that nothing can be put in front of its C library: one that
//! is linked statically, or makes system calls by itself.
//!
//! The client is loaded into this process, as the kernel's exec would load it, beside this program and its C library
//! (`program`). Syscall user dispatch (Linux 5.11, `Documentation/admin-guide/syscall-user-dispatch.rst`) has the kernel
//! send SIGSYS for each system call that the client makes; the handler (`trap`) carries it out: with the kernel, or, where it
//! concerns /dev/kvm, with [`user::device`].
//!
//! Two C libraries share each thread. The client's believes that the thread is its own, so the FS register points at
//! its variables; ours needs others when it works for the thread. So a client's thread borrows FS and stack of a thread of
//! ours that sleeps (`world`). What runs while FS is the client's (the handler's first and last steps) touches
//! no variable of a thread, no allocator and no lock of a C library: such functions say "bare" in their description.

mod brk;
mod calls;
mod clone;
mod files;
mod program;
mod slot;
mod trap;
mod world;

pub use program::LoadError;

use std::{ffi::CString, path::PathBuf};

/// A client and how it is served.
#[derive(Debug)]
pub struct Client {
    /// Its file, by a path from the root.
    pub path: PathBuf,
    /// What it is called with, its own name first.
    pub arguments: Vec<CString>,
    /// How its child programs are started instead of by themselves: the words that come before the program and its
    /// arguments. None: they are not served.
    pub children: Option<Vec<CString>>,
}

/// Becomes the client; returns only if that fails.
///
/// # Errors
/// [`LoadError`] if it cannot be loaded, or the kernel lacks what is needed.
pub fn run(client: &Client) -> Result<std::convert::Infallible, LoadError> {
    let image = program::load(&client.path)?;
    let stack = program::stack(&image, client)?;
    files::prepare(client)?;
    world::prepare()?;
    trap::install()?;
    // SAFETY: the program is loaded and its stack made as the System V ABI has it; nothing here is needed any more.
    unsafe { trap::enter(image.entry, stack) }
}
