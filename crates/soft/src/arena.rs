//! A fixed piece of memory that is filled from its start and emptied as a whole. Its elements never move, and the
//! operating system provides a page only when the first element in it is written.
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use platform::OutOfMemory;

/// Room for a fixed number of `T`s.
#[derive(Debug)]
pub struct Arena<T: Copy> {
    start: NonNull<T>,
    capacity: usize,
    len: usize,
}

// SAFETY: an arena owns its elements, as a Vec does.
unsafe impl<T: Copy + Send> Send for Arena<T> {}

impl<T: Copy> Arena<T> {
    /// Room for `capacity` (at least one) elements.
    pub fn new(capacity: usize) -> Result<Self, OutOfMemory> {
        let layout = Layout::array::<T>(capacity).map_err(|_| OutOfMemory)?;
        if layout.size() == 0 {
            return Err(OutOfMemory);
        }
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) }.cast::<T>()).ok_or(OutOfMemory)?;
        Ok(Self { start, capacity, len: 0 })
    }

    /// Appends `values` and returns where they are until [`Arena::clear`]; None if there is no room.
    pub fn push(&mut self, values: &[T]) -> Option<NonNull<T>> {
        if self.capacity - self.len < values.len() {
            return None;
        }
        // SAFETY: `len + values.len()` is at most the capacity, and nobody else has seen the elements from `len` on
        // since they were last given out and cleared.
        unsafe {
            let at = self.start.add(self.len);
            at.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len());
            self.len += values.len();
            Some(at)
        }
    }

    /// How many elements there are.
    pub fn used(&self) -> usize {
        self.len
    }

    /// Forgets every element. Pointers to them must not be used any more.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl<T: Copy> Drop for Arena<T> {
    fn drop(&mut self) {
        if let Ok(layout) = Layout::array::<T>(self.capacity) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_arena_takes_no_more() {
        let mut arena = Arena::new(3).unwrap();
        let first = arena.push(&[1u32, 2]).unwrap();
        assert!(arena.push(&[3, 4]).is_none());
        assert!(arena.push(&[3]).is_some());
        // SAFETY: three elements were pushed.
        assert_eq!(unsafe { first.add(2).read() }, 3);
        arena.clear();
        assert_eq!((arena.used(), arena.push(&[7]).unwrap()), (0, first));
    }
}
