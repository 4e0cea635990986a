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
mod nested_state;
mod requests;
mod split;
mod string_io;
mod sync_regs;
mod tpr;
