//! What the client wants done with each signal, and our handlers in front of it.
//!
//! A handler of the client's must not run in the middle of a call of the device: the thread may hold locks, and the
//! kernel's KVM lets handlers run when a call is over. So the kernel knows our handler where the client has one, the
//! client's own disposition is kept here, and [`set`] is `rt_sigaction` for whoever can see the client's calls.
use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

use hv::Errno;
use libc::{SA_NOCLDSTOP, SA_NOCLDWAIT, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_SIGINFO};
use libc::{SIG_DFL, SIG_IGN, c_int, c_void, siginfo_t};

use super::{FAULTS, NEVER_TAKEN, bit, blocked::block_everything, on_signal};
use crate::{fault, sys};

/// The kernel's flag that a restorer is given, which the C library does not show.
pub const SA_RESTORER: u64 = 0x0400_0000;

/// Flags of the client's that the kernel is to follow; SA_RESETHAND is followed here.
const KEPT: u64 = (SA_ONSTACK | SA_NODEFER | SA_RESTART | SA_NOCLDSTOP | SA_NOCLDWAIT) as u64;

/// A disposition, in the kernel's own format.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// SIG_DFL, SIG_IGN or a function's address.
    pub handler: usize,
    /// `SA_...`.
    pub flags: u64,
    /// What the handler returns to.
    pub restorer: usize,
    /// Signals that are blocked meanwhile: bit n - 1 for signal n.
    pub mask: u64,
}

impl Action {
    /// The same with a return from the handler by code of ours.
    #[must_use]
    pub fn returning(mut self) -> Self {
        (self.flags, self.restorer) = (self.flags | SA_RESTORER, sys::restorer());
        self
    }

    fn is_handler(&self) -> bool {
        self.handler != SIG_DFL && self.handler != SIG_IGN
    }
}

/// The client's disposition of one signal. Read by handlers, so without a lock: the sequence is odd during a change.
struct Slot {
    sequence: AtomicU32,
    handler: AtomicUsize,
    flags: AtomicU64,
    restorer: AtomicUsize,
    mask: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self {
            sequence: AtomicU32::new(0),
            handler: AtomicUsize::new(SIG_DFL),
            flags: AtomicU64::new(0),
            restorer: AtomicUsize::new(0),
            mask: AtomicU64::new(0),
        }
    }

    fn read(&self) -> Action {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let action = Action {
                handler: self.handler.load(Ordering::Relaxed),
                flags: self.flags.load(Ordering::Relaxed),
                restorer: self.restorer.load(Ordering::Relaxed),
                mask: self.mask.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            // A writer has its signals blocked, so it is never this thread that is waited for.
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return action;
            }
            std::hint::spin_loop();
        }
    }

    /// Only under the lock.
    fn write(&self, action: &Action) {
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::Release);
        self.handler.store(action.handler, Ordering::Relaxed);
        self.flags.store(action.flags, Ordering::Relaxed);
        self.restorer.store(action.restorer, Ordering::Relaxed);
        self.mask.store(action.mask, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::AcqRel);
    }
}

static SLOTS: [Slot; 65] = [const { Slot::new() }; 65];
/// Signals whose disposition is kept here; of all others the kernel knows best.
static KEPT_HERE: AtomicU64 = AtomicU64::new(0);
/// Signals for which our handler stays whatever the client wants.
static ALWAYS_OURS: AtomicU64 = AtomicU64::new(0);
/// The process whose dispositions these are: a child of vfork shares our memory, not our handlers.
static OWNER: AtomicI32 = AtomicI32::new(0);
static LOCK: Mutex<()> = Mutex::new(());

/// No disposition changes while this lives, not even over a fork.
pub(crate) fn lock() -> MutexGuard<'static, ()> {
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The dispositions are the calling process's.
pub(crate) fn own() {
    OWNER.store(sys::process_id(), Ordering::Relaxed);
}

fn slot(signal: c_int) -> Option<&'static Slot> {
    usize::try_from(signal).ok().filter(|n| *n > 0).and_then(|n| SLOTS.get(n))
}

/// The kernel's `rt_sigaction`.
fn kernel(signal: c_int, new: Option<&Action>) -> Result<Action, Errno> {
    let mut old = Action::default();
    let new = new.map_or(0, |new| (&raw const *new).addr());
    let args = [signal as usize, new, (&raw mut old).addr(), size_of::<u64>(), 0, 0];
    // SAFETY: both structures are valid, and a handler that is installed is the client's or ours.
    unsafe { sys::call(libc::SYS_rt_sigaction, args) }?;
    Ok(old)
}

/// What the kernel is to be told where the client wants `wanted`.
fn in_front(signal: c_int, wanted: &Action) -> Action {
    let (handler, faults) = match signal {
        libc::SIGSEGV | libc::SIGBUS => (fault::on_fault as *const () as usize, true),
        _ => (on_signal as *const () as usize, false),
    };
    // Without a handler of the client's it does not matter on which stack ours runs.
    let kept = if wanted.is_handler() { wanted.flags & KEPT } else { SA_ONSTACK as u64 };
    // A fault of ours can happen in a handler of the client's too.
    let mask = if faults { 0 } else { wanted.mask } & !FAULTS;
    Action { handler, flags: kept | SA_SIGINFO as u64, restorer: 0, mask }.returning()
}

/// Puts our handler in front of the present disposition of `signal`, to stay there.
pub(crate) fn put_in_front(signal: c_int) -> Result<(), Errno> {
    let slot = slot(signal).ok_or(Errno::EINVAL)?;
    let _blocked = block_everything();
    let _lock = lock();
    own();
    ALWAYS_OURS.fetch_or(bit(signal), Ordering::AcqRel);
    keep(signal, slot)?;
    kernel(signal, Some(&in_front(signal, &slot.read()))).map(drop)
}

/// Notes the present disposition, if it is the kernel that knows it. Under the lock.
fn keep(signal: c_int, slot: &Slot) -> Result<(), Errno> {
    if KEPT_HERE.load(Ordering::Acquire) & bit(signal) == 0 {
        slot.write(&kernel(signal, None)?);
        KEPT_HERE.fetch_or(bit(signal), Ordering::AcqRel);
    }
    Ok(())
}

/// From now on the handlers that the client has run between calls of the device, never inside one. For whoever calls
/// [`set`] with every change that the client wants.
pub fn take_over() -> Result<(), Errno> {
    static DONE: AtomicU32 = AtomicU32::new(0);
    let _blocked = block_everything();
    let _lock = lock();
    own();
    if DONE.swap(1, Ordering::AcqRel) != 0 {
        return Ok(());
    }
    for signal in 1..=64 {
        let Some(slot) = slot(signal).filter(|_| NEVER_TAKEN & bit(signal) == 0) else { continue };
        keep(signal, slot)?;
        let wanted = slot.read();
        if wanted.is_handler() {
            kernel(signal, Some(&in_front(signal, &wanted)))?;
        }
    }
    Ok(())
}

/// `rt_sigaction`: makes `new` the disposition of `signal`, if given, and returns the one before.
/// Async-signal-safe.
pub fn set(signal: c_int, new: Option<&Action>) -> Result<Action, Errno> {
    let kept = slot(signal).filter(|_| KEPT_HERE.load(Ordering::Acquire) & bit(signal) != 0);
    let Some(slot) = kept else { return kernel(signal, new) };
    let Some(new) = new else { return Ok(slot.read()) };
    let _blocked = block_everything();
    if OWNER.load(Ordering::Relaxed) != sys::process_id() {
        // A child that shares our memory: what it wants is for itself.
        let old = kernel(signal, Some(new))?;
        return Ok(if old.restorer == sys::restorer() { slot.read() } else { old });
    }
    let _lock = lock();
    let old = slot.read();
    slot.write(new);
    let ours = new.is_handler() || ALWAYS_OURS.load(Ordering::Acquire) & bit(signal) != 0;
    kernel(signal, Some(&if ours { in_front(signal, new) } else { *new }))?;
    Ok(old)
}

/// Whether a signal would be discarded when it is delivered.
pub(super) fn ignored(signal: c_int) -> bool {
    let by_default = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT].contains(&signal);
    let handler = set(signal, None).map_or(SIG_DFL, |action| action.handler);
    handler == SIG_IGN || (handler == SIG_DFL && by_default)
}

/// Does what the client's disposition says. Async-signal-safe; touches no variable of the thread.
pub(crate) fn carry_out(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(slot) = slot(signal) else { return };
    let wanted = slot.read();
    match wanted.handler {
        SIG_DFL => default(signal, info),
        // The kernel does not let a fault be ignored, but a signal that somebody sent.
        SIG_IGN if !from_kernel(info) => {}
        SIG_IGN => default(signal, info),
        handler => {
            if wanted.flags & SA_RESETHAND as u64 != 0 {
                let _ = set(signal, Some(&Action::default()));
            }
            if wanted.flags & SA_SIGINFO as u64 != 0 {
                // SAFETY: the client installed this address as a handler of three arguments.
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = unsafe { mem::transmute(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: the client installed this address as a handler of one argument.
                let handler: extern "C" fn(c_int) = unsafe { mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}

/// Whether the signal is a fault of this thread rather than sent by a process.
pub(crate) fn from_kernel(info: *const siginfo_t) -> bool {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    unsafe { (*info).si_code > 0 }
}

/// The default action. A fault happens again when the handler returns, and then ends the process with the right core;
/// a signal that was sent has to be sent again.
fn default(signal: c_int, info: *const siginfo_t) {
    let _ = kernel(signal, Some(&Action::default()));
    if !from_kernel(info) {
        let args = [sys::process_id() as usize, sys::thread_id() as usize, signal as usize, 0, 0, 0];
        // SAFETY: sends a signal to this thread.
        unsafe { sys::raw(libc::SYS_tgkill, args) };
    }
}
