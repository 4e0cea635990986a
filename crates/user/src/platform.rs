//! The Platform of a user-space process.
use std::{cell::Cell, fmt, thread};

use platform::{
    BadAddress, HeapTablePage, HostFrame, Hva, Level, MaySleep, Platform, TimerCallback,
    table::{identity_frame, identity_frames},
};

use crate::{ClientEventFd, ClientMemory, FutexLock, FutexWaiter, SharedPages, ThreadTimer, log, signals, time};

/// An ordinary process as the machine that hosts guests.
#[derive(Debug)]
pub struct User;

/// A call of [`User::relax`] in so many gives the processor away: the kernel preempts by itself, so it only matters
/// to those who wait for others in a loop.
const RELAX_YIELDS: u32 = 64;

impl Platform for User {
    type Memory = ClientMemory;
    type Pages = SharedPages;
    type EventFd = ClientEventFd;
    type RawMutex = FutexLock;
    type RawSpin = FutexLock;
    type Waiter = FutexWaiter;
    type Timer<C: TimerCallback> = ThreadTimer<C>;
    type TablePage = HeapTablePage;
    type Pin = ();

    fn now_ns() -> u64 {
        time::monotonic_ns()
    }

    fn wall_clock_ns() -> u64 {
        time::wall_clock_ns()
    }

    #[inline]
    fn tsc() -> u64 {
        time::tsc()
    }

    fn tsc_khz() -> u32 {
        time::tsc_khz()
    }

    fn random(buf: &mut [u8]) {
        time::random(buf);
    }

    #[inline]
    fn signal_pending() -> bool {
        signals::pending()
    }

    #[inline]
    fn relax(_cx: &MaySleep) {
        relax();
    }

    #[inline]
    fn pin() {}

    #[inline]
    fn spin() {
        std::hint::spin_loop();
        // The thread that is waited for may need this very processor.
        relax();
    }

    fn host_frame(hva: Hva, _write: bool, _cx: &MaySleep) -> Result<HostFrame, BadAddress> {
        identity_frame(hva)
    }

    fn host_frames_now(hva: Hva, hpas: &mut [u64], _cx: &MaySleep) -> usize {
        identity_frames(hva, hpas)
    }

    fn log(level: Level, message: fmt::Arguments<'_>) {
        log::log(level, message);
    }
}

#[inline]
fn relax() {
    thread_local! {
        static CALLS: Cell<u32> = const { Cell::new(0) };
    }
    let calls = CALLS.get().wrapping_add(1);
    CALLS.set(calls);
    if calls.is_multiple_of(RELAX_YIELDS) {
        thread::yield_now();
    }
}
