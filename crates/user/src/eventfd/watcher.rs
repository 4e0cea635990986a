//! The thread that waits for all watched eventfds at once.
use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use platform::{OutOfMemory, fallible::Shared};

use super::take;
use crate::{per_process::PerProcess, signals::block_all};

/// What a watch does.
pub(super) trait Notify: Send + Sync {
    fn notify(&self);
}

struct Entry {
    token: u64,
    fd: OwnedFd,
    callback: Shared<Box<dyn Notify>>,
}

struct State {
    entries: Vec<Entry>,
    /// The next token; none is used twice.
    next: u64,
    /// The entry whose callback is being called.
    running: Option<u64>,
}

pub(super) struct Watcher {
    state: Mutex<State>,
    /// A callback has returned.
    returned: Condvar,
    starting: Mutex<()>,
    epoll: OnceLock<OwnedFd>,
}

static WATCHER: PerProcess<Watcher> = PerProcess::new();

impl Watcher {
    /// The one of this process.
    pub(super) fn own() -> Result<&'static Self, OutOfMemory> {
        WATCHER.get(|| {
            Ok(Self {
                state: Mutex::new(State { entries: Vec::new(), next: 0, running: None }),
                returned: Condvar::new(),
                starting: Mutex::new(()),
                epoll: OnceLock::new(),
            })
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoll descriptor. Makes it and the thread with the first watch.
    fn start(&'static self) -> io::Result<RawFd> {
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoll) = self.epoll.get() {
            return Ok(epoll.as_raw_fd());
        }
        // SAFETY: a new descriptor, which is ours.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let fd = epoll.as_raw_fd();
        // The new thread inherits the mask: signals of the client are none of its business.
        let blocked = block_all();
        thread::Builder::new().name("rekvm-eventfd".into()).spawn(move || self.run(fd))?;
        drop(blocked);
        let _ = self.epoll.set(epoll);
        Ok(fd)
    }

    /// Calls `callback` for each signal of `fd` until [`Self::remove`]. Returns the token for that.
    pub(super) fn add(&'static self, fd: OwnedFd, callback: Shared<Box<dyn Notify>>) -> Result<u64, OutOfMemory> {
        let epoll = self.start().map_err(|_| OutOfMemory)?;
        let mut state = self.lock();
        state.entries.try_reserve(1).map_err(|_| OutOfMemory)?;
        let token = state.next;
        state.next += 1;
        // Edge triggered: each write to the eventfd is one event, also when the count was not 0.
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: token };
        // SAFETY: both descriptors are open, the event is valid.
        if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) } != 0 {
            return Err(OutOfMemory);
        }
        state.entries.push(Entry { token, fd, callback });
        Ok(token)
    }

    /// Ends a watch, and waits for its callback if that is being called.
    pub(super) fn remove(&self, token: u64) {
        let Some(epoll) = self.epoll.get() else { return };
        let mut state = self.lock();
        let Some(index) = state.entries.iter().position(|entry| entry.token == token) else { return };
        let entry = state.entries.swap_remove(index);
        // Closing alone would not end it: the client's descriptors keep the eventfd open.
        // SAFETY: both descriptors are open.
        unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, entry.fd.as_raw_fd(), ptr::null_mut()) };
        state = self.returned.wait_while(state, |s| s.running == Some(token)).unwrap_or_else(PoisonError::into_inner);
        drop(state);
        // The callback may own things whose end takes locks.
        drop(entry);
    }

    fn run(&self, epoll: RawFd) {
        loop {
            // SAFETY: all-zero events are valid.
            let mut events: [libc::epoll_event; 32] = unsafe { mem::zeroed() };
            // SAFETY: the buffer holds as many events as it says.
            let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), events.len() as i32, -1) };
            if count < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                // The client has closed all numbers, ours too: there is nothing to wait for any more.
                return;
            }
            for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
                self.notify(event.u64);
            }
        }
    }

    fn notify(&self, token: u64) {
        let mut state = self.lock();
        // An event that was on its way when its watch ended finds nothing.
        let Some(entry) = state.entries.iter().find(|entry| entry.token == token) else { return };
        take(entry.fd.as_raw_fd());
        let callback = entry.callback.clone();
        state.running = Some(token);
        drop(state);
        callback.notify();
        drop(callback);
        self.lock().running = None;
        self.returned.notify_all();
    }
}
