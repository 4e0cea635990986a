//! Our own world beside the client's: each of the client's threads that needs it borrows the FS register and a stack from a
//! thread of ours that sleeps for good.
//!
//! A thread is in our world while FS is one of ours. No handler of the client may run then: [`inside`] is how
//! [`user::signals`] finds out.
use std::{
    arch::global_asm,
    io, mem, ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread,
};

use user::{
    futex,
    signals::{self, FAULTS, set_mask},
    sys,
};

use crate::{
    program::LoadError,
    slot::{ALLOW, BLOCK, Slot, THREADS, own},
};

/// `arch_prctl`'s.
const ARCH_SET_FS: usize = 0x1002;
const ARCH_GET_FS: usize = 0x1003;

/// Bytes of the stack on which calls of the device run.
const STACK: usize = 1 << 20;

/// A thread that lends; all 0 where there is none.
struct Lender {
    fs: AtomicUsize,
    /// The end of its stack, where stacks begin.
    stack: AtomicUsize,
    free: AtomicBool,
}

static LENDERS: [Lender; THREADS] =
    [const { Lender { fs: AtomicUsize::new(0), stack: AtomicUsize::new(0), free: AtomicBool::new(false) } }; THREADS];
/// How many entries have been used.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Changes when one becomes free.
static CHANGES: AtomicU32 = AtomicU32::new(0);

global_asm!(
    // Calls a function (RDI) with one argument (RSI) on another stack (RDX).
    ".hidden rekvm_on_stack",
    ".globl rekvm_on_stack",
    ".type rekvm_on_stack,@function",
    "rekvm_on_stack:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsp, rdx",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size rekvm_on_stack, . - rekvm_on_stack",
);

unsafe extern "C" {
    fn rekvm_on_stack(function: usize, argument: usize, stack: usize);
}

/// The present FS. Bare.
fn fs() -> usize {
    let mut now = 0usize;
    // SAFETY: the kernel writes one word.
    unsafe { sys::raw(libc::SYS_arch_prctl, [ARCH_GET_FS, (&raw mut now).addr(), 0, 0, 0, 0]) };
    now
}

/// Bare.
///
/// # Safety
/// What runs afterwards finds its variables there.
unsafe fn set_fs(to: usize) {
    // SAFETY: as the caller promises.
    unsafe { sys::raw(libc::SYS_arch_prctl, [ARCH_SET_FS, to, 0, 0, 0, 0]) };
}

/// Makes the first lender.
pub(crate) fn prepare() -> Result<(), LoadError> {
    add().map_err(LoadError::Prepare)
}

/// Starts a thread that does nothing but lend. In our world.
fn add() -> io::Result<()> {
    let index = COUNT.load(Ordering::Relaxed);
    let Some(lender) = LENDERS.get(index) else { return Err(io::Error::from_raw_os_error(libc::EAGAIN)) };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    // SAFETY: a new mapping.
    let stack = unsafe { libc::mmap(ptr::null_mut(), STACK, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if stack == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    lender.stack.store(stack.addr() + STACK, Ordering::Relaxed);
    let blocked = user::signals::block_all();
    let started = thread::Builder::new().name("rekvm-lender".into()).stack_size(64 << 10).spawn(move || {
        lender.fs.store(fs(), Ordering::Release);
        COUNT.fetch_add(1, Ordering::Release);
        give(lender);
        loop {
            // SAFETY: sleeps for good: whoever borrows this thread's variables counts on that.
            unsafe { sys::raw(libc::SYS_pause, [0; 6]) };
        }
    });
    drop(blocked);
    if let Err(error) = started {
        // SAFETY: made above, and told to nobody.
        unsafe { libc::munmap(stack, STACK) };
        return Err(error);
    }
    // The next one takes the next place.
    while COUNT.load(Ordering::Acquire) == index {
        let seen = CHANGES.load(Ordering::Acquire);
        if COUNT.load(Ordering::Acquire) == index {
            futex::wait(&CHANGES, seen);
        }
    }
    Ok(())
}

/// Bare.
fn give(lender: &Lender) {
    lender.free.store(true, Ordering::Release);
    CHANGES.fetch_add(1, Ordering::AcqRel);
    futex::wake(&CHANGES, i32::MAX);
}

/// Takes a lender, which whoever took the one before is about to make if there is none. Bare.
fn take() -> &'static Lender {
    loop {
        let seen = CHANGES.load(Ordering::Acquire);
        let free = || LENDERS.iter().take(COUNT.load(Ordering::Acquire)).find(|l| l.free.load(Ordering::Acquire));
        if let Some(lender) = free()
            && lender.free.swap(false, Ordering::AcqRel)
        {
            return lender;
        }
        if free().is_none() {
            futex::wait(&CHANGES, seen);
        }
    }
}

/// Gives back what the thread of `slot` has borrowed; the thread comes here no more. Bare.
pub(crate) fn leave(slot: &Slot) {
    let index = slot.lender.swap(0, Ordering::AcqRel);
    if let Some(lender) = index.checked_sub(1).and_then(|index| LENDERS.get(index)) {
        give(lender);
    }
}

/// Whether the calling thread is in our world. Bare.
pub(crate) fn inside() -> bool {
    let Some(slot) = own() else { return false };
    let lender = slot.lender.load(Ordering::Acquire).checked_sub(1).and_then(|index| LENDERS.get(index));
    lender.is_some_and(|lender| lender.fs.load(Ordering::Relaxed) == fs())
}

/// What crosses to the other stack.
struct Crossing<F, R> {
    act: Option<F>,
    result: Option<R>,
}

extern "C" fn cross<F: FnOnce() -> R, R>(crossing: *mut Crossing<F, R>) {
    // SAFETY: `visit` waits for the end of this call.
    let crossing = unsafe { &mut *crossing };
    crossing.result = crossing.act.take().map(|act| act());
}

/// Has the calling thread, whose slot is given, do something in our world, with the signal mask `open`: then signals that
/// come are noted. None: all signals wait. They go on waiting until the handler that brought the thread here returns and
/// puts the client's mask back. Bare outside of `act`.
pub(crate) fn visit<F: FnOnce() -> R, R>(slot: &Slot, open: Option<u64>, act: F) -> Option<R> {
    let (lender, new) = match slot.lender.load(Ordering::Relaxed).checked_sub(1).and_then(|index| LENDERS.get(index)) {
        Some(lender) => (lender, false),
        None => (take(), true),
    };
    let stack = lender.stack.load(Ordering::Relaxed);
    let act = move || {
        if new {
            replenish();
        }
        signals::forget_earlier();
        if let Some(mask) = open {
            set_mask(libc::SIG_SETMASK, mask);
        }
        let result = act();
        if open.is_some() {
            set_mask(libc::SIG_SETMASK, !FAULTS);
        }
        result
    };
    let mut crossing = Crossing { act: Some(act), result: None };
    // SAFETY: the variables and the stack belong to a thread that sleeps for good, and to this one alone now.
    unsafe {
        set_mask(libc::SIG_SETMASK, !FAULTS);
        if new {
            let index = ptr::from_ref(lender).offset_from(LENDERS.as_ptr());
            slot.lender.store(index as usize + 1, Ordering::Release);
        }
        let theirs = fs();
        set_fs(lender.fs.load(Ordering::Relaxed));
        slot.selector.store(ALLOW, Ordering::Relaxed);
        rekvm_on_stack(crossing_of(&crossing) as *const () as usize, (&raw mut crossing).addr(), stack);
        slot.selector.store(BLOCK, Ordering::Relaxed);
        set_fs(theirs);
    }
    mem::take(&mut crossing.result)
}

/// The function that carries a value of this type over.
fn crossing_of<F: FnOnce() -> R, R>(_: &Crossing<F, R>) -> extern "C" fn(*mut Crossing<F, R>) {
    cross::<F, R>
}

/// Held while there may be a lender that is not ready yet.
static MAKING: Mutex<()> = Mutex::new(());

/// No lender is being made while this lives, not even over a fork.
pub(crate) fn nobody_makes() -> MutexGuard<'static, ()> {
    MAKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// There is always one more than is borrowed.
fn replenish() {
    let _making = nobody_makes();
    if !LENDERS.iter().take(COUNT.load(Ordering::Acquire)).any(|lender| lender.free.load(Ordering::Acquire)) {
        // Without memory for a thread, the client's next threads wait until one of them ends.
        let _ = add();
    }
}

/// In a child of fork, in our world: the other lenders are not there.
pub(crate) fn only(slot: &Slot) {
    let own = slot.lender.load(Ordering::Relaxed);
    for (index, lender) in LENDERS.iter().enumerate().take(COUNT.load(Ordering::Relaxed)) {
        if index + 1 != own {
            lender.free.store(false, Ordering::Relaxed);
        }
    }
    replenish();
}
