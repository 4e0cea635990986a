//! Timers: one thread a process that sleeps until the earliest deadline.
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt, io,
    marker::PhantomData,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};

use platform::{
    Atomic, OutOfMemory, Timer, TimerCallback,
    fallible::{Shared, try_box},
};

use crate::{per_process::PerProcess, signals::block_all, time};

/// A callback whose type the thread does not know.
trait Expire: Send + Sync {
    fn expire(&self);
}

struct Callback<C>(C);

impl<C: TimerCallback> Expire for Callback<C> {
    fn expire(&self) {
        self.0.expired(&Atomic::at_entry());
    }
}

/// A timer as the thread sees it.
struct Entry {
    callback: Shared<Box<dyn Expire>>,
    /// Counts arms and cancels: a deadline in the heap counts only if it carries the present number.
    version: u64,
    armed: bool,
    running: bool,
}

/// A deadline: nanoseconds, index into the entries, version.
type Deadline = Reverse<(u64, usize, u64)>;

#[derive(Default)]
struct State {
    entries: Vec<Option<Entry>>,
    heap: BinaryHeap<Deadline>,
    live: usize,
    /// Until when the thread sleeps.
    asleep_until: u64,
}

impl State {
    /// Deadlines that the heap may hold for the present timers: outdated ones are swept out when there are more.
    fn room(&self) -> usize {
        2 * self.live + 16
    }

    /// Whether a deadline is still wanted.
    fn valid(entries: &[Option<Entry>], deadline: &Deadline) -> bool {
        let Reverse((_, index, version)) = deadline;
        entries.get(*index).and_then(Option::as_ref).is_some_and(|e| e.armed && e.version == *version)
    }

    fn push(&mut self, deadline: Deadline) {
        if self.heap.len() >= self.room() {
            let entries = &self.entries;
            self.heap.retain(|deadline| Self::valid(entries, deadline));
        }
        // Never allocates: `ThreadTimer::new` reserved the room.
        self.heap.push(deadline);
    }
}

struct Service {
    state: Mutex<State>,
    /// The earliest deadline became earlier.
    earlier: Condvar,
    /// A callback has returned.
    returned: Condvar,
    started: Mutex<bool>,
    thread: OnceLock<ThreadId>,
}

static SERVICE: PerProcess<Service> = PerProcess::new();

impl Service {
    fn new() -> Self {
        Self {
            state: Mutex::new(State { entries: Vec::new(), heap: BinaryHeap::new(), live: 0, asleep_until: 0 }),
            earlier: Condvar::new(),
            returned: Condvar::new(),
            started: Mutex::new(false),
            thread: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread with the first timer.
    fn start(&'static self) -> io::Result<()> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if !*started {
            // The new thread inherits the mask: signals of the client are none of its business.
            let blocked = block_all();
            let spawned = thread::Builder::new().name("rekvm-timer".into()).spawn(move || self.run());
            drop(blocked);
            let _ = self.thread.set(spawned?.thread().id());
            *started = true;
        }
        Ok(())
    }

    fn run(&self) {
        // SAFETY: without it the kernel may add 50 us to each sleep of this thread.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        let mut state = self.lock();
        loop {
            let Some(&next) = state.heap.peek() else {
                state.asleep_until = u64::MAX;
                state = self.earlier.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let Reverse((deadline, index, _)) = next;
            if !State::valid(&state.entries, &next) {
                state.heap.pop();
                continue;
            }
            let now = time::monotonic_ns();
            if deadline > now {
                state.asleep_until = deadline;
                let wait = Duration::from_nanos(deadline - now);
                state = self.earlier.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.heap.pop();
            // While callbacks run, nobody needs to wake this thread.
            state.asleep_until = 0;
            let Some(entry) = state.entries.get_mut(index).and_then(Option::as_mut) else { continue };
            entry.armed = false;
            entry.running = true;
            let callback = entry.callback.clone();
            drop(state);
            callback.expire();
            drop(callback);
            state = self.lock();
            if let Some(entry) = state.entries.get_mut(index).and_then(Option::as_mut) {
                entry.running = false;
            }
            self.returned.notify_all();
        }
    }
}

/// A one-shot timer whose callback runs on the process's timer thread.
pub struct ThreadTimer<C> {
    /// The one of the process that made it.
    service: &'static Service,
    index: usize,
    callback: PhantomData<fn() -> C>,
}

impl<C> fmt::Debug for ThreadTimer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadTimer").field("index", &self.index).finish()
    }
}

impl<C: TimerCallback> Timer<C> for ThreadTimer<C> {
    fn new(callback: C) -> Result<Self, OutOfMemory> {
        let service = SERVICE.get(|| Ok(Service::new()))?;
        service.start().map_err(|_| OutOfMemory)?;
        let callback: Box<dyn Expire> = try_box(Callback(callback))?;
        let callback = Shared::try_new(callback)?;
        let mut state = service.lock();
        let state = &mut *state;
        let entry = Entry { callback, version: 0, armed: false, running: false };
        state.live += 1;
        let room = state.room();
        let reserved = state.heap.try_reserve(room.saturating_sub(state.heap.len())).and(state.entries.try_reserve(1));
        if reserved.is_err() {
            state.live -= 1;
            return Err(OutOfMemory);
        }
        let index = match state.entries.iter_mut().enumerate().find(|(_, entry)| entry.is_none()) {
            Some((index, free)) => {
                *free = Some(entry);
                index
            }
            None => {
                state.entries.push(Some(entry));
                state.entries.len() - 1
            }
        };
        Ok(Self { service, index, callback: PhantomData })
    }

    fn arm(&self, deadline_ns: u64) {
        let mut state = self.service.lock();
        let Some(entry) = state.entries.get_mut(self.index).and_then(Option::as_mut) else { return };
        entry.version += 1;
        entry.armed = true;
        let version = entry.version;
        state.push(Reverse((deadline_ns, self.index, version)));
        if deadline_ns < state.asleep_until {
            self.service.earlier.notify_one();
        }
    }

    fn cancel(&self) {
        let mut state = self.service.lock();
        if let Some(entry) = state.entries.get_mut(self.index).and_then(Option::as_mut) {
            entry.version += 1;
            entry.armed = false;
        }
    }
}

impl<C> Drop for ThreadTimer<C> {
    fn drop(&mut self) {
        let on_timer_thread = self.service.thread.get() == Some(&thread::current().id());
        let mut state = self.service.lock();
        if let Some(entry) = state.entries.get_mut(self.index).and_then(Option::as_mut) {
            entry.armed = false;
            entry.version += 1;
        }
        let running = |state: &mut State| {
            state.entries.get(self.index).and_then(Option::as_ref).is_some_and(|entry| entry.running)
        };
        // A callback that drops its own timer cannot wait for itself.
        if !on_timer_thread {
            state = self.service.returned.wait_while(state, running).unwrap_or_else(PoisonError::into_inner);
        }
        state.live -= 1;
        // Deadlines of an earlier owner of this index carry versions that the next owner must not meet.
        let index = self.index;
        state.heap.retain(|Reverse((_, of, _))| *of != index);
        let entry = state.entries.get_mut(index).and_then(Option::take);
        drop(state);
        // The callback may own things whose end takes locks.
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
            mpsc,
        },
        time::Instant,
    };

    struct Tell(Mutex<mpsc::Sender<u64>>);
    impl TimerCallback for Tell {
        fn expired(&self, _cx: &Atomic) {
            let _ = self.0.lock().unwrap().send(time::monotonic_ns());
        }
    }

    fn telling() -> (ThreadTimer<Tell>, mpsc::Receiver<u64>) {
        let (tx, rx) = mpsc::channel();
        (ThreadTimer::new(Tell(Mutex::new(tx))).unwrap(), rx)
    }

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn expires_once_not_early_and_in_order() {
        let (late, late_rx) = telling();
        let (early, early_rx) = telling();
        let now = time::monotonic_ns();
        late.arm(now + 20_000_000);
        early.arm(now + 10_000_000);
        let first = early_rx.recv_timeout(SOON).unwrap();
        let second = late_rx.recv_timeout(SOON).unwrap();
        assert!(first >= now + 10_000_000 && second >= now + 20_000_000);
        assert!(late_rx.recv_timeout(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn rearming_replaces_and_cancelling_forgets() {
        let (timer, rx) = telling();
        let now = time::monotonic_ns();
        for _ in 0..1000 {
            timer.arm(now + 10_000_000_000);
        }
        timer.arm(0);
        rx.recv_timeout(SOON).unwrap();
        timer.arm(time::monotonic_ns() + 5_000_000);
        timer.cancel();
        assert!(rx.recv_timeout(Duration::from_millis(30)).is_err());
        assert!(timer.service.lock().heap.len() < 500);
    }

    struct Slow(Arc<(AtomicBool, AtomicBool)>);
    impl TimerCallback for Slow {
        fn expired(&self, _cx: &Atomic) {
            self.0.0.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            self.0.1.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn drop_waits_for_the_callback() {
        let marks = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
        let timer = ThreadTimer::new(Slow(Arc::clone(&marks))).unwrap();
        timer.arm(0);
        let start = Instant::now();
        while !marks.0.load(Ordering::SeqCst) && start.elapsed() < SOON {
            thread::yield_now();
        }
        drop(timer);
        assert!(marks.1.load(Ordering::SeqCst));
    }

    struct Again(Arc<AtomicU64>, Arc<Mutex<Option<ThreadTimer<Again>>>>);
    impl TimerCallback for Again {
        fn expired(&self, _cx: &Atomic) {
            let mut own = self.1.lock().unwrap();
            if self.0.fetch_add(1, Ordering::SeqCst) < 9 {
                own.as_ref().unwrap().arm(0);
            } else {
                // From inside its own callback.
                *own = None;
            }
        }
    }

    #[test]
    fn a_callback_may_arm_and_drop_its_own_timer() {
        let (count, own) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
        let timer = ThreadTimer::new(Again(Arc::clone(&count), Arc::clone(&own))).unwrap();
        *own.lock().unwrap() = Some(timer);
        own.lock().unwrap().as_ref().unwrap().arm(0);
        let start = Instant::now();
        while own.lock().unwrap().is_some() && start.elapsed() < SOON {
            thread::yield_now();
        }
        assert_eq!(count.load(Ordering::SeqCst), 10);
    }
}
