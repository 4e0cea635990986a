//! All VMs, for what the kernel asks of no VM in particular: memory that it is short of, and totals.
//!
//! They are in a chain under a lock of its own, under which nothing is allocated: the kernel may ask in the middle of any allocation.
use core::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
};

use crate::{
    cpu::{Cpu, with_cpu},
    glue,
    vm::{Bound, bound},
};

/// The newest VM.
static NEWEST: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The VM that is older than the one that has this.
#[derive(Default)]
pub struct Link(AtomicPtr<c_void>);

/// While it lives, the chain does not change.
struct Chain;

impl Chain {
    fn lock() -> Self {
        // SAFETY: given back when this goes.
        unsafe { glue::rekvm_machines_lock() };
        Self
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: taken by `lock`.
        unsafe { glue::rekvm_machines_unlock() };
    }
}

/// Adds a VM, which is taken out again before it goes.
pub fn add<B: Cpu>(new: &Bound<B>) {
    let _chain = Chain::lock();
    let object = ptr::from_ref(new).cast_mut().cast();
    new.link().0.store(NEWEST.swap(object, Relaxed), Relaxed);
}

/// Takes it out.
pub fn remove<B: Cpu>(old: &Bound<B>) {
    let _chain = Chain::lock();
    let object: *mut c_void = ptr::from_ref(old).cast_mut().cast();
    let mut place = &NEWEST;
    loop {
        let at = place.load(Relaxed);
        if at == object {
            place.store(old.link().0.load(Relaxed), Relaxed);
        }
        if at == object || at.is_null() {
            return;
        }
        // SAFETY: what is in the chain is a living VM, and stays so while it is locked.
        place = &unsafe { bound::<B>(at) }.link().0;
    }
}

/// Calls `each` with every VM until it answers that this is enough. It must not allocate.
fn each<B: Cpu>(mut each: impl FnMut(&Bound<B>) -> bool) {
    let _chain = Chain::lock();
    let mut at = NEWEST.load(Relaxed);
    while !at.is_null() {
        // SAFETY: as above.
        let this = unsafe { bound::<B>(at) };
        if each(this) {
            return;
        }
        at = this.link().0.load(Relaxed);
    }
}

/// The sum of a statistic over all VMs.
pub fn total<B: Cpu>(index: usize) -> u64 {
    let mut sum: u64 = 0;
    each::<B>(|this| {
        sum = sum.wrapping_add(this.statistics().value(index));
        false
    });
    sum
}

fn pages<B: Cpu>() -> usize {
    let mut pages: usize = 0;
    each::<B>(|this| {
        pages = pages.saturating_add(this.vm().shadow_pages());
        false
    });
    pages
}

/// How many pages of tables could be given back.
#[unsafe(no_mangle)]
extern "C" fn rekvm_rs_shrinkable() -> usize {
    with_cpu!(pages())
}

fn shrink<B: Cpu>(wanted: usize) -> usize {
    let mut given = 0;
    each::<B>(|this| {
        given += this.vm().shrink_shadow(wanted.saturating_sub(given));
        given >= wanted
    });
    given
}

/// The kernel is short of memory: gives about so many back; how many.
#[unsafe(no_mangle)]
extern "C" fn rekvm_rs_shrink(wanted: usize) -> usize {
    with_cpu!(shrink(wanted))
}
