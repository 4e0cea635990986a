//! Sleeping vCPUs, and kicks: a vCPU is a thread, which is woken or sent an interrupt.
use core::{
    ptr,
    sync::atomic::{
        AtomicPtr, AtomicU32,
        Ordering::{Relaxed, SeqCst},
    },
};

use platform::{MaySleep, OutOfMemory, WaitEnd, Waiter};

use crate::glue::{self, Opaque};

/// The thread that is inside KVM_RUN, or null.
pub struct Thread(AtomicPtr<Opaque>);

impl Thread {
    /// Calls `f` with the thread. It may have left KVM_RUN meanwhile, which is no harm: a thread's structure outlives
    /// whoever found it in a read section of RCU.
    fn with(&self, f: unsafe extern "C" fn(*mut Opaque)) {
        // SAFETY: the section is left below, and a thread that is not null is alive at its beginning, see above.
        unsafe {
            glue::rekvm_rcu_read_lock();
            let thread = self.0.load(SeqCst);
            if !thread.is_null() {
                f(thread);
            }
            glue::rekvm_rcu_read_unlock();
        }
    }
}

impl Waiter for Thread {
    fn new() -> Result<Self, OutOfMemory> {
        Ok(Self(AtomicPtr::new(ptr::null_mut())))
    }

    fn wait(&self, word: &AtomicU32, value: u32, _cx: &MaySleep) -> WaitEnd {
        // Whoever changes the word from here on ends the sleep.
        glue::rekvm_will_sleep();
        if word.load(SeqCst) == value && !glue::rekvm_signal_pending() {
            glue::rekvm_schedule();
        }
        glue::rekvm_will_not_sleep();
        if glue::rekvm_signal_pending() { WaitEnd::Signal } else { WaitEnd::Woken }
    }

    fn wake(&self, _word: &AtomicU32) {
        self.with(glue::rekvm_wake);
    }

    fn kick(&self) {
        self.with(glue::rekvm_kick);
    }

    fn attach(&self, word: Option<&AtomicU32>) {
        let thread = if word.is_some() { glue::rekvm_current() } else { ptr::null_mut() };
        self.0.store(thread, if word.is_some() { SeqCst } else { Relaxed });
    }
}
