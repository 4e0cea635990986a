//! Tests of the core as a whole: a client in front, a scripted processor behind.
mod clock;
mod coalesced;
mod eventfds;
mod events;
mod exits;
mod flushes;
mod hostile;
mod ioctls;
mod lifecycle;
mod mmio;
mod msr_exits;
mod requests;
mod split;
mod string_io;
mod tpr;
