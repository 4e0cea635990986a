//! Which entries of a page are present: most pages have few, and the others need not be looked at.
use platform::table::TABLE_ENTRIES;

const WORDS: usize = TABLE_ENTRIES / 64;

/// A bit for each entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Present([u64; WORDS]);

impl Present {
    pub(super) const NONE: Self = Self([0; WORDS]);

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Entry `index` is there, or is not. What was said of it before.
    #[inline]
    pub(super) fn put(&mut self, index: usize, there: bool) -> bool {
        let (word, bit) = (&mut self.0[index / 64 % WORDS], 1 << (index % 64));
        let was = *word & bit != 0;
        *word = if there { *word | bit } else { *word & !bit };
        was
    }

    /// The first entry that is there, from `index` on.
    #[inline]
    pub(super) fn next(&self, index: usize) -> Option<usize> {
        let mut from = u64::MAX << (index % 64);
        for (at, word) in self.0.iter().enumerate().skip(index / 64) {
            let word = word & from;
            if word != 0 {
                return Some(at * 64 + word.trailing_zeros() as usize);
            }
            from = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    #[test]
    fn entries_are_found_in_their_order() {
        let mut present = Present::NONE;
        assert!(present.is_empty() && present.next(0).is_none());
        let entries = [0, 1, 63, 64, 200, 448, 511];
        for index in entries {
            assert!(!present.put(index, true) && present.put(index, true));
        }
        let found = |present: Present| -> Vec<_> {
            core::iter::successors(present.next(0), |index| present.next(index + 1)).collect()
        };
        assert_eq!(found(present), entries);
        assert!(present.put(64, false) && !present.put(64, false));
        assert_eq!(found(present), vec![0, 1, 63, 200, 448, 511]);
        assert_eq!((present.next(449), present.next(512)), (Some(511), None));
    }
}
