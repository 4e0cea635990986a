//! Many entries are written before one flush: a hypervisor that lets a guest write its page tables and looks at them when it
//! flushes has to find each.
use x86::paging::{D, P, U, W};

use super::{GVA, code::*, frame, in_every_format, mark};
use crate::{
    Device,
    guest::{Level::*, Machine},
    runner::{Case, case},
};

pub(in crate::cases) const CASES: &[Case] = &[
    case("many-entries-and-one-flush", "B01 B02", many),
    case("some-entries-by-invlpg-the-others-by-cr3", "B01 B02", some),
    case("rights-that-go-with-one-flush", "B01 B02 B08", rights),
    case("dirty-bits-that-go-with-one-flush", "B01 B02", dirty),
    case("a-table-written-and-then-shown-elsewhere", "B02 B03", elsewhere),
    case("seventy-tables-and-one-flush", "B02 B11", seventy),
];

/// Pages that a case uses.
const PAGES: u64 = 24;

const fn page(n: u64) -> u64 {
    GVA + 4096 * n
}

/// Maps every page to a frame of its own, with these bits; the frames.
fn mapped(m: &mut Machine, bits: u64) -> Vec<u64> {
    let frames: Vec<_> = (0..PAGES).map(|n| frame(m, n)).collect();
    (0..PAGES).for_each(|n| m.map(page(n), frames[n as usize] | bits));
    frames
}

fn many(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = mapped(m, P | W | U);
        for round in 0..4 {
            for n in 0..PAGES {
                s.read(User, page(n), Ok(mark((n + round) % PAGES)));
            }
            for n in 0..PAGES {
                s.entry(m.entry(page(n), 1), frames[((n + round + 1) % PAGES) as usize] | P | W | U);
            }
            s.cr3(m.root);
        }
    });
}

fn some(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = mapped(m, P | W);
        for round in 0..3 {
            (0..PAGES).for_each(|n| _ = s.read(Kernel, page(n), Ok(mark((n + round) % PAGES))));
            for n in 0..PAGES {
                s.entry(m.entry(page(n), 1), frames[((n + round + 1) % PAGES) as usize] | P | W);
            }
            for n in (0..PAGES).step_by(3) {
                s.invlpg(page(n)).read(Kernel, page(n), Ok(mark((n + round + 1) % PAGES)));
            }
            s.cr3(m.root);
        }
        (0..PAGES).for_each(|n| _ = s.read(Kernel, page(n), Ok(mark((n + 3) % PAGES))));
    });
}

fn rights(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = mapped(m, P | W | U);
        for bits in [P | U, P | W, 0] {
            (0..PAGES).for_each(|n| _ = s.write(User, page(n), mark(n), Ok(())));
            (0..PAGES).for_each(|n| _ = s.entry(m.entry(page(n), 1), frames[n as usize] | bits));
            s.cr3(m.root);
            for n in 0..PAGES {
                match bits {
                    0 => s.read(User, page(n), Err(USER)),
                    bits if bits & U == 0 => s.read(User, page(n), Err(USER | PRESENT)),
                    _ => s.read(User, page(n), Ok(mark(n))).write(User, page(n), 0, Err(WRITE | USER | PRESENT)),
                };
            }
            (0..PAGES).for_each(|n| _ = s.entry(m.entry(page(n), 1), frames[n as usize] | P | W | U));
            s.cr3(m.root);
        }
    });
}

/// A guest that cleans its pages takes the bit and flushes; the next write has to set it again.
fn dirty(device: &Device) {
    in_every_format(device, |m, s| {
        let frames = mapped(m, P | W);
        for _ in 0..2 {
            for n in 0..PAGES {
                s.write(Kernel, page(n), mark(n), Ok(())).entry_is(m.entry(page(n), 1), D, D);
            }
            (0..PAGES).for_each(|n| _ = s.entry(m.entry(page(n), 1), frames[n as usize] | P | W));
            s.cr3(m.root);
            (0..PAGES).for_each(|n| _ = s.read(Kernel, page(n), Ok(mark(n))).entry_is(m.entry(page(n), 1), D, 0));
        }
    });
}

/// What was never translated there cannot be an old translation.
fn elsewhere(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let frames = [0, 1].map(|n| frame(m, n));
        m.map(large * 40, frames[0] | P | W | U);
        // So that the tables above are there.
        (41..45).for_each(|n| m.map(large * n, frames[0] | P));
        let (entry, table) = (m.entry(large * 40, 1), m.entry(large * 40, 1) & !0xfff);
        for n in 0..4 {
            s.read(User, large * 40, Ok(mark(n % 2)));
            // No flush: the directory's entry was not used before.
            s.entry(entry, frames[(n as usize + 1) % 2] | P | W | U);
            s.entry(m.entry(large * (41 + n), 2), table | P | W | U);
            s.read(User, large * (41 + n), Ok(mark((n + 1) % 2))).invlpg(large * 40);
        }
    });
}

fn seventy(device: &Device) {
    in_every_format(device, |m, s| {
        let large = m.mode.paging().span(2);
        let frames = [0, 1].map(|n| frame(m, n));
        (40..110).for_each(|n| m.map(large * n, frames[0] | P | W));
        (40..110).for_each(|n| _ = s.read(Kernel, large * n, Ok(mark(0))));
        (40..110).for_each(|n| _ = s.entry(m.entry(large * n, 1), frames[1] | P | W));
        s.cr3(m.root);
        (40..110).for_each(|n| _ = s.read(Kernel, large * n, Ok(mark(1))));
    });
}
