//! Eventfds of the client. A watch is an entry in the eventfd's wait queue, called with that queue's lock held.
use alloc::boxed::Box;
use core::ffi::c_void;

use platform::{Atomic, EventCallback, EventFd, EventFdError, MaySleep, OutOfMemory, fallible::try_box};

use crate::{
    errno,
    glue::{self, Data, Opaque},
    heap::Raw,
};

/// An eventfd, kept open.
pub struct KernelEventFd(File);

/// A reference to the kernel's file.
struct File(*mut Opaque);

// SAFETY: files are counted and shared between threads.
unsafe impl Send for File {}
// SAFETY: as above.
unsafe impl Sync for File {}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the reference that `get` has taken.
        unsafe { glue::rekvm_eventfd_put(self.0) };
    }
}

impl EventFd for KernelEventFd {
    type Watch<C: EventCallback> = Watch<C>;

    fn get(fd: i32, _cx: &MaySleep) -> Result<Self, EventFdError> {
        let file = glue::rekvm_eventfd_get(fd);
        match errno::of_pointer(file) {
            None => Ok(Self(File(file))),
            Some(errno::EBADF) => Err(EventFdError::BadDescriptor),
            Some(errno::ENOMEM) => Err(EventFdError::OutOfMemory),
            Some(_) => Err(EventFdError::NotAnEventFd),
        }
    }

    fn same(&self, other: &Self) -> bool {
        self.0.0 == other.0.0
    }

    fn signal(&self) {
        // SAFETY: the file is open, and an eventfd's.
        unsafe { glue::rekvm_eventfd_signal(self.0.0) };
    }

    fn watch<C: EventCallback>(&self, callback: C, _cx: &MaySleep) -> Result<Watch<C>, OutOfMemory> {
        let raw = Raw::new(glue::rekvm_watch_size)?;
        let callback = try_box(callback)?;
        let data = (&raw const *callback).cast_mut().cast::<c_void>();
        // SAFETY: the room is as large as a watch, the file is an eventfd's, and the callback stays until the watch ends.
        if unsafe { glue::rekvm_watch_init(raw.at(), self.0.0, signalled::<C>, data) } != 0 {
            return Err(OutOfMemory);
        }
        // SAFETY: initialized above; begun once, and again only after it has ended.
        unsafe {
            while glue::rekvm_watch_begin(raw.at(), self.0.0) {
                glue::rekvm_watch_end(raw.at());
                callback.signalled(&Atomic::at_entry());
            }
        }
        Ok(Watch { raw, _callback: callback })
    }
}

/// # Safety
/// `data` is the callback of a watch that has not ended.
unsafe extern "C" fn signalled<C: EventCallback>(data: Data) {
    // SAFETY: as the caller promises; callbacks are shared.
    unsafe { &*data.cast::<C>() }.signalled(&Atomic::at_entry());
}

/// While it lives, an eventfd is watched.
pub struct Watch<C> {
    raw: Raw,
    /// At an address that the kernel knows.
    _callback: Box<C>,
}

impl<C> Drop for Watch<C> {
    fn drop(&mut self) {
        // SAFETY: begun by `watch`; no callback runs when this returns. The watch has a reference to the eventfd of its own.
        unsafe {
            glue::rekvm_watch_end(self.raw.at());
            glue::rekvm_watch_destroy(self.raw.at());
        }
    }
}
