//! Statistics in debugfs: `kvm/NAME` is the sum over all VMs, `kvm/PID-NUMBER/NAME` one VM's.
use alloc::vec::Vec;
use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering::SeqCst},
};

use platform::{OutOfMemory, fallible::try_push};

use crate::{
    cpu::{Cpu, with_cpu},
    glue::{self, Data, Opaque},
    machines,
    vm::bound,
};

/// What a file shows: a statistic of a VM, or of all.
struct Shown {
    object: AtomicPtr<core::ffi::c_void>,
    index: usize,
}

/// A folder with a file for each statistic.
pub struct Files {
    shown: Vec<Shown>,
    folder: AtomicPtr<Opaque>,
}

/// Bytes of a name, with the zero behind it.
const NAME: usize = 48;

impl Files {
    /// For `count` statistics; nothing is to be seen yet.
    pub fn new(count: usize) -> Result<Self, OutOfMemory> {
        let mut shown = Vec::new();
        for index in 0..count {
            try_push(&mut shown, Shown { object: AtomicPtr::new(ptr::null_mut()), index })?;
        }
        Ok(Self { shown, folder: AtomicPtr::new(ptr::null_mut()) })
    }

    /// Shows those of the VM `object`, or sums if that is null. `self` stays where it is until [`Self::hide`]. What cannot be shown is
    /// not: nobody depends on it.
    pub fn show(&self, object: Data, number: u32, names: impl Iterator<Item = &'static str>) {
        let folder =
            if object.is_null() { glue::rekvm_statistics_root() } else { glue::rekvm_statistics_folder(number) };
        self.folder.store(folder, SeqCst);
        for (shown, name) in self.shown.iter().zip(names) {
            shown.object.store(object, SeqCst);
            let mut text = [0; NAME];
            for (to, from) in text.iter_mut().take(NAME - 1).zip(name.bytes()) {
                *to = from;
            }
            // SAFETY: the text ends with a zero, and what is shown stays until the folder has gone.
            unsafe { glue::rekvm_statistics_file(folder, text.as_ptr(), ptr::from_ref(shown).cast_mut().cast()) };
        }
    }

    /// Nobody reads any of them when this returns.
    pub fn hide(&self) {
        let folder = self.folder.swap(ptr::null_mut(), SeqCst);
        // SAFETY: made by `show`.
        unsafe { glue::rekvm_statistics_remove(folder) };
    }
}

fn value<B: Cpu>(shown: &Shown) -> u64 {
    let object = shown.object.load(SeqCst);
    if object.is_null() {
        return machines::total::<B>(shown.index);
    }
    // SAFETY: a VM's files go before it does.
    unsafe { bound::<B>(object) }.statistics().value(shown.index)
}

/// The value that a file shows.
///
/// # Safety
/// `data` was given to `rekvm_statistics_file`, and its folder is there.
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_statistic(data: Data) -> u64 {
    // SAFETY: as the caller promises.
    let shown = unsafe { &*data.cast::<Shown>() };
    with_cpu!(value(shown))
}
