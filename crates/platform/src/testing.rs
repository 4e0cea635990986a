//! A host for tests, one for each thread: its client's memory is a table of pages, so that nothing here is unsafe but
//! the locks' trait. The host's page behind a page of the client has an address of its own, that changes whenever the
//! host takes the page away: who uses an old one is found.
extern crate std;
use std::{
    boxed::Box,
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    vec::Vec,
};

use crate::{
    BadAddress, EventCallback, EventFd, EventFdError, HostFrame, Hva, Level, MaySleep, Memory, OutOfMemory, Pages,
    Platform, RawLock, Timer, TimerCallback, WaitEnd, Waiter, Word, table::CheckedTablePage,
};

std::thread_local! {
    static PAGES: RefCell<BTreeMap<u64, Box<[u8; 4096]>>> = const { RefCell::new(BTreeMap::new()) };
    /// Host frame numbers by the client's page numbers.
    static FRAMES: RefCell<BTreeMap<u64, u64>> = const { RefCell::new(BTreeMap::new()) };
    /// The other way round.
    static OWNERS: RefCell<BTreeMap<u64, u64>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT_FRAME: Cell<u64> = const { Cell::new(0x10_0000) };
    /// Large pages: the client's page numbers, in units of 512.
    static LARGE: RefCell<BTreeSet<u64>> = const { RefCell::new(BTreeSet::new()) };
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    static UNLOCK_HOOK: RefCell<Option<(u8, UnlockHook)>> = const { RefCell::new(None) };
}

type Hook = Box<dyn FnOnce()>;
type UnlockHook = Box<dyn FnMut() -> bool>;

/// The next time the core asks for a host page (without any lock), `hook` runs first.
pub fn at_next_host_frame(hook: impl FnOnce() + 'static) {
    HOOK.set(Some(Box::new(hook)));
}

/// Each time this thread has given back a lock of `rank`, `hook` runs, until it returns true: what other threads may do
/// there, at a place that is known. It does not interrupt itself.
pub fn at_unlock(rank: u8, hook: impl FnMut() -> bool + 'static) {
    UNLOCK_HOOK.set(Some((rank, Box::new(hook))));
}

fn unlocked(rank: u8) {
    let Some((wanted, mut hook)) = UNLOCK_HOOK.take() else { return };
    let over = wanted == rank && hook();
    UNLOCK_HOOK.with_borrow_mut(|next| {
        if !over && next.is_none() {
            *next = Some((wanted, hook));
        }
    });
}

/// The host takes away what is behind `count` pages of the client at `at`: their contents are elsewhere from now on. A large
/// page of which some go is none any more; the rest of it stays where it is.
pub fn move_frames(at: u64, count: u64) {
    let gone = at >> 12..(at >> 12) + count;
    let frames: Vec<_> = FRAMES.with_borrow_mut(|frames| frames.extract_if(gone.clone(), |_, _| true).collect());
    OWNERS.with_borrow_mut(|owners| frames.iter().for_each(|(_, frame)| _ = owners.remove(frame)));
    LARGE.with_borrow_mut(|large| large.retain(|page| page << 9 >= gone.end || (page + 1) << 9 <= gone.start));
}

/// The host puts a large page of its own, in one piece, behind the 2 MiB of the client around `at`. They are moved, so this
/// belongs where [`move_frames`] does.
pub fn make_large(at: u64) {
    let first = NEXT_FRAME.get().next_multiple_of(512);
    NEXT_FRAME.set(first + 512);
    (0..512).for_each(|n| place(at >> 21 << 9 | n, first + n));
    LARGE.with_borrow_mut(|large| large.insert(at >> 21));
}

/// The host-physical address behind the client's address `hva`, if anybody has asked for it since it last changed.
pub fn frame_of(hva: Hva) -> Option<u64> {
    FRAMES.with_borrow(|frames| frames.get(&(hva.0 >> 12)).map(|frame| frame << 12))
}

/// The client's page behind which the host's page at `hpa` is now.
pub fn client_page(hpa: u64) -> Option<Hva> {
    OWNERS.with_borrow(|owners| owners.get(&(hpa >> 12)).map(|page| Hva(page << 12)))
}

/// Puts host frame `frame` behind page `page` of the client.
fn place(page: u64, frame: u64) {
    if let Some(old) = FRAMES.with_borrow_mut(|frames| frames.insert(page, frame)) {
        OWNERS.with_borrow_mut(|owners| owners.remove(&old));
    }
    OWNERS.with_borrow_mut(|owners| owners.insert(frame, page));
}

/// Gives the calling thread's client `count` zeroed pages at `at`.
pub fn map(at: u64, count: u64) {
    PAGES.with_borrow_mut(|pages| {
        for n in 0..count {
            pages.insert((at >> 12) + n, Box::new([0; 4096]));
        }
    });
}

/// Takes pages away.
pub fn unmap(at: u64, count: u64) {
    PAGES.with_borrow_mut(|pages| {
        for n in 0..count {
            pages.remove(&((at >> 12) + n));
        }
    });
    move_frames(at, count);
}

fn byte<R>(at: u64, f: impl FnOnce(&mut u8) -> R) -> Result<R, BadAddress> {
    PAGES.with_borrow_mut(|pages| {
        pages.get_mut(&(at >> 12)).map(|page| f(&mut page[(at & 4095) as usize])).ok_or(BadAddress)
    })
}

/// The client's memory.
#[derive(Debug)]
pub struct TestMemory;

impl Memory for TestMemory {
    fn load<T: Word>(at: Hva) -> Result<T, BadAddress> {
        let mut bytes = [0; 16];
        Self::copy_from(at, &mut bytes[..T::BYTES as usize])?;
        let value = u128::from_le_bytes(bytes);
        Ok(T::from_halves(value as u64, (value >> 64) as u64))
    }
    fn store<T: Word>(at: Hva, value: T) -> Result<(), BadAddress> {
        let value = u128::from(value.low()) | u128::from(value.high()) << 64;
        Self::copy_to(at, &value.to_le_bytes()[..T::BYTES as usize])
    }
    fn compare_exchange<T: Word>(at: Hva, old: T, new: T) -> Result<T, BadAddress> {
        let was = Self::load(at)?;
        if was == old {
            Self::store(at, new)?;
        }
        Ok(was)
    }
    fn copy_from(at: Hva, to: &mut [u8]) -> Result<(), BadAddress> {
        to.iter_mut().enumerate().try_for_each(|(n, to)| byte(at.add(n as u64).0, |from| *to = *from))
    }
    fn copy_to(at: Hva, from: &[u8]) -> Result<(), BadAddress> {
        from.iter().enumerate().try_for_each(|(n, from)| byte(at.add(n as u64).0, |to| *to = *from))
    }
    fn copy_within(from: Hva, to: Hva, bytes: u64) -> u64 {
        (0..bytes)
            .find(|n| byte(from.add(*n).0, |b| *b).and_then(|b| byte(to.add(*n).0, |to| *to = b)).is_err())
            .unwrap_or(bytes)
    }
    fn fill<T: Word>(at: Hva, value: T, count: u64) -> u64 {
        (0..count).find(|n| Self::store(at.add(n * T::BYTES), value).is_err()).unwrap_or(count)
    }
}

/// A lock that gives the processor away while it waits.
#[derive(Debug)]
pub struct TestLock {
    taken: AtomicBool,
    rank: u8,
}

impl RawLock for TestLock {
    fn new(rank: u8) -> Result<Self, OutOfMemory> {
        Ok(Self { taken: AtomicBool::new(false), rank })
    }
    fn lock(&self) {
        while !self.try_lock() {
            thread::yield_now();
        }
    }
    fn try_lock(&self) -> bool {
        !self.taken.swap(true, Ordering::Acquire)
    }
    unsafe fn unlock(&self) {
        self.taken.store(false, Ordering::Release);
        unlocked(self.rank);
    }
}

/// Nobody sleeps.
#[derive(Debug)]
pub struct TestWaiter;
impl Waiter for TestWaiter {
    fn new() -> Result<Self, OutOfMemory> {
        Ok(Self)
    }
    fn wait(&self, _: &AtomicU32, _: u32, _: &MaySleep) -> WaitEnd {
        WaitEnd::Woken
    }
    fn wake(&self, _: &AtomicU32) {}
    fn kick(&self) {}
    fn attach(&self, _: Option<&AtomicU32>) {}
}

/// Never expires.
#[derive(Debug)]
pub struct TestTimer;
impl<C: TimerCallback> Timer<C> for TestTimer {
    fn new(_: C) -> Result<Self, OutOfMemory> {
        Ok(Self)
    }
    fn arm(&self, _: u64) {}
    fn cancel(&self) {}
}

/// Nobody here makes a VM that has eventfds.
#[derive(Debug)]
pub enum NoEventFd {}
impl EventFd for NoEventFd {
    type Watch<C: EventCallback> = ();
    fn get(_fd: i32, _cx: &MaySleep) -> Result<Self, EventFdError> {
        Err(EventFdError::BadDescriptor)
    }
    fn same(&self, _other: &Self) -> bool {
        match *self {}
    }
    fn signal(&self) {}
    fn watch<C: EventCallback>(&self, _callback: C, _cx: &MaySleep) -> Result<(), OutOfMemory> {
        match *self {}
    }
}

/// Nobody here makes a VM that owns memory.
#[derive(Debug)]
pub enum NoPages {}
impl Pages for NoPages {
    fn new(_bytes: u64, _cx: &MaySleep) -> Result<Self, OutOfMemory> {
        Err(OutOfMemory)
    }
    fn at(&self) -> Hva {
        match *self {}
    }
}

/// The host.
#[derive(Debug)]
pub struct Test;

impl Platform for Test {
    type Memory = TestMemory;
    type Pages = NoPages;
    type EventFd = NoEventFd;
    type RawMutex = TestLock;
    type RawSpin = TestLock;
    type Waiter = TestWaiter;
    type Timer<C: TimerCallback> = TestTimer;
    type TablePage = CheckedTablePage;
    type Pin = ();
    fn now_ns() -> u64 {
        0
    }
    fn wall_clock_ns() -> u64 {
        0
    }
    fn tsc() -> u64 {
        0
    }
    fn tsc_khz() -> u32 {
        1_000_000
    }
    fn random(_: &mut [u8]) {}
    fn signal_pending() -> bool {
        false
    }
    fn relax(_: &MaySleep) {
        thread::yield_now();
    }
    fn pin() {}
    fn host_frame(hva: Hva, _write: bool, _cx: &MaySleep) -> Result<HostFrame, BadAddress> {
        if let Some(hook) = HOOK.take() {
            hook();
        }
        byte(hva.0, |_| ())?;
        let frame = frame_of(hva).unwrap_or_else(|| {
            let new = NEXT_FRAME.get();
            NEXT_FRAME.set(new + 1);
            place(hva.0 >> 12, new);
            new << 12
        });
        let large = LARGE.with_borrow(|large| large.contains(&(hva.0 >> 21)));
        Ok(HostFrame { hpa: frame, writable: true, shift: if large { 21 } else { 12 }, there: true })
    }
    fn host_frames_now(hva: Hva, hpas: &mut [u64], _cx: &MaySleep) -> usize {
        let known = (0..).map_while(|n| frame_of(hva.add(n << 12)));
        hpas.iter_mut().zip(known).map(|(to, from)| *to = from).count()
    }
    fn log(_: Level, _: fmt::Arguments<'_>) {}
}
