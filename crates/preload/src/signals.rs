//! Calls that set what happens with a signal. What the client wants is kept by [`user::signals`], which runs the client's
//! handlers between calls of the device.
use std::{
    ffi::c_int,
    mem,
    sync::atomic::{AtomicU64, Ordering},
};

use libc::{SA_NODEFER, SA_RESETHAND, SA_RESTART, SIG_ERR, sighandler_t, sigset_t};
use user::signals::{Action, SA_RESTORER, bit, mask_changed, set};

use crate::{fail, next::next};

/// The C library keeps two signals for itself.
fn valid(signal: c_int) -> bool {
    (1..=64).contains(&signal) && signal != 32 && signal != 33
}

/// The kernel's part of a set.
fn low(set: &sigset_t) -> u64 {
    // SAFETY: a set is longer than 8 bytes, and plain data.
    unsafe { (&raw const *set).cast::<u64>().read() }
}

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    if !valid(signal) {
        return fail(libc::EINVAL);
    }
    // SAFETY: null or the client's structure.
    let new = unsafe { new.as_ref() }.map(|new| Action {
        handler: new.sa_sigaction,
        flags: new.sa_flags as u32 as u64,
        restorer: 0,
        mask: low(&new.sa_mask),
    });
    let before = match change(signal, new) {
        Ok(before) => before,
        Err(errno) => return fail(errno),
    };
    if !old.is_null() {
        // SAFETY: the client's structure; all zeroes are valid.
        unsafe {
            let mut was: libc::sigaction = mem::zeroed();
            was.sa_sigaction = before.handler;
            was.sa_flags = (before.flags & !SA_RESTORER) as c_int;
            (&raw mut was.sa_mask).cast::<u64>().write(before.mask);
            old.write(was);
        }
    }
    0
}

/// `rt_sigaction` for a client that leaves the restorer to us, as one of the C library does.
fn change(signal: c_int, new: Option<Action>) -> Result<Action, c_int> {
    set(signal, new.map(Action::returning).as_ref()).map_err(|error| error.0)
}

/// Signals of which `siginterrupt` has said that they interrupt calls.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// Installs a handler; the one before, or SIG_ERR.
fn install(signal: c_int, handler: sighandler_t, flags: c_int, mask: u64) -> sighandler_t {
    if !valid(signal) || handler == SIG_ERR {
        fail(libc::EINVAL);
        return SIG_ERR;
    }
    match change(signal, Some(Action { handler, flags: flags as u32 as u64, restorer: 0, mask })) {
        Ok(before) => before.handler,
        Err(errno) => {
            fail(errno);
            SIG_ERR
        }
    }
}

macro_rules! of_bsd {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(signal: c_int, handler: sighandler_t) -> sighandler_t {
            let mask = if valid(signal) { bit(signal) } else { 0 };
            let restart = if INTERRUPTS.load(Ordering::Relaxed) & mask == 0 { SA_RESTART } else { 0 };
            install(signal, handler, restart, mask)
        }
    )*};
}
of_bsd!(signal bsd_signal ssignal);

macro_rules! of_system_v {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(signal: c_int, handler: sighandler_t) -> sighandler_t {
            install(signal, handler, SA_RESETHAND | SA_NODEFER, 0)
        }
    )*};
}
of_system_v!(sysv_signal __sysv_signal);

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siginterrupt(signal: c_int, interrupts: c_int) -> c_int {
    if !valid(signal) {
        return fail(libc::EINVAL);
    }
    let restart = SA_RESTART as u64;
    let changed = change(signal, None).and_then(|mut action| {
        if interrupts != 0 {
            INTERRUPTS.fetch_or(bit(signal), Ordering::Relaxed);
            action.flags &= !restart;
        } else {
            INTERRUPTS.fetch_and(!bit(signal), Ordering::Relaxed);
            action.flags |= restart;
        }
        change(signal, Some(action))
    });
    match changed {
        Ok(_) => 0,
        Err(errno) => fail(errno),
    }
}

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigignore(signal: c_int) -> c_int {
    if install(signal, libc::SIG_IGN, 0, 0) == SIG_ERR { -1 } else { 0 }
}

/// `sigset`'s disposition that means: blocked.
const SIG_HOLD: sighandler_t = 2;

/// The C library's function of this name.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigset(signal: c_int, disposition: sighandler_t) -> sighandler_t {
    if !valid(signal) || disposition == SIG_ERR {
        fail(libc::EINVAL);
        return SIG_ERR;
    }
    let hold = disposition == SIG_HOLD;
    let how = if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    let before = match if hold { change(signal, None) } else { change(signal, Some(plain(disposition))) } {
        Ok(before) => before.handler,
        Err(errno) => {
            fail(errno);
            return SIG_ERR;
        }
    };
    // SAFETY: the sets are valid; all zeroes are the empty set.
    let was_blocked = unsafe {
        let (mut change, mut old): (sigset_t, sigset_t) = (mem::zeroed(), mem::zeroed());
        libc::sigaddset(&mut change, signal);
        sigprocmask(how, &change, &mut old);
        libc::sigismember(&old, signal) == 1
    };
    if was_blocked { SIG_HOLD } else { before }
}

fn plain(handler: sighandler_t) -> Action {
    Action { handler, flags: 0, restorer: 0, mask: 0 }
}

macro_rules! masks {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(how: c_int, set: *const sigset_t, old: *mut sigset_t) -> c_int {
            if !set.is_null() {
                mask_changed();
            }
            next!($name: unsafe extern "C" fn(c_int, *const sigset_t, *mut sigset_t) -> c_int, how, set, old)
        }
    )*};
}
masks!(sigprocmask pthread_sigmask);

macro_rules! old_masks {
    ($($name:ident)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(arg: c_int) -> c_int {
            mask_changed();
            next!($name: unsafe extern "C" fn(c_int) -> c_int, arg)
        }
    )*};
}
old_masks!(sighold sigblock sigsetmask);

/// The kernel's `rt_sigaction`, for `syscall`.
///
/// # Safety
/// The structures are null or the client's.
pub(crate) unsafe fn raw_action(signal: usize, new: usize, old: usize, size: usize) -> Result<usize, c_int> {
    if size != size_of::<u64>() {
        return Err(libc::EINVAL);
    }
    let (new, old) = (new as *const Action, old as *mut Action);
    // SAFETY: as the caller promises.
    unsafe {
        let before = set(signal as c_int, new.as_ref()).map_err(|error| error.0)?;
        if !old.is_null() {
            old.write(before);
        }
    }
    Ok(0)
}
