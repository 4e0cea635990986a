//! A VM and the address space that its guest's memory lies in: that of the process that made it. Only that process may
//! use it, and the VM hears of every change of that address space (MMU notifier) until it goes.
use core::{
    ffi::c_void,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use hv::{Errno, StatsFile};
use platform::{Hva, fallible::Shared};

use crate::{
    cpu::{Cpu, with_cpu},
    errno,
    glue::{self, Data, Opaque},
    heap::Raw,
    machines::{self, Link},
    statistics::Files,
};

/// See the module.
pub struct Bound<B: Cpu> {
    statistics: StatsFile<B>,
    files: Files,
    link: Link,
    listener: Raw,
    listening: AtomicBool,
    /// Compared only.
    process: *const Opaque,
}

// SAFETY: the pointer is compared only; the rest is shared already.
unsafe impl<B: Cpu> Send for Bound<B> {}
// SAFETY: as above.
unsafe impl<B: Cpu> Sync for Bound<B> {}

impl<B: Cpu> Bound<B> {
    /// Binds `vm` to the calling process.
    pub fn new(vm: hv::Vm<B>) -> Result<Shared<Self>, Errno> {
        let listener = Raw::new(glue::rekvm_listener_size)?;
        let process = glue::rekvm_current_mm();
        let statistics = StatsFile::of_vm(vm);
        let files = Files::new(StatsFile::<B>::vm_names().count())?;
        let (listening, link) = (AtomicBool::new(false), Link::default());
        let bound = Shared::try_new(Self { statistics, files, link, listener, listening, process })?;
        let object = (&raw const *bound).cast_mut().cast::<c_void>();
        // SAFETY: the room is as large as a listener, and the object stays where it is until it listens no more.
        errno::check(unsafe { glue::rekvm_listen(bound.listener.at(), object) })?;
        bound.listening.store(true, Relaxed);
        machines::add(&bound);
        bound.files.show(object, bound.vm().number(), StatsFile::<B>::vm_names());
        Ok(bound)
    }

    /// The VM.
    pub fn vm(&self) -> &hv::Vm<B> {
        self.statistics.vm()
    }

    /// What it counts.
    pub fn statistics(&self) -> &StatsFile<B> {
        &self.statistics
    }

    /// Its place among all VMs.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Refuses processes other than the one that made the VM.
    pub fn check(&self) -> Result<(), Errno> {
        if glue::rekvm_current_mm() == self.process { Ok(()) } else { Err(Errno::EIO) }
    }
}

impl<B: Cpu> Drop for Bound<B> {
    fn drop(&mut self) {
        if *self.listening.get_mut() {
            self.files.hide();
            machines::remove(self);
            // SAFETY: listens; no callback runs when this returns.
            unsafe { glue::rekvm_unlisten(self.listener.at()) };
        }
    }
}

/// # Safety
/// `object` was given to `rekvm_listen`, and listens.
pub unsafe fn bound<'a, B: Cpu>(object: Data) -> &'a Bound<B> {
    // SAFETY: as the caller promises.
    unsafe { &*object.cast::<Bound<B>>() }
}

fn range(start: u64, end: u64) -> Range<Hva> {
    Hva(start)..Hva(end)
}

/// # Safety
/// See [`bound`].
unsafe fn invalidate_begin<B: Cpu>(object: Data, start: u64, end: u64) {
    // SAFETY: as the caller promises.
    unsafe { bound::<B>(object) }.vm().invalidate_begin(range(start, end));
}

/// # Safety
/// See [`bound`].
unsafe fn invalidate_end<B: Cpu>(object: Data) {
    // SAFETY: as the caller promises.
    unsafe { bound::<B>(object) }.vm().invalidate_end();
}

/// # Safety
/// See [`bound`].
unsafe fn young<B: Cpu>(object: Data, start: u64, end: u64, take: bool) -> bool {
    // SAFETY: as the caller promises.
    unsafe { bound::<B>(object) }.vm().pages_are_young(range(start, end), take)
}

/// The client's pages in a range are about to change.
///
/// # Safety
/// See [`bound`].
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_invalidate_begin(object: Data, start: u64, end: u64) {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(invalidate_begin(object, start, end)) }
}

/// They have changed.
///
/// # Safety
/// See [`bound`].
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_invalidate_end(object: Data) {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(invalidate_end(object)) }
}

/// Whether the guest has used a page in a range since this was last asked with `take`.
///
/// # Safety
/// See [`bound`].
#[unsafe(no_mangle)]
unsafe extern "C" fn rekvm_rs_young(object: Data, start: u64, end: u64, take: bool) -> bool {
    // SAFETY: as the caller promises.
    unsafe { with_cpu!(young(object, start, end, take)) }
}
