//! Sleeping vCPUs: each sleeps on its request word.
use std::sync::atomic::AtomicU32;

use platform::{MaySleep, OutOfMemory, WaitEnd, Waiter};

use crate::{
    futex::{self, Woken},
    signals,
};

/// Where a vCPU sleeps.
#[derive(Debug)]
pub struct FutexWaiter;

impl Waiter for FutexWaiter {
    fn new() -> Result<Self, OutOfMemory> {
        Ok(Self)
    }

    fn wait(&self, word: &AtomicU32, value: u32, _cx: &MaySleep) -> WaitEnd {
        // A signal before the sleep has changed the word, see `signals::note`.
        let woken = futex::wait(word, value);
        if woken == Woken::Signal || signals::pending() { WaitEnd::Signal } else { WaitEnd::Woken }
    }

    fn wake(&self, word: &AtomicU32) {
        futex::wake(word, i32::MAX);
    }

    fn kick(&self) {}

    fn attach(&self, word: Option<&AtomicU32>) {
        signals::attach(word);
    }
}
