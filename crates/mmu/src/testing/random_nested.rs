//! Random operations on nested tables, chosen by bytes: accesses at guest-physical addresses, and everything that the host and
//! the client may do beside them. A fuzzer's input is such bytes.
use abi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};

use super::{Access, Machine, random::Choices};
use crate::{shadow::EntryFormat, slots::LARGE_FRAMES};

/// Where the client keeps the slots' memory: a multiple of 2 MiB.
const CLIENT: u64 = 0x5000_0000_0000;
/// Large pages of the first slot.
const LARGE: u64 = 3;
const FRAMES: u64 = LARGE * LARGE_FRAMES;
/// The second slot: a large page and a little more.
const OTHER: u64 = CLIENT + (0x1000 << 12);
const OTHER_FRAMES: u64 = LARGE_FRAMES + 8;
const CPUS: usize = 2;

/// Frames around the ends of large pages, most of the time.
fn frame(choices: &mut Choices<'_>) -> u64 {
    match choices.byte() % 8 {
        0 => choices.below(FRAMES + 16),
        1 => 0x1000 + choices.below(OTHER_FRAMES + 8),
        2 => 0x2000 + choices.below(16),
        _ => choices.below(LARGE + 1) * LARGE_FRAMES + choices.pick(&[0, 1, 2, 7, 255, 510, 511]),
    }
}

/// A few pages of the client, or a few large ones.
fn pages(choices: &mut Choices<'_>) -> (u64, u64) {
    let start = if choices.one_in(3) { OTHER } else { CLIENT };
    let first = choices.below(LARGE) * LARGE_FRAMES + choices.pick(&[0, 1, 7, 256, 511]);
    let count = choices.pick(&[1, 1, 2, 8, 512, 513, 2000]);
    (start + (first << 12), count)
}

fn host(machine: &mut Machine, choices: &mut Choices<'_>, logged: &mut bool) {
    match choices.byte() % 16 {
        0 | 1 => {
            let (at, count) = pages(choices);
            machine.invalidate(at, count);
        }
        2 => {
            let (at, count) = pages(choices);
            machine.invalidate_in_fault(at, count);
        }
        3..=5 => machine.make_large(pages(choices).0),
        6 => {
            let (at, count) = pages(choices);
            machine.take_young(at, count);
        }
        7 | 8 => {
            *logged = !*logged;
            machine.set_slot(0, if *logged { KVM_MEM_LOG_DIRTY_PAGES } else { 0 }, 0, FRAMES, CLIENT);
        }
        9 | 10 => {
            machine.get_dirty_log(0);
        }
        11 => {
            // Another slot, of another kind each time; at times where it is not aligned as in the client.
            machine.set_slot(1, 0, 0, 0, 0);
            let flags = choices.pick(&[0, KVM_MEM_READONLY, KVM_MEM_LOG_DIRTY_PAGES]);
            let gfn = choices.pick(&[0x1000, 0x1001, FRAMES, 0x1200]);
            machine.set_slot(1, flags, gfn << 12, OTHER_FRAMES, OTHER);
        }
        12 => {
            let (window, pages) = (choices.pick(&[0x2000, 0x1ff, 0x200, 0x400]), choices.below(4));
            // Not in a window: the machine finds its way back from a slot's address only if nothing hides it.
            let target = choices.pick(&[0x10, 0x1f0, 0x300, 0x5fe, 0x1003]);
            machine.set_alias(choices.byte() as u32 % 2, window << 12, pages, target << 12);
        }
        13 => machine.set_limit(choices.pick(&[0, 64, 1000])),
        _ => drop(machine.shrink(choices.below(8) as usize)),
    }
}

/// Runs the operations that `data` stands for. Panics if anything is not as it should be.
pub fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    // Either format, by what changes no operation.
    let format = if data.len().is_multiple_of(2) { EntryFormat::X86 } else { EntryFormat::Ept };
    let mut machine = Machine::nested(CPUS, format);
    let mut logged = false;
    machine.set_slot(0, 0, 0, FRAMES, CLIENT);
    machine.set_slot(1, 0, 0x1000 << 12, OTHER_FRAMES, OTHER);
    while !choices.is_empty() {
        if choices.one_in(4) {
            host(&mut machine, &mut choices, &mut logged);
        } else {
            let cpu = choices.byte() as usize % CPUS;
            let gva = frame(&mut choices) << 12 | choices.byte() << 3;
            let write = if choices.one_in(2) { Some(choices.byte()) } else { None };
            let fetch = write.is_none() && choices.one_in(4);
            machine.access(cpu, Access { write, fetch, ..Access::read(gva) });
        }
        machine.check();
    }
}
