//! The dirty log: one bit for each page of a slot, set by whoever writes the page.
//!
//! Two kinds of writers keep the log complete in two ways. A vCPU that caches a write translation marks the page
//! *before* the first write, and forgets the translation when the flush that a reader of the log asks for reaches it;
//! what it wrote in between belongs to the bit that this reader has just taken. A writer that caches nothing (the
//! core, in [`crate::physical`]) marks *after* the write, so that a reader who took the bits in the middle
//! finds the page in the next log.
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use platform::{Hva, Memory, OutOfMemory};

use crate::SlotError;

/// Words moved to or from the client at once.
const CHUNK: usize = 32;

/// How `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` was enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManualProtect {
    /// `KVM_GET_DIRTY_LOG` only reads; pages are cleaned by `KVM_CLEAR_DIRTY_LOG`.
    pub enabled: bool,
    /// A log begins with every page dirty (`KVM_DIRTY_LOG_INITIALLY_SET`).
    pub initially_set: bool,
}

/// The bits of one slot.
#[derive(Debug)]
pub struct Bitmap {
    pages: u64,
    words: Vec<AtomicU64>,
}

impl Bitmap {
    /// A log for `pages` pages, all clean or all dirty.
    pub fn new(pages: u64, dirty: bool) -> Result<Self, OutOfMemory> {
        let count = usize::try_from(pages.div_ceil(64)).map_err(|_| OutOfMemory)?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        words.extend((0..count).map(|_| AtomicU64::new(if dirty { u64::MAX } else { 0 })));
        if dirty
            && !pages.is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last.get_mut() = (1 << (pages % 64)) - 1;
        }
        Ok(Self { pages, words })
    }

    fn word(&self, page: u64) -> Option<&AtomicU64> {
        if page >= self.pages {
            return None;
        }
        self.words.get(usize::try_from(page / 64).ok()?)
    }

    /// Marks a page of the slot; one out of range is ignored.
    #[inline]
    pub fn mark(&self, page: u64) {
        if let Some(word) = self.word(page) {
            let bit = 1 << (page % 64);
            // A look first: most marks find the bit set, and a plain load keeps the cache line shared.
            if word.load(Ordering::SeqCst) & bit == 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// Whether a page is marked.
    pub fn is_marked(&self, page: u64) -> bool {
        self.word(page).is_some_and(|word| word.load(Ordering::SeqCst) & 1 << (page % 64) != 0)
    }

    /// Copies the bits to the client, one u64 for each 64 pages, and takes them when `take` is set; says whether any
    /// was set. When it fails, the chunk that could not be copied stays in the log, but the chunks before it have been
    /// taken: the caller has to flush write translations then, too.
    ///
    /// `taken` is called with the first page of each word of which bits have been taken, and the bits.
    pub(crate) fn copy_out<M: Memory>(
        &self,
        to: Hva,
        take: bool,
        mut taken: impl FnMut(u64, u64),
    ) -> Result<bool, SlotError> {
        let mut any = false;
        let mut at = to;
        let mut page = 0;
        for words in self.words.chunks(CHUNK) {
            let mut bytes = [0u8; CHUNK * 8];
            for (word, out) in words.iter().zip(bytes.chunks_exact_mut(8)) {
                let bits = word.load(Ordering::SeqCst);
                let bits = if take && bits != 0 { word.swap(0, Ordering::SeqCst) } else { bits };
                any |= bits != 0;
                out.copy_from_slice(&bits.to_le_bytes());
            }
            let copied = bytes.get(..words.len() * 8).unwrap_or_default();
            if M::copy_to(at, copied).is_err() {
                if take {
                    for (word, bytes) in words.iter().zip(bytes.as_chunks().0) {
                        word.fetch_or(u64::from_le_bytes(*bytes), Ordering::SeqCst);
                    }
                }
                return Err(SlotError::BadAddress);
            }
            for bytes in copied.as_chunks().0 {
                let bits = u64::from_le_bytes(*bytes);
                if take && bits != 0 {
                    taken(page, bits);
                }
                page += 64;
            }
            at = at.add(copied.len() as u64);
        }
        Ok(any)
    }

    /// Cleans the pages `first..first + count` whose bit is set in the client's bitmap (bit 0 of it is page `first`);
    /// says whether any was dirty. When it fails, the pages whose bits could be read are clean already.
    /// `taken` is as for [`Self::copy_out`].
    pub(crate) fn clear<M: Memory>(
        &self,
        first: u64,
        count: u64,
        from: Hva,
        mut taken: impl FnMut(u64, u64),
    ) -> Result<bool, SlotError> {
        let end = first.checked_add(count).filter(|end| *end <= self.pages).ok_or(SlotError::Invalid)?;
        if !first.is_multiple_of(64) || (!count.is_multiple_of(64) && end != self.pages) {
            return Err(SlotError::Invalid);
        }
        let mut any = false;
        let mut page = first;
        while page < end {
            let bits = (end - page).min(64);
            let mut bytes = [0u8; 8];
            let used = usize::try_from(bits.div_ceil(8)).unwrap_or(8);
            M::copy_from(from.add((page - first) / 8), bytes.get_mut(..used).unwrap_or_default())
                .map_err(|_| SlotError::BadAddress)?;
            let mut mask = u64::from_le_bytes(bytes);
            if bits < 64 {
                mask &= (1 << bits) - 1;
            }
            if let Some(word) = self.word(page)
                && mask != 0
            {
                let bits = word.fetch_and(!mask, Ordering::SeqCst) & mask;
                if bits != 0 {
                    any = true;
                    taken(page, bits);
                }
            }
            page += 64;
        }
        Ok(any)
    }
}
