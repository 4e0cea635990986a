//! A value that is replaced as a whole and read without a lock: memory slots, routes, filters.
//!
//! Readers have numbers (one per vCPU). A reader enters a section, uses the current snapshot, and leaves; it
//! never sleeps inside. The writer swaps the pointer, then waits until no reader is inside a section that
//! began before the swap, then frees the old snapshot. This is sleepable RCU with a counter per reader.
use alloc::{boxed::Box, vec::Vec};
use core::{
    ops::Deref,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

use crate::{MaySleep, OutOfMemory, Platform, fallible::try_box};

/// One reader's mark on a cache line of its own: 0 outside, else the generation that it entered in.
#[repr(align(64))]
struct Reader(AtomicU64);

/// The current snapshot of `T`.
pub struct Published<T> {
    current: AtomicPtr<T>,
    generation: AtomicU64,
    readers: Vec<Reader>,
}

impl<T: Send + Sync> Published<T> {
    /// Publishes `value` for readers 0 to `readers - 1`.
    pub fn new(value: T, readers: usize) -> Result<Self, OutOfMemory> {
        let mut marks = Vec::new();
        marks.try_reserve_exact(readers).map_err(|_| OutOfMemory)?;
        marks.extend((0..readers).map(|_| Reader(AtomicU64::new(0))));
        Ok(Self {
            current: AtomicPtr::new(Box::into_raw(try_box(value)?)),
            generation: AtomicU64::new(1),
            readers: marks,
        })
    }

    /// Enters a read section as reader `index`. A reader has one section at a time; an index out of range or
    /// already inside gets None.
    #[inline]
    pub fn read(&self, index: usize) -> Option<Section<'_, T>> {
        let mark = &self.readers.get(index)?.0;
        // Two threads that wrongly use one index are visible instead of unsound: the mark of the one inside stays, as
        // the writer waits for it.
        let generation = self.generation.load(Ordering::Acquire);
        mark.compare_exchange(0, generation, Ordering::SeqCst, Ordering::Relaxed).ok()?;
        fence(Ordering::SeqCst);
        Some(Section { value: self.current.load(Ordering::SeqCst), mark })
    }

    /// Replaces the value and waits until no reader can see the old one, which is then returned. Writers
    /// exclude each other with a lock of their own.
    pub fn replace<P: Platform>(&self, new: Box<T>, cx: &MaySleep) -> Box<T> {
        let old = self.current.swap(Box::into_raw(new), Ordering::SeqCst);
        let next = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        for reader in &self.readers {
            loop {
                let seen = reader.0.load(Ordering::SeqCst);
                if seen == 0 || seen >= next {
                    break;
                }
                P::relax(cx);
            }
        }
        // SAFETY: the pointer came from Box::into_raw; it is no longer published, and every section that could
        // have loaded it has ended.
        unsafe { Box::from_raw(old) }
    }

    /// The value, for a caller that excludes writers by the writers' lock.
    ///
    /// # Safety
    /// No `replace` runs while the reference lives.
    pub unsafe fn get_locked(&self) -> &T {
        // SAFETY: the published pointer is valid until replaced.
        unsafe { &*self.current.load(Ordering::Acquire) }
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        let current = core::mem::replace(self.current.get_mut(), ptr::null_mut());
        // SAFETY: unique access: no section exists, and the pointer came from Box::into_raw.
        drop(unsafe { Box::from_raw(current) });
    }
}

/// A read section: the snapshot stays valid while it lives.
pub struct Section<'a, T> {
    value: *const T,
    mark: &'a AtomicU64,
}

impl<T> Deref for Section<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: replace frees the value only after this section's mark is gone.
        unsafe { &*self.value }
    }
}

impl<T> Drop for Section<'_, T> {
    fn drop(&mut self) {
        self.mark.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_number_is_refused_and_keeps_its_holders_mark() {
        let published = Published::new(7, 1).unwrap();
        let section = published.read(0).unwrap();
        // As by a writer that now waits for the section.
        published.generation.fetch_add(1, Ordering::SeqCst);
        assert!(published.read(0).is_none());
        assert_eq!(published.readers[0].0.load(Ordering::SeqCst), 1);
        assert_eq!(*section, 7);
        drop(section);
        assert!(published.read(0).is_some() && published.read(1).is_none());
    }
}
