//! Eventfds of this process.
//!
//! A copy of the descriptor keeps the eventfd open; the kernel's number for it, which is the same for all descriptors,
//! stands in /proc. One thread ([`watcher`]) sleeps on all eventfds that are watched.
mod watcher;

use std::{
    fmt::Write,
    io,
    marker::PhantomData,
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use platform::{
    Atomic, EventCallback, EventFd, EventFdError, MaySleep, OutOfMemory,
    fallible::{Shared, try_box},
};
use watcher::{Notify, Watcher};

/// An eventfd of the client.
#[derive(Debug)]
pub struct ClientEventFd {
    fd: OwnedFd,
    /// The kernel's number for it.
    id: u64,
}

impl EventFd for ClientEventFd {
    type Watch<C: EventCallback> = EventWatch<C>;

    fn get(fd: i32, _cx: &MaySleep) -> Result<Self, EventFdError> {
        let fd = duplicate(fd)?;
        let id = kernels_id(fd.as_raw_fd()).ok_or(EventFdError::NotAnEventFd)?;
        Ok(Self { fd, id })
    }

    fn same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: a plain write of 8 bytes to our own descriptor. It only fails when the count is full, and then whoever
        // reads it next learns enough.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    fn watch<C: EventCallback>(&self, callback: C, _cx: &MaySleep) -> Result<EventWatch<C>, OutOfMemory> {
        let fd = duplicate(self.fd.as_raw_fd()).map_err(|_| OutOfMemory)?;
        let callback: Box<dyn Notify> = try_box(Callback(callback))?;
        let watcher = Watcher::own()?;
        let token = watcher.add(fd, Shared::try_new(callback)?)?;
        Ok(EventWatch { watcher, token, callback: PhantomData })
    }
}

/// A callback whose type the watcher does not know.
struct Callback<C>(C);

impl<C: EventCallback> Notify for Callback<C> {
    fn notify(&self) {
        self.0.signalled(&Atomic::at_entry());
    }
}

/// While it lives, an eventfd is watched.
pub struct EventWatch<C> {
    watcher: &'static Watcher,
    token: u64,
    callback: PhantomData<fn() -> C>,
}

impl<C> std::fmt::Debug for EventWatch<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventWatch").field("token", &self.token).finish()
    }
}

impl<C> Drop for EventWatch<C> {
    fn drop(&mut self) {
        self.watcher.remove(self.token);
    }
}

fn duplicate(fd: RawFd) -> Result<OwnedFd, EventFdError> {
    // SAFETY: fcntl on any number; the new descriptor is ours.
    unsafe {
        let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
        if copy >= 0 {
            return Ok(OwnedFd::from_raw_fd(copy));
        }
    }
    Err(match io::Error::last_os_error().raw_os_error() {
        Some(libc::EBADF) => EventFdError::BadDescriptor,
        _ => EventFdError::OutOfMemory,
    })
}

/// Text on the stack.
struct Text<const N: usize>([u8; N], usize);

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let room = self.0.get_mut(self.1..self.1 + s.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(s.as_bytes());
        self.1 += s.len();
        Ok(())
    }
}

/// What the kernel calls the eventfd behind `fd`; None for every other kind of file.
fn kernels_id(fd: RawFd) -> Option<u64> {
    let mut path = Text([0; 48], 0);
    write!(path, "/proc/self/fdinfo/{fd}\0").ok()?;
    let mut text = [0u8; 512];
    // SAFETY: the path ends with a zero, the buffer is valid for writes of its length, the descriptor is ours.
    let len = unsafe {
        let info = libc::open(path.0.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if info < 0 {
            return None;
        }
        let info = OwnedFd::from_raw_fd(info);
        libc::read(info.as_raw_fd(), text.as_mut_ptr().cast(), text.len())
    };
    let text = std::str::from_utf8(text.get(..usize::try_from(len).ok()?)?).ok()?;
    text.lines().find_map(|line| line.strip_prefix("eventfd-id:"))?.trim().parse().ok()
}

/// Takes the count of an eventfd, without ever waiting for one.
fn take(fd: RawFd) {
    let mut count = [0u8; 8];
    let part = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: mem::size_of_val(&count) };
    // SAFETY: the buffer is valid for writes of its length. Failure means that somebody else has taken the count.
    unsafe { libc::preadv2(fd, &part, 1, -1, libc::RWF_NOWAIT) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};

    const CX: MaySleep = MaySleep::at_entry();
    const SOON: Duration = Duration::from_secs(10);

    fn eventfd(flags: i32) -> OwnedFd {
        // SAFETY: a new descriptor.
        unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, flags)) }
    }

    fn get(fd: &OwnedFd) -> ClientEventFd {
        ClientEventFd::get(fd.as_raw_fd(), &CX).unwrap()
    }

    struct Tell(mpsc::SyncSender<()>);
    impl EventCallback for Tell {
        fn signalled(&self, _cx: &Atomic) {
            let _ = self.0.try_send(());
        }
    }

    #[test]
    fn an_eventfd_is_known_by_every_descriptor_and_nothing_else_is_one() {
        let (a, b) = (eventfd(0), eventfd(0));
        let copy = a.try_clone().unwrap();
        assert!(get(&a).same(&get(&copy)) && !get(&a).same(&get(&b)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(ClientEventFd::get(file.as_raw_fd(), &CX).unwrap_err(), EventFdError::NotAnEventFd);
        for bad in [-1, i32::MAX] {
            assert_eq!(ClientEventFd::get(bad, &CX).unwrap_err(), EventFdError::BadDescriptor);
        }
    }

    #[test]
    fn each_signal_is_told_until_the_watch_goes() {
        // A blocking one: the watcher must not hang in it.
        let (fd, other) = (eventfd(0), eventfd(0));
        let event = get(&fd);
        // Signalled before it is watched.
        event.signal();
        let (tx, rx) = mpsc::sync_channel(100);
        let watch = event.watch(Tell(tx), &CX).unwrap();
        rx.recv_timeout(SOON).unwrap();
        let (other_tx, other_rx) = mpsc::sync_channel(100);
        let other_watch = get(&other).watch(Tell(other_tx), &CX).unwrap();
        for _ in 0..20 {
            event.signal();
            rx.recv_timeout(SOON).unwrap();
        }
        assert!(other_rx.try_recv().is_err());
        // The count has been taken: a reader would wait.
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid element.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0);
        // The eventfd lives as long as it is watched, and no longer.
        drop(fd);
        event.signal();
        rx.recv_timeout(SOON).unwrap();
        drop(watch);
        event.signal();
        get(&other).signal();
        other_rx.recv_timeout(SOON).unwrap();
        assert!(rx.recv_timeout(Duration::from_millis(20)).is_err());
        drop(other_watch);
    }
}
