//! A hostile client of the in-process device: ioctls of every kind with any argument on any descriptor, guests that run in
//! this thread or in others, descriptors that are closed and duplicated meanwhile, memory that goes away, and a
//! `kvm_run` that is scribbled over. Nothing panics, crashes or hangs, and nothing is left at the end.
//!
//! A client can destroy its own process by passing addresses of its own memory, as with a stock kernel. So addresses are
//! chosen from a table ([`client::Client::address`]): good buffers, their ends, what cannot be accessed.
mod arguments;
mod client;
mod guest;

use crate::input::Input;
use client::Client;

/// Most actions of one input.
const ACTIONS: usize = 64;

/// One input: actions, until it ends.
pub fn run(data: &[u8]) {
    let before = descriptors();
    let mut input = Input::new(data);
    let mut client = Client::new();
    for _ in 0..ACTIONS {
        if input.is_empty() {
            break;
        }
        act(&mut client, &mut input);
    }
    drop(client);
    assert_eq!(descriptors(), before, "descriptors are left");
}

/// How many descriptors the process has, but for the one that waits for eventfds, which is made when first needed.
fn descriptors() -> usize {
    let waits = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:[eventpoll]")
    };
    std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.flatten().filter(|entry| !waits(entry)).count())
}

fn act(client: &mut Client, input: &mut Input<'_>) {
    match input.u8() % 25 {
        0..8 => client.ioctl(input),
        8 => client.any_ioctl(input),
        9 | 10 => client.run(input),
        11 => client.run_elsewhere(input),
        12 => client.wait(),
        13 => client.close(input),
        14 => client.dup(input),
        15 => client.map(input),
        16 => client.scribble(input),
        17 => client.write_memory(input),
        18 => client.change_memory(input),
        19 => client.read_statistics(input),
        20 => client.kick(input),
        21 => client.signal(),
        22 => client.eventfd(input),
        23 => guest::set_up(client, input),
        _ => client.open(input),
    }
}
