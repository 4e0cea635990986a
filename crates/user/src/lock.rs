//! Locks: a word in user space and a futex when there is contention.
use std::{
    hint,
    sync::atomic::{AtomicU32, Ordering},
};

use platform::{OutOfMemory, RawLock};

use crate::futex;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
const CONTENDED: u32 = 2;

/// How often to look before sleeping: about what a short critical section takes.
const SPINS: u32 = 100;

/// The lock of both kinds that the platform offers: in user space the holder of a "spinning" lock can lose its
/// processor, so waiters have to be able to sleep there too.
#[derive(Debug)]
pub struct FutexLock {
    state: AtomicU32,
    #[cfg(debug_assertions)]
    rank: u8,
}

impl FutexLock {
    #[cold]
    fn lock_contended(&self) {
        for _ in 0..SPINS {
            hint::spin_loop();
            if self.take(FREE, TAKEN) {
                return;
            }
        }
        // From here on the lock is marked as contended, so that whoever gives it back wakes somebody.
        while self.state.swap(CONTENDED, Ordering::Acquire) != FREE {
            futex::wait(&self.state, CONTENDED);
        }
    }

    fn take(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl RawLock for FutexLock {
    fn new(rank: u8) -> Result<Self, OutOfMemory> {
        #[cfg(not(debug_assertions))]
        let _ = rank;
        Ok(Self {
            state: AtomicU32::new(FREE),
            #[cfg(debug_assertions)]
            rank,
        })
    }

    #[inline]
    fn lock(&self) {
        #[cfg(debug_assertions)]
        order::check(self.rank);
        if !self.take(FREE, TAKEN) {
            self.lock_contended();
        }
        #[cfg(debug_assertions)]
        order::taken(self.rank);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        let done = self.take(FREE, TAKEN);
        #[cfg(debug_assertions)]
        if done {
            order::taken(self.rank);
        }
        done
    }

    #[inline]
    unsafe fn unlock(&self) {
        #[cfg(debug_assertions)]
        order::given_back(self.rank);
        if self.state.swap(FREE, Ordering::Release) == CONTENDED {
            futex::wake(&self.state, 1);
        }
    }
}

/// The lock order, checked in debug builds: which ranks this thread holds.
#[cfg(debug_assertions)]
mod order {
    use std::cell::Cell;

    thread_local! {
        /// Locks held, by rank. Ranks above 127 count as 127.
        static HELD: Cell<u128> = const { Cell::new(0) };
    }

    fn bit(rank: u8) -> u128 {
        1 << rank.min(127)
    }

    /// Panics if a lock of this rank must not be waited for now.
    pub(super) fn check(rank: u8) {
        let held = HELD.get();
        let highest = 127 - held.leading_zeros().min(127);
        assert!(
            held < bit(rank),
            "lock order violated: a lock of rank {rank} is waited for while one of rank {highest} is held"
        );
    }

    pub(super) fn taken(rank: u8) {
        HELD.set(HELD.get() | bit(rank));
    }

    pub(super) fn given_back(rank: u8) {
        HELD.set(HELD.get() & !bit(rank));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use platform::lock::{Locked, rank};
    use std::thread;

    #[test]
    fn excludes() {
        let lock = Locked::<FutexLock, u64>::new(rank::VM, 0).unwrap();
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        *lock.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 80_000);
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(held);
        assert!(lock.try_lock().is_some());
    }

    #[test]
    #[cfg(debug_assertions)]
    fn wrong_order_is_found() {
        let inner = Locked::<FutexLock, ()>::new(rank::MMU, ()).unwrap();
        let outer = Locked::<FutexLock, ()>::new(rank::VM, ()).unwrap();
        drop((outer.lock(), inner.lock()));
        let caught = thread::scope(|s| {
            s.spawn(|| {
                let _inner = inner.lock();
                drop(outer.lock());
            })
            .join()
        });
        assert!(caught.is_err());
        // The panicking thread gave its lock back.
        assert!(inner.try_lock().is_some());
    }
}
