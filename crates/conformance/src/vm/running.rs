//! vCPUs that run in a thread of their own while the case does something to them.
use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{Exit, Vcpu};
use crate::{
    device::{Device, Errno, Thread},
    runner::Target,
};

static SLOWNESS: AtomicU32 = AtomicU32::new(1);

/// Sets by how much all time limits are stretched.
pub fn set_slowness(factor: u32) {
    SLOWNESS.store(factor.max(1), Ordering::Relaxed);
}

/// A time limit, stretched as the machine below demands.
pub fn scaled(limit: Duration) -> Duration {
    limit * SLOWNESS.load(Ordering::Relaxed)
}

/// Runs a guest whose STI or MOV SS holds interrupts back, and says what came of it.
///
/// Interrupts of the host come at any time, and end the guest. When one comes right behind such an instruction, QEMU's TCG
/// loses the shadow: #VMEXIT saves it, and `helper_vmrun` in svm_helper.c does not load it. There, what went wrong is tried
/// again a few times; the caller still has to assert that it went right.
pub fn in_shadow<T>(device: &Device, attempt: impl Fn() -> T, right: impl Fn(&T) -> bool) -> T {
    let before = if Target::IN_QEMU.contains(device.target()) { 10 } else { 0 };
    (0..before).map(|_| attempt()).find(right).unwrap_or_else(attempt)
}

/// Waits, sleeping, until `done`; a case that waits for long fails.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + scaled(Duration::from_secs(5));
    while !done() {
        assert!(Instant::now() < end, "waited too long for: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A vCPU inside KVM_RUN, in another thread.
pub struct Running<'a> {
    vcpu: &'a Vcpu,
    thread: Thread,
    done: &'a AtomicBool,
}

impl Running<'_> {
    /// The thread.
    pub fn thread(&self) -> Thread {
        self.thread
    }

    /// Whether KVM_RUN has returned.
    pub fn done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Ends KVM_RUN with a signal, however late the thread gets there.
    pub fn stop(&self) {
        self.vcpu.page.set_immediate_exit(true);
        until("KVM_RUN to end", || {
            if !self.done() {
                self.thread.signal(libc::SIGUSR1);
            }
            self.done()
        });
        self.vcpu.page.set_immediate_exit(false);
    }
}

/// Calls KVM_RUN once in another thread while `act` runs in this one. If KVM_RUN is still inside when `act` returns, it is
/// waited for: `act` ends it, by [`Running::stop`] or by what it does to the guest.
pub fn while_running<R>(vcpu: &Vcpu, act: impl FnOnce(&Running) -> R) -> (Result<Exit, Errno>, R) {
    let done = AtomicBool::new(false);
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let runner = scope.spawn(|| {
            sender.send(Thread::current()).expect("a receiver");
            let exit = vcpu.try_run();
            done.store(true, Ordering::SeqCst);
            exit
        });
        let thread = receiver.recv().expect("the thread's name");
        let result = act(&Running { vcpu, thread, done: &done });
        (runner.join().expect("the vCPU's thread"), result)
    })
}
