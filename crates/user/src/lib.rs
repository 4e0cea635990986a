//! rekvm in an ordinary process: the user-space [`Platform`](::platform::Platform), and /dev/kvm as a library.
//!
//! [`User`] gives the core what it needs from a host: memory of the client that may vanish at any moment ([`memory`],
//! [`fault`]), locks, sleeping and waking, signals, timers and clocks. [`device`] puts the core and the software CPU
//! behind a boundary that looks like the system call's: open, ioctl, mmap, close, dup.
//!
//! Almost everything here that is `unsafe` is a system call or one of the memory accessors.

pub mod cpuid;
pub mod device;
mod eventfd;
pub mod fault;
pub mod futex;
mod lock;
mod log;
pub mod memory;
mod pages;
mod per_process;
mod platform;
pub mod signals;
pub mod sys;
mod time;
mod timer;
mod wait;

pub use eventfd::ClientEventFd;
pub use lock::FutexLock;
pub use memory::ClientMemory;
pub use pages::SharedPages;
pub use platform::User;
pub use timer::ThreadTimer;
pub use wait::FutexWaiter;
