//! What the tests of this crate run on: a deterministic host, a scripted processor, and a client that speaks ioctls.
mod client;
pub(crate) mod host;
pub(crate) mod script;
mod walk;

/// All memory of this crate's tests.
#[global_allocator]
static MEMORY: platform::scarce::Scarce = platform::scarce::Scarce;

pub(crate) use client::{CODE, DIRECTORY, Machine, RAM, TABLE, cx};
pub(crate) use walk::{below, entries};
