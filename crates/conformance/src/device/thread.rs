//! Threads inside KVM_RUN, and the signals that end it.
use std::{
    mem, ptr,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::Sys;

/// A thread, as the target of signals: its `pthread_t`, which is a pointer in some C libraries.
#[derive(Clone, Copy, Debug)]
pub struct Thread(usize);

impl Thread {
    /// The calling thread.
    pub fn current() -> Self {
        // SAFETY: asks for this thread's own name.
        Self(unsafe { libc::pthread_self() } as usize)
    }

    /// `pthread_kill`. The thread has not been joined: cases send signals from within the scope that joins it.
    pub fn signal(self, signal: i32) {
        // SAFETY: a thread that has not been joined.
        unsafe { libc::pthread_kill(self.0 as libc::pthread_t, signal) };
    }

    /// Has the thread run on this processor, and on no other. It has not been joined, as with [`Self::signal`].
    ///
    /// # Panics
    /// If the machine does not let it.
    pub fn pin(self, cpu: usize) {
        // SAFETY: a set is plain data; `cpu` comes from one; a thread that has not been joined.
        let failed = unsafe {
            let mut set: libc::cpu_set_t = mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::pthread_setaffinity_np(self.0 as libc::pthread_t, size_of::<libc::cpu_set_t>(), &set)
        };
        assert_eq!(failed, 0, "the thread cannot go to processor {cpu}");
    }
}

/// Processors of the machine that this program may run on, at least one.
pub fn processors() -> Vec<usize> {
    // SAFETY: a set is plain data, and this thread's own is asked for.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        set
    };
    // SAFETY: numbers that a set has.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Installs a handler for `signal` that does nothing but end KVM_RUN.
pub fn install(sys: &dyn Sys, signal: i32) {
    // SAFETY: a handler that is async-signal-safe; without SA_RESTART, so that calls end with EINTR.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = sys.on_signal() as *const () as usize;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

/// Calls of the handler below.
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// What it calls for the device.
static NOTE: OnceLock<extern "C" fn(libc::c_int)> = OnceLock::new();

extern "C" fn count(signal: libc::c_int) {
    CALLS.fetch_add(1, Ordering::SeqCst);
    if let Some(note) = NOTE.get() {
        note(signal);
    }
}

/// Installs a handler for one `signal` that ends KVM_RUN and counts its calls.
pub fn install_counting(sys: &dyn Sys, signal: i32) -> &'static AtomicUsize {
    NOTE.get_or_init(|| sys.on_signal());
    // SAFETY: a handler that is async-signal-safe; without SA_RESTART, so that calls end with EINTR.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
    &CALLS
}

fn set_of(signal: i32) -> libc::sigset_t {
    // SAFETY: a set is plain data, made empty before use.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        set
    }
}

/// Blocks a signal in the calling thread (and in those that it starts later).
pub fn block(signal: i32) {
    // SAFETY: a valid set.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set_of(signal), ptr::null_mut()) };
}

/// Unblocks a signal in the calling thread.
pub fn unblock(signal: i32) {
    // SAFETY: a valid set.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set_of(signal), ptr::null_mut()) };
}

/// `sigtimedwait` without waiting: whether `signal`, which is blocked, was pending; it is no longer.
pub fn take_pending(signal: i32) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid set and time.
    unsafe { libc::sigtimedwait(&set_of(signal), ptr::null_mut(), &at_once) == signal }
}

/// What a client uses to hear of a signal that it blocks.
#[derive(Clone, Copy, Debug)]
pub enum Hears {
    /// `read` of a signalfd, without waiting.
    SignalFd,
    /// `sigwait`.
    SigWait,
    /// The handler, let in by `ppoll` for as long as that lasts.
    Ppoll,
}

impl Hears {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SignalFd, Self::SigWait, Self::Ppoll];

    /// Whether `signal`, which is pending and blocked, is heard; it is no longer pending then. By `Ppoll` nothing tells that
    /// the handler has run but its own count.
    pub fn take(self, signal: i32) -> bool {
        let set = set_of(signal);
        // SAFETY: valid sets, times and buffers; the descriptor is new and closed here.
        unsafe {
            match self {
                Self::SignalFd => {
                    let fd = libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
                    let mut info: libc::signalfd_siginfo = mem::zeroed();
                    let size = size_of::<libc::signalfd_siginfo>();
                    let len = libc::read(fd, (&raw mut info).cast(), size);
                    libc::close(fd);
                    len == size as isize && info.ssi_signo == signal as u32
                }
                Self::SigWait => {
                    let mut got = 0;
                    libc::sigwait(&set, &mut got) == 0 && got == signal
                }
                Self::Ppoll => {
                    let mut open: libc::sigset_t = mem::zeroed();
                    libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut open);
                    libc::sigdelset(&mut open, signal);
                    let long = libc::timespec { tv_sec: 10, tv_nsec: 0 };
                    libc::ppoll(ptr::null_mut(), 0, &long, &open) == -1
                        && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
                }
            }
        }
    }
}
