//! Reading and writing guest-physical memory through the slots.
use platform::{Memory, Platform, Word};
use x86::paging::{PAGE_SHIFT, PAGE_SIZE};

use crate::{Frame, MemoryError, Snapshot, View, walk::TableMemory};

/// Guest-physical memory as a snapshot of the slots shows it.
///
/// Writes are marked in the dirty log after they are made, also those that failed halfway: see [`crate::dirty`].
pub trait PhysMem {
    /// How the client's memory is reached.
    type Memory: Memory;
    /// The frame `gfn`; None where there is no memory.
    fn frame(&self, gfn: u64) -> Option<Frame>;
    /// Marks `gfn` in the dirty log of its slot, if it has one.
    fn mark(&self, gfn: u64);

    /// Reads a word, which may cross a page.
    #[inline]
    fn load<T: Word>(&self, gpa: u64) -> Result<T, MemoryError> {
        let offset = gpa % PAGE_SIZE;
        if offset + T::BYTES > PAGE_SIZE {
            let mut bytes = [0; 16];
            self.read(gpa, bytes.get_mut(..T::BYTES as usize).unwrap_or_default())?;
            let value = u128::from_le_bytes(bytes);
            return Ok(T::from_halves(value as u64, (value >> 64) as u64));
        }
        let frame = self.frame(gpa >> PAGE_SHIFT).ok_or(MemoryError::NoMemory(gpa))?;
        Self::Memory::load(frame.hva.add(offset)).map_err(|_| MemoryError::BadAddress(gpa))
    }

    /// Writes a word, which may cross a page. Nothing is written if either page has no memory or is read-only.
    #[inline]
    fn store<T: Word>(&self, gpa: u64, value: T) -> Result<(), MemoryError> {
        let offset = gpa % PAGE_SIZE;
        if offset + T::BYTES > PAGE_SIZE {
            let bytes = (u128::from(value.low()) | u128::from(value.high()) << 64).to_le_bytes();
            self.writable(gpa)?;
            self.writable((gpa | (PAGE_SIZE - 1)).wrapping_add(1))?;
            return self.write(gpa, bytes.get(..T::BYTES as usize).unwrap_or_default());
        }
        let frame = self.writable(gpa)?;
        let done = Self::Memory::store(frame.hva.add(offset), value);
        if frame.log_dirty {
            self.mark(gpa >> PAGE_SHIFT);
        }
        done.map_err(|_| MemoryError::BadAddress(gpa))
    }

    /// The locked compare-and-exchange: writes `new` if the word is `old`, and returns what it was.
    #[inline]
    fn compare_exchange<T: Word>(&self, gpa: u64, old: T, new: T) -> Result<T, MemoryError> {
        let offset = gpa % PAGE_SIZE;
        let frame = self.writable(gpa)?;
        let mut second = None;
        if offset + T::BYTES > PAGE_SIZE {
            let next = (gpa | (PAGE_SIZE - 1)).wrapping_add(1);
            let behind = self.writable(next)?;
            // Two pages that are neighbours in the client too are one to the host's processor.
            if behind.hva != frame.hva.add(PAGE_SIZE) {
                return Err(MemoryError::Split(gpa));
            }
            second = behind.log_dirty.then_some(next);
        }
        let done = Self::Memory::compare_exchange(frame.hva.add(offset), old, new);
        if frame.log_dirty {
            self.mark(gpa >> PAGE_SHIFT);
        }
        if let Some(next) = second {
            self.mark(next >> PAGE_SHIFT);
        }
        done.map_err(|_| MemoryError::BadAddress(gpa))
    }

    /// Reads `to.len()` bytes. On failure part of `to` may have been written.
    fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = to;
        let mut at = gpa;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(page_part(at, rest.len()));
            let frame = self.frame(at >> PAGE_SHIFT).ok_or(MemoryError::NoMemory(at))?;
            Self::Memory::copy_from(frame.hva.add(at % PAGE_SIZE), now).map_err(|_| MemoryError::BadAddress(at))?;
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// Writes `from`. On failure the pages before the reported address, and perhaps part of its own, are written.
    fn write(&self, gpa: u64, from: &[u8]) -> Result<(), MemoryError> {
        let mut rest = from;
        let mut at = gpa;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(page_part(at, rest.len()));
            let frame = self.writable(at)?;
            let done = Self::Memory::copy_to(frame.hva.add(at % PAGE_SIZE), now);
            if frame.log_dirty {
                self.mark(at >> PAGE_SHIFT);
            }
            done.map_err(|_| MemoryError::BadAddress(at))?;
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// The frame that holds `gpa`, if it can be written.
    #[inline]
    fn writable(&self, gpa: u64) -> Result<Frame, MemoryError> {
        match self.frame(gpa >> PAGE_SHIFT) {
            None => Err(MemoryError::NoMemory(gpa)),
            Some(frame) if frame.read_only => Err(MemoryError::ReadOnly(gpa)),
            Some(frame) => Ok(frame),
        }
    }
}

/// How many of `len` bytes at `gpa` lie in its page.
fn page_part(gpa: u64, len: usize) -> usize {
    let room = PAGE_SIZE - gpa % PAGE_SIZE;
    usize::try_from(room).unwrap_or(len).min(len)
}

impl<P: Platform> PhysMem for Snapshot<P> {
    type Memory = P::Memory;
    #[inline]
    fn frame(&self, gfn: u64) -> Option<Frame> {
        self.resolve(gfn)
    }
    #[inline]
    fn mark(&self, gfn: u64) {
        self.mark_dirty(gfn);
    }
}

impl<P: Platform> PhysMem for View<'_, P> {
    type Memory = P::Memory;
    #[inline]
    fn frame(&self, gfn: u64) -> Option<Frame> {
        self.resolve(gfn)
    }
    #[inline]
    fn mark(&self, gfn: u64) {
        self.mark_dirty(gfn);
    }
}

impl<T: PhysMem> TableMemory for T {
    #[inline]
    fn load_entry<W: Word>(&self, gpa: u64) -> Result<W, MemoryError> {
        self.load(gpa)
    }
    #[inline]
    fn exchange_entry<W: Word>(&self, gpa: u64, old: W, new: W) -> Result<W, MemoryError> {
        self.compare_exchange(gpa, old, new)
    }
}
