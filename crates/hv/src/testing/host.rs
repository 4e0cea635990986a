//! A deterministic host: time stands until a test moves it, signals come when a test sends them, and client memory is
//! what a test has allocated.
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::{
    boxed::Box,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex},
    vec::Vec,
};

use platform::{
    Atomic, BadAddress, EventCallback, EventFd, EventFdError, HostFrame, Hva, Level, MaySleep, Memory, OutOfMemory,
    Pages, Platform, RawLock, Word, scarce,
    table::{CheckedTablePage, identity_frame, identity_frames},
    time::{Timer, TimerCallback},
    wait::{WaitEnd, Waiter},
};

pub(crate) struct Host;

std::thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1_000_000) };
    static SIGNAL: Cell<bool> = const { Cell::new(false) };
    static SIGNAL_AFTER: Cell<Option<u32>> = const { Cell::new(None) };
    static RACES: Cell<u32> = const { Cell::new(0) };
    static TIMERS: RefCell<Vec<Arc<Alarm>>> = const { RefCell::new(Vec::new()) };
}

/// Moves this thread's clock, and fires the timers that were armed on it.
pub(crate) fn advance(ns: u64) {
    NOW.set(NOW.get() + ns);
    loop {
        let due = TIMERS.with_borrow(|timers| timers.iter().find(|t| t.take_due(NOW.get())).cloned());
        let Some(due) = due else { break };
        (due.fire)();
    }
}

/// A signal is pending for this thread, or no longer.
pub(crate) fn set_signal(pending: bool) {
    SIGNAL.set(pending);
}

/// A signal is pending for this thread when it has let others run `count` times more, and nothing else tells of it.
pub(crate) fn signal_after(count: u32) {
    SIGNAL_AFTER.set(Some(count));
}

/// The next `count` locked operations of this thread lose their race.
pub(crate) fn lose_races(count: u32) {
    RACES.set(count);
}

/// How many of them have not happened yet.
pub(crate) fn races_left() -> u32 {
    RACES.get()
}

impl Platform for Host {
    type Memory = Client;
    type Pages = Mapping;
    type EventFd = Event;
    type RawMutex = Lock;
    type RawSpin = Lock;
    type Waiter = Sleeper;
    type Timer<C: TimerCallback> = Alarmed;
    type TablePage = CheckedTablePage;
    type Pin = ();

    fn now_ns() -> u64 {
        NOW.get()
    }
    fn wall_clock_ns() -> u64 {
        NOW.get() + 1_700_000_000_000_000_000
    }
    fn tsc() -> u64 {
        NOW.get() * 2
    }
    fn tsc_khz() -> u32 {
        2_000_000
    }
    fn random(buf: &mut [u8]) {
        buf.fill(4);
    }
    fn signal_pending() -> bool {
        SIGNAL.get()
    }
    fn relax(_cx: &MaySleep) {
        std::thread::yield_now();
        let left = SIGNAL_AFTER.get().and_then(|left| left.checked_sub(1));
        if left == Some(0) {
            SIGNAL.set(true);
        }
        SIGNAL_AFTER.set(left);
    }
    fn pin() {}
    fn host_frame(hva: Hva, _write: bool, _cx: &MaySleep) -> Result<HostFrame, BadAddress> {
        <Client as Memory>::load::<u8>(hva)?;
        identity_frame(hva)
    }
    fn host_frames_now(hva: Hva, hpas: &mut [u64], _cx: &MaySleep) -> usize {
        let there = (0..).take_while(|n| <Client as Memory>::load::<u8>(hva.add(n << 12)).is_ok());
        let count = hpas.len().min(there.take(hpas.len()).count());
        identity_frames(hva, hpas.get_mut(..count).unwrap_or_default())
    }
    fn log(_level: Level, _message: core::fmt::Arguments<'_>) {}
}

/// The client's eventfds by descriptor number; -1 and below are no descriptors, even numbers are other files.
static EVENTS: Mutex<BTreeMap<i32, Arc<EventState>>> = Mutex::new(BTreeMap::new());

type Callbacks = Mutex<Vec<(u64, Arc<dyn EventCallback>)>>;

#[derive(Default)]
struct EventState {
    count: AtomicU32,
    callbacks: Callbacks,
}

/// An eventfd, whose watchers are called at once by whoever signals it.
pub(crate) struct Event(Arc<EventState>);

impl Event {
    /// How often it was signalled while nobody watched.
    pub(crate) fn count(&self) -> u32 {
        self.0.count.load(SeqCst)
    }

    /// How many watch it.
    pub(crate) fn watchers(&self) -> usize {
        self.0.callbacks.lock().unwrap().len()
    }
}

pub(crate) struct EventWatch {
    event: Arc<EventState>,
    token: u64,
}

impl Drop for EventWatch {
    fn drop(&mut self) {
        self.event.callbacks.lock().unwrap().retain(|(token, _)| *token != self.token);
    }
}

impl EventFd for Event {
    type Watch<C: EventCallback> = EventWatch;
    fn get(fd: i32, _cx: &MaySleep) -> Result<Self, EventFdError> {
        match fd {
            ..0 => Err(EventFdError::BadDescriptor),
            _ if fd % 2 == 0 => Err(EventFdError::NotAnEventFd),
            _ => {
                scarce::allocate().map_err(|_| EventFdError::OutOfMemory)?;
                Ok(Self(scarce::for_good(|| EVENTS.lock().unwrap().entry(fd).or_default().clone())))
            }
        }
    }
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
    fn signal(&self) {
        let callbacks = scarce::plenty(|| self.0.callbacks.lock().unwrap().clone());
        if callbacks.is_empty() {
            self.0.count.fetch_add(1, SeqCst);
        }
        for (_, callback) in callbacks {
            callback.signalled(&Atomic::at_entry());
        }
    }
    fn watch<C: EventCallback>(&self, callback: C, _cx: &MaySleep) -> Result<EventWatch, OutOfMemory> {
        static NEXT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
        scarce::allocate()?;
        let (token, callback) = (NEXT.fetch_add(1, SeqCst), scarce::plenty(|| Arc::new(callback)));
        scarce::for_good(|| self.0.callbacks.lock().unwrap().push((token, callback.clone())));
        if self.0.count.swap(0, SeqCst) != 0 {
            callback.signalled(&Atomic::at_entry());
        }
        Ok(EventWatch { event: self.0.clone(), token })
    }
}

pub(crate) struct Lock(AtomicBool);

impl RawLock for Lock {
    fn new(_rank: u8) -> Result<Self, OutOfMemory> {
        Ok(Self(AtomicBool::new(false)))
    }
    fn lock(&self) {
        while !self.try_lock() {
            std::thread::yield_now();
        }
    }
    fn try_lock(&self) -> bool {
        !self.0.swap(true, SeqCst)
    }
    unsafe fn unlock(&self) {
        self.0.store(false, SeqCst);
    }
}

/// Sleeps for real. A signal that came before does not end the sleep: the core has to have looked for it.
pub(crate) struct Sleeper {
    mutex: Mutex<()>,
    changed: Condvar,
    attached: AtomicBool,
}

impl Waiter for Sleeper {
    fn new() -> Result<Self, OutOfMemory> {
        Ok(Self { mutex: Mutex::new(()), changed: Condvar::new(), attached: AtomicBool::new(false) })
    }
    fn wait(&self, word: &AtomicU32, value: u32, _cx: &MaySleep) -> WaitEnd {
        assert!(self.attached.load(SeqCst), "a sleep outside of KVM_RUN");
        let mut guard = self.mutex.lock().unwrap();
        let limit = std::time::Duration::from_secs(5);
        while word.load(SeqCst) == value {
            let (next, timeout) = self.changed.wait_timeout(guard, limit).unwrap();
            guard = next;
            assert!(!timeout.timed_out(), "nobody woke the vCPU");
        }
        WaitEnd::Woken
    }
    fn wake(&self, _word: &AtomicU32) {
        drop(self.mutex.lock().unwrap());
        self.changed.notify_all();
    }
    fn kick(&self) {}
    fn attach(&self, word: Option<&AtomicU32>) {
        assert_ne!(self.attached.swap(word.is_some(), SeqCst), word.is_some());
    }
}

struct Alarm {
    deadline: Mutex<Option<u64>>,
    fire: Box<dyn Fn() + Send + Sync>,
}

impl Alarm {
    fn take_due(&self, now: u64) -> bool {
        self.deadline.lock().unwrap().take_if(|d| *d <= now).is_some()
    }
}

pub(crate) struct Alarmed(Arc<Alarm>);

impl<C: TimerCallback> Timer<C> for Alarmed {
    fn new(callback: C) -> Result<Self, OutOfMemory> {
        scarce::allocate()?;
        let alarm = scarce::plenty(|| {
            let fire = Box::new(move || callback.expired(&Atomic::at_entry()));
            Arc::new(Alarm { deadline: Mutex::new(None), fire })
        });
        scarce::for_good(|| TIMERS.with_borrow_mut(|timers| timers.push(alarm.clone())));
        Ok(Self(alarm))
    }
    fn arm(&self, deadline_ns: u64) {
        *self.0.deadline.lock().unwrap() = Some(deadline_ns);
    }
    fn cancel(&self) {
        *self.0.deadline.lock().unwrap() = None;
    }
}

impl Drop for Alarmed {
    fn drop(&mut self) {
        // The list of another thread keeps a timer that never fires.
        let _ = TIMERS.try_with(|timers| timers.borrow_mut().retain(|t| !Arc::ptr_eq(t, &self.0)));
    }
}

/// Ranges that the client has mapped: start and length.
static MAPPED: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

/// Memory of the client, unmapped when dropped.
pub(crate) struct Mapping {
    bytes: Box<[core::cell::UnsafeCell<u64>]>,
}

// SAFETY: all access goes through `Client`, under its lock.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` zero bytes, page aligned.
    pub(crate) fn new(len: usize) -> Self {
        let words = len / 8 + 512;
        let bytes = scarce::plenty(|| (0..words).map(|_| core::cell::UnsafeCell::new(0)).collect::<Box<[_]>>());
        let mapping = Self { bytes };
        scarce::for_good(|| MAPPED.lock().unwrap().insert(mapping.at(), len as u64));
        mapping
    }

    pub(crate) fn at(&self) -> u64 {
        (self.bytes.as_ptr() as u64).next_multiple_of(4096)
    }

    /// The client takes it away.
    pub(crate) fn unmap(&self) {
        scarce::for_good(|| MAPPED.lock().unwrap().remove(&self.at()));
    }
}

impl Pages for Mapping {
    fn new(bytes: u64, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        // Room for tests is bounded, so that a test can run out of it.
        scarce::allocate()?;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= 1 << 20).ok_or(OutOfMemory)?;
        Ok(Self::new(bytes))
    }
    fn at(&self) -> Hva {
        Hva(Self::at(self))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.unmap();
    }
}

pub(crate) struct Client;

/// Runs `f` on the bytes at `at`, if all are mapped.
fn bytes<R>(at: Hva, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, BadAddress> {
    let mapped = MAPPED.lock().unwrap();
    let (start, size) = mapped.range(..=at.0).next_back().ok_or(BadAddress)?;
    let offset = at.0 - start;
    if offset >= *size || size - offset < len as u64 {
        return Err(BadAddress);
    }
    // SAFETY: the range belongs to a `Mapping` that is alive while it is in the table, and the table is locked.
    Ok(f(unsafe { core::slice::from_raw_parts_mut(at.0 as *mut u8, len) }))
}

fn word<T: Word>(bytes: &[u8]) -> T {
    let mut wide = [0; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    let value = u128::from_le_bytes(wide);
    T::from_halves(value as u64, (value >> 64) as u64)
}

fn put<T: Word>(bytes: &mut [u8], value: T) {
    let wide = (u128::from(value.low()) | u128::from(value.high()) << 64).to_le_bytes();
    let len = bytes.len();
    bytes.copy_from_slice(&wide[..len]);
}

impl Memory for Client {
    fn load<T: Word>(at: Hva) -> Result<T, BadAddress> {
        bytes(at, T::BYTES as usize, |b| word(b))
    }
    fn store<T: Word>(at: Hva, value: T) -> Result<(), BadAddress> {
        bytes(at, T::BYTES as usize, |b| put(b, value))
    }
    fn compare_exchange<T: Word>(at: Hva, old: T, new: T) -> Result<T, BadAddress> {
        if let Some(left) = RACES.get().checked_sub(1) {
            RACES.set(left);
            return Ok(T::from_halves(!old.low(), !old.high()));
        }
        bytes(at, T::BYTES as usize, |b| {
            let seen: T = word(b);
            if seen == old {
                put(b, new);
            }
            seen
        })
    }
    fn copy_from(at: Hva, to: &mut [u8]) -> Result<(), BadAddress> {
        bytes(at, to.len(), |b| to.copy_from_slice(b))
    }
    fn copy_to(at: Hva, from: &[u8]) -> Result<(), BadAddress> {
        bytes(at, from.len(), |b| b.copy_from_slice(from))
    }
    fn copy_within(from: Hva, to: Hva, count: u64) -> u64 {
        (0..count)
            .take_while(|i| Self::load::<u8>(from.add(*i)).and_then(|b| Self::store(to.add(*i), b)).is_ok())
            .count() as u64
    }
    fn fill<T: Word>(at: Hva, value: T, count: u64) -> u64 {
        (0..count).take_while(|i| Self::store(at.add(i * T::BYTES), value).is_ok()).count() as u64
    }
}
