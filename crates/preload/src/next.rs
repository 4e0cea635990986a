//! The functions that would be called if we were not here: the C library's, or those of another library that stands
//! before it.
use std::{
    ffi::CStr,
    sync::atomic::{AtomicUsize, Ordering},
};

/// A function by name, looked up when it is first called: other libraries call before our own initialisation.
pub(crate) struct Next {
    name: &'static CStr,
    at: AtomicUsize,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, at: AtomicUsize::new(0) }
    }

    /// Its address; None where the C library has no such function.
    pub(crate) fn address(&self) -> Option<usize> {
        let known = self.at.load(Ordering::Relaxed);
        if known != 0 {
            return Some(known);
        }
        // SAFETY: the name is a C string.
        let at = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) }.addr();
        self.at.store(at, Ordering::Relaxed);
        (at != 0).then_some(at)
    }
}

/// Calls the next function `$name` of type `$type`; a C library without it answers ENOSYS.
macro_rules! next {
    ($name:ident: $type:ty, $($arg:expr),*) => {{
        static NEXT: $crate::next::Next =
            match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => $crate::next::Next::new(name),
                Err(_) => panic!("a name holds no zero byte"),
            };
        match NEXT.address() {
            Some(address) => {
                // SAFETY: the C library documents the function with this type.
                let function = unsafe { std::mem::transmute::<usize, $type>(address) };
                // SAFETY: the client's own call.
                unsafe { function($($arg),*) }
            }
            None => $crate::fail(libc::ENOSYS) as _,
        }
    }};
}
pub(crate) use next;
