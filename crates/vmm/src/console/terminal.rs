//! Raw mode, and the way back from it.
//!
//! The terminal's settings are kept in a static so that they can be put back
//! from wherever the program ends: the guard's drop, the panic hook, or a
//! handler for signals that kill (which may only do what is safe there).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

const STDIN: RawFd = libc::STDIN_FILENO;

static SAVED: OnceLock<libc::termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Puts the terminal's settings back if they were changed. Safe in a signal handler.
pub fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
    {
        // SAFETY: the structure is valid; tcsetattr is async-signal-safe.
        unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, saved) };
    }
}

/// Is standard input a terminal that this process may read and change now?
pub fn is_foreground_terminal() -> bool {
    // SAFETY: no pointers are involved. In the background, reading or changing the
    // terminal would stop the process.
    unsafe { libc::isatty(STDIN) == 1 && libc::tcgetpgrp(STDIN) == libc::getpgrp() }
}

/// A terminal in raw mode, until dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches standard input's terminal to raw mode: every key goes to the guest,
    /// Ctrl-C too. Output processing stays on, so that messages still start lines.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn enable() -> io::Result<Self> {
        let mut now = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the structure is written before it is read.
        let now = unsafe {
            if libc::tcgetattr(STDIN, now.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            now.assume_init()
        };
        let _ = SAVED.set(now);
        let mut raw = now;
        // SAFETY: the structure is valid.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        raw.c_oflag = now.c_oflag;
        RAW.store(true, Ordering::SeqCst);
        // Should this process be in the background when it ends, the terminal can still be put right.
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
        // SAFETY: the structure is valid.
        if unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, &raw const raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Signals by which a program dies of its own errors.
const FATAL: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

static PREVIOUS: [OnceLock<libc::sigaction>; FATAL.len()] = [const { OnceLock::new() }; FATAL.len()];

/// Restores the terminal, then hands the signal on to whoever had it before: the
/// handler returns and the same fault happens again under the old action. A signal that
/// another process sent does not happen again by itself and kills at once.
extern "C" fn on_fatal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    restore();
    // SAFETY: the kernel passes a valid structure.
    let sent = unsafe { (*info).si_code } <= 0;
    for (number, previous) in FATAL.iter().zip(&PREVIOUS) {
        if *number == signal
            && let Some(previous) = previous.get()
        {
            // SAFETY: the action was the signal's before; sigaction, signal and raise are
            // async-signal-safe. The raised signal is delivered when this handler returns.
            unsafe {
                libc::sigaction(signal, previous, std::ptr::null_mut());
                if sent {
                    libc::signal(signal, libc::SIG_DFL);
                    libc::raise(signal);
                }
            }
        }
    }
}

/// Makes deadly signals and panics leave the terminal usable. To be called once, before
/// anything else that handles such signals is set up: later handlers are then asked first
/// and hand on what is not theirs.
pub fn guard_fatal_signals() {
    for (number, previous) in FATAL.iter().zip(&PREVIOUS) {
        if previous.get().is_some() {
            continue;
        }
        let mut old = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: the structures are valid; the handler does only what is safe in one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fatal as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
            if libc::sigaction(*number, &raw const action, old.as_mut_ptr()) == 0 {
                let _ = previous.set(old.assume_init());
            }
        }
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        hook(info);
    }));
}
