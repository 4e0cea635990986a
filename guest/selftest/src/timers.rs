//! Time passes at one speed, sleeps end, and timers send their signals.
use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use crate::{Check, ensure};

static TICKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn tick(_signal: i32) {
    TICKS.fetch_add(1, Ordering::SeqCst);
}

/// See the module.
pub fn check() -> Check {
    let start = Instant::now();
    let wall = SystemTime::now();
    sleep(Duration::from_millis(100));
    let slept = start.elapsed();
    let wall = wall.elapsed().map_err(|e| format!("the wall clock went back: {e}"))?;
    ensure!(slept >= Duration::from_millis(100), "a sleep of 100 ms took {slept:?}");
    ensure!(slept < Duration::from_secs(3), "a sleep of 100 ms took {slept:?}");
    let apart = slept.abs_diff(wall);
    ensure!(apart < Duration::from_millis(50), "clocks disagree by {apart:?}");

    let mut last = Instant::now();
    for _ in 0..20_000 {
        let now = Instant::now();
        ensure!(now >= last, "the monotonic clock went back");
        last = now;
    }
    interval()
}

fn interval() -> Check {
    let period = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    let off = libc::timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: installs a handler that only touches an atomic, and a timer that sends its signal.
    unsafe {
        libc::signal(libc::SIGALRM, tick as *const () as usize);
        libc::setitimer(
            libc::ITIMER_REAL,
            &libc::itimerval { it_interval: period, it_value: period },
            std::ptr::null_mut(),
        );
    }
    let start = Instant::now();
    while TICKS.load(Ordering::SeqCst) < 5 && start.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(10));
    }
    // SAFETY: stops the timer.
    unsafe {
        libc::setitimer(libc::ITIMER_REAL, &libc::itimerval { it_interval: off, it_value: off }, std::ptr::null_mut());
    }
    let (ticks, took) = (TICKS.load(Ordering::SeqCst), start.elapsed());
    ensure!(ticks >= 5, "an interval timer of 20 ms ticked {ticks} times in {took:?}");
    ensure!(took >= Duration::from_millis(95), "five ticks of 20 ms took {took:?}");
    Ok(())
}
