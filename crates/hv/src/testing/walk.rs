//! The core's tables as a processor would walk them.
use core::sync::atomic::Ordering::SeqCst;
use platform::table::CheckedTablePage;
use std::vec::Vec;
use x86::paging as bits;

use super::host::Host;
use crate::backend::Env;

/// Where an entry leads.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Entry `index` of the table at `hpa`; the table must not have been freed.
fn entry(hpa: u64, index: usize) -> u64 {
    CheckedTablePage::live_entry(hpa, index).load(SeqCst)
}

/// The entries met on the way to address `at`, from the root's down: to the one of the last level, or to one that is not
/// present.
pub(crate) fn entries(env: &Env<'_, Host>, at: u64) -> Vec<u64> {
    let mut met = Vec::new();
    let mut table = env.root.hpa;
    for level in (1..=env.root.levels).rev() {
        let value = entry(table, (at >> (3 + 9 * u32::from(level)) & 511) as usize);
        met.push(value);
        if value & bits::P == 0 {
            break;
        }
        table = value & FRAME;
    }
    met
}

/// Where the entries of the table at `hpa` lead.
pub(crate) fn below(hpa: u64, entries: impl Iterator<Item = usize>) -> Vec<u64> {
    entries.map(|n| entry(hpa, n) & FRAME).collect()
}
