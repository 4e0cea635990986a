//! What the tests of this crate run on: a deterministic host, a scripted processor, and a client that speaks ioctls.
mod client;
pub(crate) mod host;
pub(crate) mod script;
mod walk;

pub(crate) use client::{CODE, Machine, RAM, cx};
pub(crate) use walk::{below, entries};
