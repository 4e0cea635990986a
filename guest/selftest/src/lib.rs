//! What the guest's self-test and the host that started it agree on.

/// Printed by the guest's init, followed by `uname -a` and `cpus=N`.
pub const UP: &str = "REKVM-GUEST-UP";
/// The last line of a self-test in which everything held.
pub const OK: &str = "REKVM-SELFTEST-OK";
/// Begins a line for each round of a busy guest, followed by its number and `ok` or `DIFFERS`.
pub const ROUND: &str = "REKVM-ROUND";
/// Begins a line that tells what something cost: its name, a colon and a figure follow.
pub const COST: &str = "REKVM-COST";
/// How many bytes the self-test writes at the start of the disk.
pub const DISK_BYTES: usize = 1 << 20;
/// The seed of the pattern that it writes there.
pub const DISK_SEED: u32 = 0x5eed;

/// A byte pattern in which every page differs.
pub fn pattern(size: usize, seed: u32) -> Vec<u8> {
    let mut x = seed | 1;
    (0..size)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .collect()
}
