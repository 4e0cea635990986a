//! Allocation that reports failure. The standard `Box::new` and `Arc::new` abort when memory runs out; in a
//! kernel that is a crash that a client could provoke, so the core uses these instead.
use alloc::{boxed::Box, vec::Vec};
use core::{
    fmt,
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering, fence},
};

/// No memory: ENOMEM for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Boxes `value`.
pub fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(1).map_err(|_| OutOfMemory)?;
    vec.push(value);
    let slice: Box<[T]> = vec.into_boxed_slice();
    let array: Box<[T; 1]> = slice.try_into().map_err(|_| OutOfMemory)?;
    // SAFETY: `[T; 1]` has the layout of `T`, and the box owns its pointer.
    Ok(unsafe { Box::from_raw(Box::into_raw(array).cast::<T>()) })
}

/// A vector of `len` clones of `value`.
pub fn try_vec<T: Clone>(value: T, len: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
    vec.resize(len, value);
    Ok(vec)
}

/// Appends `value` to `vec`.
pub fn try_push<T>(vec: &mut Vec<T>, value: T) -> Result<(), OutOfMemory> {
    vec.try_reserve(1).map_err(|_| OutOfMemory)?;
    vec.push(value);
    Ok(())
}

struct Inner<T> {
    count: AtomicUsize,
    value: T,
}

/// A value owned by several holders: `Arc` with a constructor that can fail, and without weak references.
pub struct Shared<T> {
    inner: NonNull<Inner<T>>,
}

// SAFETY: as for Arc: holders on several threads share `&T` and the last one drops `T`.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Allocates room for `value` and moves it there.
    pub fn try_new(value: T) -> Result<Self, OutOfMemory> {
        let inner = try_box(Inner { count: AtomicUsize::new(1), value })?;
        Ok(Self { inner: NonNull::from(Box::leak(inner)) })
    }

    fn inner(&self) -> &Inner<T> {
        // SAFETY: the allocation lives as long as any holder does.
        unsafe { self.inner.as_ref() }
    }

    /// Whether two holders share one value.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        a.inner == b.inner
    }

    /// The number of holders; only a hint when others may clone or drop.
    pub fn holders(&self) -> usize {
        self.inner().count.load(Ordering::Acquire)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // Relaxed is enough: this holder already keeps the value alive. The count cannot overflow: each holder
        // takes a pointer's worth of memory.
        self.inner().count.fetch_add(1, Ordering::Relaxed);
        Self { inner: self.inner }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if self.inner().count.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: this was the last holder, and the pointer came from Box::leak.
            drop(unsafe { Box::from_raw(self.inner.as_ptr()) });
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner().value
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;

    #[test]
    fn shared_drops_once_with_its_last_holder() {
        let probe = Rc::new(());
        let a = Shared::try_new(probe.clone()).unwrap();
        let b = a.clone();
        assert_eq!((a.holders(), Rc::strong_count(&probe)), (2, 2));
        drop(a);
        assert_eq!(Rc::strong_count(&probe), 2);
        drop(b);
        assert_eq!(Rc::strong_count(&probe), 1);
    }

    #[test]
    fn boxes_keep_their_value() {
        assert_eq!(*try_box([7u64; 9]).unwrap(), [7; 9]);
        assert!(try_vec(0u8, usize::MAX).is_err());
    }
}
