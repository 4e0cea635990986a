//! Tests of the core as a whole: a client in front, a scripted processor behind.
mod events;
mod exits;
mod ioctls;
mod lifecycle;
mod mmio;
mod requests;
