//! The operator's log, through `tracing`, with a limit so that a guest cannot fill a disk.
use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use platform::Level;

use crate::time;

/// Lines a second once the burst is used up.
const PER_SECOND: u64 = 10;
/// Lines at once.
const BURST: u64 = 100;

struct Bucket {
    tokens: u64,
    refilled_ns: u64,
    dropped: u64,
}

impl Bucket {
    /// Whether a line may be written now; if so, how many were dropped since the last one.
    fn take(&mut self, now_ns: u64) -> Option<u64> {
        let new = now_ns.saturating_sub(self.refilled_ns) / (1_000_000_000 / PER_SECOND);
        if new > 0 {
            self.tokens = self.tokens.saturating_add(new).min(BURST);
            self.refilled_ns = now_ns;
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

static BUCKET: Mutex<Bucket> = Mutex::new(Bucket { tokens: BURST, refilled_ns: 0, dropped: 0 });

/// No line is written while this lives, not even over a fork.
pub(crate) struct Held(MutexGuard<'static, Bucket>);

/// See [`Held`].
pub(crate) fn lock() -> Held {
    Held(BUCKET.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Writes a line unless there were too many of late.
pub(crate) fn log(level: Level, message: fmt::Arguments<'_>) {
    let now = time::monotonic_ns();
    let Some(dropped) = lock().0.take(now) else { return };
    if dropped > 0 {
        tracing::warn!("{dropped} messages were dropped");
    }
    match level {
        Level::Error => tracing::error!("{message}"),
        Level::Warning => tracing::warn!("{message}"),
        Level::Info => tracing::info!("{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let mut bucket = Bucket { tokens: BURST, refilled_ns: 0, dropped: 0 };
        let passed = (0..1000).filter(|_| bucket.take(1).is_some()).count() as u64;
        assert_eq!((passed, bucket.dropped), (BURST, 1000 - BURST));
        assert_eq!(bucket.take(100_000_001), Some(1000 - BURST));
        assert_eq!(bucket.take(100_000_002), None);
    }
}
