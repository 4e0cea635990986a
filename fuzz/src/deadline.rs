//! Ending what would not end by itself. One thread waits for the current deadline, and from then on calls its action
//! every millisecond until the deadline is dropped: a kick that comes too early is lost, as a signal's is.
use std::{
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

type Action = Box<dyn FnMut() + Send>;

struct Pending {
    id: u64,
    at: Instant,
    action: Action,
}

struct Watch {
    pending: Mutex<(u64, Vec<Pending>)>,
    changed: Condvar,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Pending>)> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut pending = self.lock();
        loop {
            let now = Instant::now();
            for p in pending.1.iter_mut().filter(|p| p.at <= now) {
                (p.action)();
                p.at = now + Duration::from_millis(1);
            }
            pending = match pending.1.iter().map(|p| p.at).min() {
                Some(at) => {
                    let wait = at.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(pending, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn watch() -> &'static Watch {
    static WATCH: OnceLock<&'static Watch> = OnceLock::new();
    WATCH.get_or_init(|| {
        let watch: &'static Watch =
            Box::leak(Box::new(Watch { pending: Mutex::new((0, Vec::new())), changed: Condvar::new() }));
        thread::spawn(|| watch.run());
        watch
    })
}

/// The action is called from `after` on, until this is dropped; it does not run any more then.
#[derive(Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// Calls `action` after `after`.
    pub fn new(after: Duration, action: impl FnMut() + Send + 'static) -> Self {
        let watch = watch();
        let mut pending = watch.lock();
        pending.0 += 1;
        let id = pending.0;
        pending.1.push(Pending { id, at: Instant::now() + after, action: Box::new(action) });
        watch.changed.notify_one();
        Self(id)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut pending = watch().lock();
        pending.1.retain(|p| p.id != self.0);
    }
}
