//! What the hypervisor core asks of the machine that hosts it.
//!
//! The core never names an operating system. Everything that it needs from one (memory of the client,
//! locks, time, timers, sleeping and waking, the pending signal) comes through the trait [`Platform`],
//! which is implemented once for user space (crate `user`), once for the Linux kernel (the module) and
//! once, deterministically, for tests. It is a static generic everywhere: no call of it is indirect.
//!
//! Besides the trait, the crate holds the few types that the core needs because the kernel has no `std`:
//! fallible boxes and shared pointers ([`fallible`]), locks that know their rank ([`lock`]), and a value
//! that is replaced as a whole and read without a lock ([`published`]).
#![no_std]
extern crate alloc;

pub mod context;
pub mod eventfd;
pub mod fallible;
pub mod hardware;
pub mod lock;
pub mod memory;
pub mod published;
#[cfg(any(test, feature = "testing"))]
pub mod scarce;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;
pub mod time;
pub mod wait;

pub use context::{Atomic, MaySleep};
pub use eventfd::{EventCallback, EventFd, EventFdError};
pub use fallible::{OutOfMemory, Shared};
pub use hardware::Hardware;
pub use lock::{Mutex, RawLock, SpinLock};
pub use memory::{BadAddress, Hva, Memory, Pages, Word};
pub use published::Published;
pub use table::{HeapTablePage, HostFrame, TablePage};
pub use time::{Timer, TimerCallback};
pub use wait::{WaitEnd, Waiter};

/// The machine that hosts us. All methods are associated functions: there is one host per process (or kernel).
pub trait Platform: Sized + Send + Sync + 'static {
    /// Access to the client's address space, where guest memory lives.
    type Memory: Memory;
    /// Memory that belongs to a VM and that its client can map.
    type Pages: Pages;
    /// An eventfd of the client.
    type EventFd: EventFd;
    /// A lock under which its holder may sleep.
    type RawMutex: RawLock;
    /// A lock that is held for moments only, also in interrupt context.
    type RawSpin: RawLock;
    /// Where a vCPU sleeps and is woken.
    type Waiter: Waiter;
    /// A one-shot timer that calls `C`.
    type Timer<C: TimerCallback>: Timer<C>;
    /// A page of paging structures.
    type TablePage: TablePage;
    /// While it lives, the calling thread keeps its processor; it is dropped on the thread that got it.
    type Pin;

    /// Monotonic nanoseconds.
    fn now_ns() -> u64;
    /// Nanoseconds since the epoch (1970), for the guest's wall clock.
    fn wall_clock_ns() -> u64;
    /// The host's time-stamp counter.
    fn tsc() -> u64;
    /// Its frequency in kHz; 0 if the host has no usable one.
    fn tsc_khz() -> u32;
    /// Fills `buf` with random bytes.
    fn random(buf: &mut [u8]);
    /// Whether a signal that is to end KVM_RUN is pending for the calling thread.
    fn signal_pending() -> bool;
    /// Gives the processor to others if they wait for it; between two entries of a guest.
    fn relax(cx: &MaySleep);
    /// Keeps the processor: others wait in a loop for a vCPU that is inside the guest, and must not do so while its thread
    /// waits for a processor. Nothing sleeps while the answer lives.
    fn pin() -> Self::Pin;
    /// One turn of a loop that waits for another processor for moments only, in any context.
    fn spin() {
        core::hint::spin_loop();
    }
    /// The host's page behind the client's page at `hva`, brought in if it is not there, and writable if `write` is
    /// set. It stays the page behind that address until the host says otherwise through an invalidation that covers
    /// the address; nothing is pinned.
    fn host_frame(hva: Hva, write: bool, cx: &MaySleep) -> Result<HostFrame, BadAddress>;
    /// The host's pages behind those of the client's that follow each other from `hva` on: into `hpas` as many as are there,
    /// and can be written as they are, without waiting for anything; how many. They stay as long as those of
    /// [`Self::host_frame`].
    fn host_frames_now(hva: Hva, hpas: &mut [u64], cx: &MaySleep) -> usize;
    /// A line for the operator's log; rate limited by the platform.
    fn log(level: Level, message: core::fmt::Arguments<'_>);
}

/// How much an operator should care about a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed that should not.
    Error,
    /// A guest or client did something odd.
    Warning,
    /// For people who look.
    Info,
}
